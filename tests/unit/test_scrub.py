"""The scrub reads all that a node stores, finds what is wrong with it, and goes on where it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from engine_machines import BIRTH, GROUP, OTHER, REPLICA, append, command
from mailraft.node import scrub as scrubbing
from mailraft.node.engine import keys, scrub_files
from mailraft.node.engine.errors import FileDamagedError
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import AppendEntries, ApplyWrite, Entry, EntryKind, GroupId, Put
from mailraft.node.rebuild import SCRUB_FILE
from mailraft.node.scrub import Scrub, load
from mailraft.wire import bodies

ENTRIES = 40


class Scrubbed:
    """A store with two groups, its scrub, and what that has told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[str] = []
        self.replicas: dict[GroupId, str] = {}
        self.stopped: list[GroupId] = []
        self.copies_written = 0
        self.store = Store.open(folder, cluster_id="c1", node=1)
        self.store.on_damage(self._file)
        if not self.store.groups():
            for group in (GROUP, OTHER):
                self._fill(group)
            for family in self.store._backend._families.values():  # type: ignore[attr-defined]
                family.flush()
        self.scrub = self.again()

    def again(self) -> Scrub:
        """As a restart makes it."""
        return Scrub(
            self.folder,
            self.store,
            bytes_per_s=1 << 40,
            late_ms=lambda: 0.0,
            file_damaged=self._file,
            replica_damaged=self._replica,
            stopped=lambda: self.stopped,
            written_again={self.folder / "copy": self._written},
        )

    def _fill(self, group: GroupId) -> None:
        self.store.create_group(group, REPLICA, BIRTH)
        for index in range(2, ENTRIES):
            body = bodies.pack(Random(index).randbytes(700))
            entry = Entry(index, 1, EntryKind.COMMAND, b"payload", (body,))
            effects = (Put(b"row-%d" % index, b"value"),)
            self.store.write([AppendEntries(group, (entry,)), ApplyWrite(group, index, 1, effects)])
        self.store.flush()

    def _file(self, error: FileDamagedError) -> None:
        self.files.append(str(error))

    async def _replica(self, group: GroupId, why: str) -> None:
        self.replicas[group] = why

    def _written(self) -> None:
        self.copies_written += 1

    def overwrite(self, family: str, key: bytes, value: bytes) -> None:
        """Behind every checksum but our own."""
        batch = self.store._backend.batch()
        batch.put(family, key, value)
        self.store._backend.write(batch)

    def flip(self, pattern: str) -> str:
        """A bit in the middle of a file, as a disk would."""
        path = max(self.folder.glob(pattern), key=lambda each: each.stat().st_size)
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            [value] = file.read(1)
            file.seek(-1, 1)
            file.write(bytes((value ^ 1,)))
        return path.name


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once, and what looks wrong is looked at again at once."""
    monkeypatch.setattr(scrubbing, "AGAIN_S", 0.01)
    monkeypatch.setattr(scrub_files.FileLook.__init__, "__kwdefaults__", {"settled_s": 0.0})


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Scrubbed]:
    """Two groups, all in tables and blobs."""
    scrubbed = Scrubbed(tmp_path)
    yield scrubbed
    scrubbed.store.close()


async def test_a_whole_store_is_read_to_its_end(it: Scrubbed) -> None:
    """Nothing is found, and it is told when, and how much was read: files and rows."""
    await it.scrub.run_pass()
    assert (it.files, it.replicas) == ([], {})
    state = it.scrub.state
    assert state.completed_ms >= state.begun_ms > 0
    rows = sum(len(packed) for group in (GROUP, OTHER) for _, packed in it.store.bodies(group))
    assert state.completed_bytes > 2 * rows
    assert state.errors == 0


@pytest.mark.parametrize("pattern", ["db/*.sst", "db/*.blob", "db/*.log", "db/MANIFEST-*"])
async def test_a_bit_that_changes_in_a_file_is_found(it: Scrubbed, pattern: str) -> None:
    """Between two passes, while the store is open and has what it needs in memory."""
    it.store.write([append(command(ENTRIES))])
    it.store.flush()
    await it.scrub.run_pass()
    assert not it.files
    name = it.flip(pattern)
    await it.scrub.run_pass()
    assert name in it.files[0]
    assert it.scrub.state.errors > 0


async def test_what_was_seen_before_a_restart_counts(it: Scrubbed) -> None:
    """A table is compared with what it was then."""
    await it.scrub.run_pass()
    name = it.flip("db/*.blob")
    await it.again().run_pass()
    assert name in it.files[0]


async def test_a_damaged_body_concerns_its_replica_alone(it: Scrubbed) -> None:
    """Its own checksum tells, where no block's does."""
    key = keys.body(GROUP, 1, 5, 0)
    packed = it.store.body(GROUP, 5, 0)
    assert packed is not None
    it.overwrite(keys.BODY, key, packed[:-1] + bytes((packed[-1] ^ 1,)))
    await it.scrub.run_pass()
    assert list(it.replicas) == [GROUP]
    assert not it.files


async def test_a_damaged_entry_concerns_its_replica_alone(it: Scrubbed) -> None:
    """Of the log."""
    key = keys.log_entry(OTHER, 9)
    record = it.store._backend.get(keys.LOG, key)
    assert record is not None
    it.overwrite(keys.LOG, key, record.replace(b"payload", b"paylobd"))
    await it.scrub.run_pass()
    assert list(it.replicas) == [OTHER]


async def test_a_replica_that_stopped_itself_is_looked_through_at_once(it: Scrubbed) -> None:
    """And once: it may have stopped for another reason."""
    key = keys.log_entry(GROUP, 9)
    record = it.store._backend.get(keys.LOG, key)
    assert record is not None
    it.overwrite(keys.LOG, key, record.replace(b"payload", b"paylobd"))
    it.stopped = [GROUP]
    await it.scrub._look_at_stopped()
    assert "log entry 9" in it.replicas.pop(GROUP)
    await it.scrub._look_at_stopped()
    assert not it.replicas


async def test_a_pass_goes_on_where_it_was(it: Scrubbed, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart in the middle looks at what is left, and ends that pass."""
    looked: list[GroupId] = []
    look_through = Scrub.look_through

    async def cut_off(self: Scrub, group: GroupId) -> None:
        if group == OTHER and not looked.count(OTHER):
            looked.append(OTHER)
            raise asyncio.CancelledError
        looked.append(group)
        await look_through(self, group)

    monkeypatch.setattr(Scrub, "look_through", cut_off)
    monkeypatch.setattr(scrubbing, "SAVE_EVERY_S", 0.0)
    with pytest.raises(asyncio.CancelledError):
        await it.scrub.run_pass()
    assert it.scrub.state.completed_ms == 0
    again = it.again()
    assert again._is_due()
    await again.run_pass()
    assert looked == [GROUP, OTHER, OTHER]
    assert again.state.completed_ms
    assert not again._is_due()


async def test_its_own_notes_may_be_damaged(it: Scrubbed) -> None:
    """Then it begins anew."""
    await it.scrub.run_pass()
    assert load(it.folder / SCRUB_FILE).completed_ms
    it.flip(SCRUB_FILE)
    assert load(it.folder / SCRUB_FILE).completed_ms == 0


async def test_a_copy_of_what_is_in_memory_is_written_again(it: Scrubbed) -> None:
    """It costs nobody anything else."""
    (it.folder / "copy").write_text("the map")
    await it.scrub.run_pass()
    it.flip("copy")
    await it.scrub.run_pass()
    assert it.copies_written == 1
    assert not it.files
    assert it.scrub.state.errors == 1

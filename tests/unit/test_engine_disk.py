"""What only a real folder can show: kills, lost and damaged files, locks, a full disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sim.disk import SimDisk

from engine_machines import (
    BIRTH,
    EVERYTHING,
    GROUP,
    REPLICA,
    all_entries,
    append,
    apply,
    command,
)
from mailraft.node.engine import keys, rocks
from mailraft.node.engine.errors import (
    CorruptionError,
    DiskError,
    DiskFullError,
    InvalidWriteError,
    LostWritesError,
    StoreLockedError,
    UnknownFormatError,
    WrongClusterError,
    WrongNodeError,
)
from mailraft.node.engine.store import Store
from mailraft.node.engine.watermark import FileWatermark
from mailraft.node.interfaces import HardState, LogCorruptError, Put, SaveHardState

WRITER = """
import sys
from pathlib import Path
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import *

store = Store.open(Path(sys.argv[1]), cluster_id="c1", node=1)
store.create_group(7, replica_id(1, 1), Configuration(1, (replica_id(1, 1),)))
for index in range(2, 1_000_000):
    entry = Entry(index, 1, EntryKind.COMMAND, b"%d" % index, (bytes(1000),))
    store.write([
        AppendEntries(7, (entry,)),
        SaveHardState(7, HardState(index)),
        ApplyWrite(7, index, 1, (Put(b"last", b"%d" % index),)),
    ])
    if index % 10 == 0:
        store.flush()
        print(index, flush=True)
"""


def open_at(path: Path, *, cluster_id: str = "c1", node: int = 1) -> Store:
    """The store in a folder."""
    return Store.open(path, cluster_id=cluster_id, node=node)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A node's folder that is not there yet."""
    return tmp_path / "node"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """A new store with GROUP."""
    store = open_at(path)
    store.create_group(GROUP, REPLICA, BIRTH)
    yield store
    store.close()


def image_of(path: Path) -> Path:
    """What a kill -9 at this moment would leave, beside the folder that is still open."""
    return Path(shutil.copytree(path, path.with_name(path.name + "-image")))


def log_file(path: Path) -> Path:
    """The newest file of RocksDB's log."""
    return max((path / "db").glob("*.log"))


# ---- kills ---------------------------------------------------------------------------------------


def test_what_was_flushed_survives_kill_9(path: Path) -> None:
    """A process that is killed loses nothing that it flushed, and leaves log and state in step."""
    command_line = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command_line, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        flushed = [int(writer.stdout.readline()) for _ in range(30)][-1]
        writer.send_signal(signal.SIGKILL)
        flushed = max([flushed, *map(int, writer.stdout.read().split())])
    assert writer.returncode == -signal.SIGKILL

    store = open_at(path)
    found = store.load(GROUP)
    assert found.last_index >= flushed >= 300
    assert found.applied_index == found.last_index == found.hard_state.term
    assert store.view(GROUP).get(b"last") == b"%d" % found.last_index
    assert [e.index for e in all_entries(store)] == list(range(2, found.last_index + 1))
    store.close()


def test_a_kill_while_a_folder_is_made_leaves_one_that_opens(path: Path) -> None:
    """A folder without an identity yet becomes ours at the next start."""
    store = open_at(path)
    store._backend.write(_deleting(store, keys.META, keys.NODE))
    store.close()
    assert open_at(path).groups() == []


def _deleting(store: Store, family: str, key: bytes) -> rocks.RocksBatch:
    assert isinstance(store._backend, rocks.RocksBackend)
    batch = store._backend.batch()
    batch.delete(family, key)
    return batch


def test_writes_go_on_while_a_flush_is_in_flight(store: Store, path: Path) -> None:
    """What was written before a flush began is durable when it ends, and nobody waits for it."""
    flushed: list[int] = []
    stop = threading.Event()

    def flush_all_the_time() -> None:
        while not stop.is_set():
            flushed.append(store.flush())

    disk_thread = threading.Thread(target=flush_all_the_time)
    disk_thread.start()
    written = [store.write([append(command(index, bytes(2000)))]) for index in range(2, 1000)]
    stop.set()
    disk_thread.join()
    assert flushed == sorted(flushed)
    assert flushed[-1] <= store.flush() == written[-1]
    image = open_at(image_of(path))
    assert image.load(GROUP).last_index == 999
    image.close()


# ---- lost writes ---------------------------------------------------------------------------------


def test_a_truncated_log_is_found_by_the_watermark(store: Store, path: Path) -> None:
    """Durable writes that are missing at the next start are never overlooked."""
    store._watermark = FileWatermark(path / "watermark")  # forgets that it wrote a moment ago
    for index in range(2, 50):
        store.write([append(command(index, bytes(100)))])
    store.flush()
    image = image_of(path)
    whole = image_of(image)
    os.truncate(log_file(image), log_file(image).stat().st_size // 2)
    with pytest.raises(LostWritesError, match="may not vote"):
        open_at(image)
    with pytest.raises(LostWritesError):  # and not only at the first try
        open_at(image)
    twin = open_at(whole)
    assert twin.load(GROUP).last_index == 49
    twin.close()


def test_a_flipped_bit_in_the_log_is_found(store: Store, path: Path) -> None:
    """RocksDB stops at a damaged record without a word; the watermark tells."""
    store._watermark = FileWatermark(path / "watermark")
    for index in range(2, 50):
        store.write([append(command(index, bytes(100)))])
    store.flush()
    image = image_of(path)
    data = bytearray(log_file(image).read_bytes())
    data[len(data) // 2] ^= 1
    log_file(image).write_bytes(data)
    with pytest.raises((LostWritesError, CorruptionError), match="be rebuilt"):
        open_at(image)


@pytest.mark.usefixtures("store")
def test_a_folder_without_its_database_is_refused(path: Path) -> None:
    """An emptied database beside an old watermark never starts as a new node."""
    image = image_of(path)
    shutil.rmtree(image / "db")
    with pytest.raises(LostWritesError, match="has lost writes"):
        open_at(image)


@pytest.mark.usefixtures("store")
def test_a_folder_without_its_watermark_is_refused(path: Path) -> None:
    """Without the mark nobody can tell what was durable."""
    image = image_of(path)
    (image / "watermark").unlink()
    with pytest.raises(LostWritesError, match="watermark file is missing"):
        open_at(image)


def test_losing_what_was_not_flushed_is_no_loss(store: Store, path: Path) -> None:
    """A log cut back to its flushed length opens, with everything that was flushed."""
    store.write([append(command(2))])
    store.flush()
    flushed_bytes = log_file(path).stat().st_size
    store.write([append(command(3))])
    image = image_of(path)
    os.truncate(log_file(image), flushed_bytes)
    found = open_at(image)
    assert found.load(GROUP).last_index == 2
    found.close()


# ---- whose folder --------------------------------------------------------------------------------


def test_a_folder_of_another_cluster_is_refused(store: Store, path: Path) -> None:
    """A node never serves another cluster's mail, and says whose folder it is (faults, row 18)."""
    store.close()
    with pytest.raises(WrongClusterError, match=r"belongs to cluster 'c1'.*not to 'c2'"):
        open_at(path, cluster_id="c2")
    with pytest.raises(WrongNodeError, match=r"belongs to node 1 .*not to node 2"):
        open_at(path, node=2)
    assert open_at(path).groups() == [(GROUP, REPLICA)]


def test_a_second_open_is_refused(store: Store, path: Path) -> None:
    """One folder is open in one process; the second is told why it cannot."""
    with pytest.raises(StoreLockedError, match="in use"):
        open_at(path)
    again = [sys.executable, "-c", WRITER, str(path)]
    second = subprocess.run(again, capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert "StoreLockedError" in second.stderr
    store.write([append(command(2))])
    store.flush()


def test_a_newer_format_is_refused(store: Store, path: Path) -> None:
    """A record of a later release is never guessed at."""
    newer = b"\x08\x63" + b"\x12\x02c1" + b"\x18\x01"
    batch = store._backend.batch()
    batch.put(keys.META, keys.NODE, newer)
    store._backend.write(batch)
    store.close()
    with pytest.raises(UnknownFormatError, match="format 99"):
        open_at(path)


# ---- damage --------------------------------------------------------------------------------------


def flip_in_tables(path: Path, suffix: str, needle: bytes) -> int:
    """Flip one bit behind each `needle` in the table or blob files; answers how many."""
    count = 0
    for file in (path / "db").glob("*" + suffix):
        data = bytearray(file.read_bytes())
        at = data.find(needle)
        if at >= 0:
            data[at + len(needle)] ^= 1
            file.write_bytes(data)
            count += 1
    return count


def test_a_damaged_table_ends_no_scan_early(store: Store, path: Path) -> None:
    """A flipped bit in a table raises CorruptionError from get and scan, both ways."""
    noise = [os.urandom(64) for _ in range(2000)]  # does not compress: found again as it is
    store.write([append(command(2)), apply(2, *(Put(b"k%04d" % i, noise[i]) for i in range(2000)))])
    store.close()
    assert flip_in_tables(path, ".sst", noise[1000][:32]) == 1
    found = open_at(path)
    view = found.view(GROUP)
    with pytest.raises(CorruptionError):
        list(view.scan(*EVERYTHING))
    with pytest.raises(CorruptionError):
        list(view.scan(*EVERYTHING, reverse=True))
    with pytest.raises(CorruptionError):
        view.get(b"k1000")
    assert view.get(b"k0000") == noise[0]
    found.close()


def test_a_damaged_blob_is_detected(store: Store, path: Path) -> None:
    """A flipped bit in a body on disk is an error wherever it is read."""
    body = os.urandom(4096)
    store.write([append(command(2, body), command(3))])
    store.close()
    assert flip_in_tables(path, ".blob", body[:64]) == 1
    found = open_at(path)
    with pytest.raises(CorruptionError):
        found.body(GROUP, 2, 0)
    with pytest.raises(LogCorruptError, match="group 7, log entry 2"):
        all_entries(found)
    assert found.load(GROUP).last_index == 3
    found.close()


# ---- a disk that refuses -------------------------------------------------------------------------


def test_a_failed_flush_is_never_retried(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one failed flush nothing is written or called durable any more."""
    text = "IO error: No space left on device: While appending to file: 000004.log"

    class Broken:
        def flush_wal(self, *, sync: bool) -> None:
            raise RuntimeError(text)

        def latest_sequence_number(self) -> int:
            return 1

    with monkeypatch.context() as patch:
        patch.setattr(store._backend, "_db", Broken())
        with pytest.raises(DiskFullError, match="No space left"):
            store.flush()
    with pytest.raises(DiskFullError, match="an earlier write failed"):
        store.flush()
    with pytest.raises(DiskError):
        store.write([SaveHardState(GROUP, HardState(9))])


def test_a_disk_that_takes_no_more_raises_disk_error(path: Path) -> None:
    """A real refusal of the kernel comes out as DiskError, from write or flush."""
    limited = WRITER.replace("import sys", "import sys, resource, signal", 1).replace(
        "for index",
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "for index",
    )
    line = [sys.executable, "-c", limited, str(path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DiskError" in done.stderr
    assert "File too large" in done.stderr
    flushed = int(done.stdout.split()[-1])
    store = open_at(path)
    assert store.load(GROUP).last_index >= flushed
    store.close()


def test_a_refused_write_leaves_the_store_usable(store: Store) -> None:
    """A bug of a caller is no failure of the disk."""
    with pytest.raises(InvalidWriteError):
        store.write([append(command(9))])
    store.write([append(command(2))])
    store.flush()


# ---- the watermark file --------------------------------------------------------------------------


def test_the_watermark_is_written_at_most_every_100_ms(path: Path) -> None:
    """Flushes between two marks are covered by the next, and `pending` says that one is due."""
    now_seconds = [0.0]
    mark = FileWatermark(path, clock=lambda: now_seconds[0])
    mark.record(5, force=True)
    now_seconds[0] = 0.05
    mark.record(6)
    assert mark.pending
    assert FileWatermark(path).sequence == 5
    now_seconds[0] = 0.11
    mark.record(6)
    assert not mark.pending
    assert FileWatermark(path).sequence == 6
    mark.close()


def test_a_flush_after_the_last_write_completes_the_watermark(store: Store, path: Path) -> None:
    """A store says when a burst is not covered yet, and one more flush covers it."""
    now_seconds = [0.0]
    store._watermark = mark = FileWatermark(path / "watermark", clock=lambda: now_seconds[0])
    store.write([append(command(2))])
    store.flush()
    store.write([append(command(3))])
    durable = store.flush()
    assert store.watermark_pending
    now_seconds[0] = 0.11
    assert store.flush() == durable
    assert not store.watermark_pending
    assert mark.sequence == FileWatermark(path / "watermark").sequence == durable


def test_a_torn_watermark_leaves_the_one_before(path: Path) -> None:
    """A write that was cut short costs one mark, never both."""
    mark = FileWatermark(path)
    for sequence in (5, 6, 7):
        mark.record(sequence, force=True)
    mark.close()
    data = path.read_bytes()
    for slot, left in ((0, 7), (512, 6)):
        path.write_bytes(data[:slot] + b"torn" + data[slot + 4 :])
        assert FileWatermark(path).sequence == left
    path.write_bytes(b"")
    with pytest.raises(CorruptionError, match="damaged"):
        FileWatermark(path)


def test_the_simulated_disk_forgets_what_was_not_flushed() -> None:
    """A crash keeps whole writes of what survived, and a torn one not at all."""
    disk = SimDisk()
    disk.create_group(GROUP, REPLICA, BIRTH)
    at_begin = disk.write([append(command(2))])
    disk.write([append(command(3))])
    assert disk.flush(at_begin) == at_begin
    third_bytes = disk.unflushed_bytes
    disk.write([append(command(4))])
    view = disk.view(GROUP)
    disk.crash(survive_bytes=disk.unflushed_bytes - 1)
    assert disk.load(GROUP).last_index == 3
    disk.write([append(command(4))])
    disk.crash(survive_bytes=0)
    assert disk.load(GROUP).last_index == 3
    assert third_bytes > 0
    with pytest.raises(Exception, match="crashed"):
        view.get(b"a")
    disk.write([append(command(4, b"body"))])
    disk.flush()
    disk.flip_bit(keys.BODY, keys.body(GROUP, 1, 4, 0), 3)
    with pytest.raises(LogCorruptError):
        all_entries(disk)
    disk.damage(keys.LOG, keys.log_entry(GROUP, 2))
    with pytest.raises(LogCorruptError, match="log entry 2"):
        all_entries(disk)
    disk.fail_with(DiskFullError("full"))
    with pytest.raises(DiskFullError):
        disk.write([append(command(5))])
    disk.crash()
    disk.write([append(command(5))])

"""Reads all that is stored here, a little at a time, before anybody has to rely on it.

A pass looks at every file past RocksDB and its caches (engine/scrub_files.py), then at every row of
every replica: entries of the log and bodies against their own checksums, state by the checksums of
its blocks. Whether the state is that of the peers is compared all the time (digest_exchange.py).

Where a pass stands is kept in the folder: a restart goes on there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import google_crc32c

from mailraft.node.engine.errors import (
    CorruptionError,
    FileDamagedError,
    StoreClosedError,
    UnknownGroupError,
)
from mailraft.node.engine.scrub_files import UNREAD, FileLook, Seen, files_of
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import GroupId, LogCorruptError
from mailraft.node.pace import Pace
from mailraft.node.rebuild import SCRUB_FILE
from mailraft.wire import bodies

log = logging.getLogger(__name__)

BYTES_PER_S = 8 * 1024 * 1024
ROWS_PER_S = 50_000
# A pass begins so long after the one before it began; the first one soon after a start.
EVERY_S = 24 * 3600.0
FIRST_S = 60.0
# What is read in one go: an iterator keeps what it was made on, so none lives for long.
STEP_BYTES, STEP_ROWS = 256 * 1024, 500
# What looks wrong is looked at once more after this: it may have been read while it was written.
AGAIN_S = 1.0
SAVE_EVERY_S = 60.0

Wrong = Callable[[GroupId, str], Awaitable[None]]


@dataclass(slots=True)
class ScrubState:
    """What is told of the scrub, and kept. Times are milliseconds since the Unix epoch."""

    begun_ms: int = 0
    completed_ms: int = 0  # the last whole pass; 0: none yet
    completed_bytes: int = 0  # that it read
    read_bytes: int = 0  # by the pass under way
    passes: int = 0  # that ended
    errors: int = 0  # found ever since the folder was made
    group: int = -1  # the pass has looked at the groups below this; -1: at files still
    files: dict[str, Seen] = field(default_factory=dict)


class Scrub:
    """One a node. `run` until cancelled."""

    def __init__(
        self,
        folder: Path,
        store: Store,
        *,
        bytes_per_s: int,
        late_ms: Callable[[], float],
        file_damaged: Callable[[FileDamagedError], None],
        replica_damaged: Wrong,
        stopped: Callable[[], list[GroupId]],
        written_again: Mapping[Path, Callable[[], None]],
    ) -> None:
        """bytes_per_s: 0: it does not run by itself. late_ms: as of node.pace. stopped: replicas
        that stopped themselves, which are looked through at once. written_again: files besides the
        store's, and what writes them again from memory.
        """
        self._folder, self._store = folder, store
        self._by_itself = bytes_per_s > 0
        self._pace = Pace(late_ms, bytes_per_s or BYTES_PER_S)
        self._file_damaged, self._replica_damaged = file_damaged, replica_damaged
        self._stopped, self._looked_through = stopped, set[GroupId]()
        self._written_again = written_again
        self._wanted = asyncio.Event()
        self._saved_s = time.monotonic()
        self.running = False
        self.state = load(folder / SCRUB_FILE)

    def begin(self) -> None:
        """Begin a pass now, unless one is under way."""
        if not self.running:
            self._wanted.set()

    async def run(self) -> None:
        due_s = time.monotonic() + FIRST_S
        while True:
            with_pass = False
            try:
                async with asyncio.timeout(AGAIN_S):
                    await self._wanted.wait()
                    with_pass = True
            except TimeoutError:
                await self._look_at_stopped()
                with_pass = self._by_itself and time.monotonic() >= due_s and self._is_due()
            if with_pass:
                self._wanted.clear()
                await self.run_pass()

    async def run_pass(self) -> None:
        """One pass, or the rest of one that was cut off."""
        state = self.state
        self.running = True
        try:
            if state.group < 0:
                state.begun_ms, state.read_bytes = _wall_ms(), 0
                await self._look_at_files()
                state.group = 0
            for group in sorted(each for each, _ in self._store.groups() if each >= state.group):
                await self.look_through(group)
                state.group = group + 1
                self._save()
            state.completed_ms, state.completed_bytes = _wall_ms(), state.read_bytes
            state.group, state.passes = -1, state.passes + 1
            self._save(now=True)
            log.info("scrubbed %d MiB", state.completed_bytes >> 20)
        except StoreClosedError:
            return  # the node stops
        finally:
            self.running = False

    # ---- files -----------------------------------------------------------------------------------

    async def _look_at_files(self) -> None:
        state = self.state
        seen: dict[str, Seen] = {}
        for path in [*await asyncio.to_thread(files_of, self._folder), *self._written_again]:
            look = await self._look(path)
            if look.wrong:
                await asyncio.sleep(AGAIN_S)
                look = await self._look(path)
            if look.wrong and path.exists():
                self._found(path, look.wrong)
            if look.seen is not None:
                seen[path.name] = look.seen
            self._save()
        state.files = seen

    async def _look(self, path: Path) -> FileLook:
        look = FileLook(path, self.state.files.get(path.name))
        steps = look.steps()
        while (size_bytes := await asyncio.to_thread(next, steps, None)) is not None:
            self.state.read_bytes += size_bytes
            await self._pace.spent(size_bytes)
        return look

    def _found(self, path: Path, wrong: str) -> None:
        self.state.errors += 1
        self._save(now=True)
        if path in self._written_again:
            log.error("%s: %s. It is written again", path, wrong)
            self._written_again[path]()
        elif path.name.startswith(UNREAD):
            log.error("%s: %s. Nothing reads it, and nothing is lost", path, wrong)
            self.state.files.pop(path.name, None)
        elif path.parent == self._folder:
            log.error("%s: %s. The other mark counts; the next one is written over it", path, wrong)
        else:
            self._file_damaged(FileDamagedError(f"{path}: {wrong}"))

    # ---- rows ------------------------------------------------------------------------------------

    async def look_through(self, group: GroupId) -> None:
        """All rows of one replica. What is wrong with one of them is told, and ends it."""
        try:
            if self._store.is_set_aside(group):
                return
            async for rows, size_bytes in self._rows(group):
                self.state.read_bytes += size_bytes
                await self._pace.spent(size_bytes, rows, ROWS_PER_S)
        except FileDamagedError:
            self.state.errors += 1  # told where it was met
        except (LogCorruptError, CorruptionError, bodies.BodyCorruptError) as error:
            self.state.errors += 1
            await self._replica_damaged(group, f"its scrub found damage: {error}")
        except UnknownGroupError:
            return  # moved away meanwhile

    async def _rows(self, group: GroupId) -> AsyncIterator[tuple[int, int]]:
        """Yields rows and bytes read since the last time; others have their turn in between."""
        for step in self._log(group):
            yield step
        for read in (self._bodies, self._state):
            after = b""
            while True:
                rows, size_bytes, after = read(group, after)
                yield rows, size_bytes
                if not after:
                    break

    def _log(self, group: GroupId) -> Iterator[tuple[int, int]]:
        at = 0
        while True:
            base, last = self._store.log_range(group)
            at = max(at, base)
            if at >= last:
                return
            entries = self._store.log(group).entries(at + 1, last, STEP_BYTES)
            yield len(entries), sum(entry.size_bytes for entry in entries)
            at = entries[-1].index

    def _bodies(self, group: GroupId, after: bytes) -> tuple[int, int, bytes]:
        def checked() -> Iterator[tuple[bytes, int]]:
            for key, packed in self._store.bodies(group, after=after):
                bodies.check(packed)
                yield key, len(packed)

        return _step(checked())

    def _state(self, group: GroupId, after: bytes) -> tuple[int, int, bytes]:
        rows = self._store.rows(group, after=after)
        return _step((key, len(key) + len(value)) for key, value in rows)

    async def _look_at_stopped(self) -> None:
        """A replica that stopped itself may have met damage: it is looked through, once."""
        stopped = self._stopped()
        self._looked_through &= set(stopped)
        for group in stopped:
            if group not in self._looked_through:
                self._looked_through.add(group)
                await self.look_through(group)

    # ---- keeping ---------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        begun_s_ago = (_wall_ms() - self.state.begun_ms) / 1000
        return self.state.group >= 0 or not 0 <= begun_s_ago < EVERY_S

    def _save(self, *, now: bool = False) -> None:
        """Not synced: what is lost of it is only looked at again."""
        if not now and time.monotonic() - self._saved_s < SAVE_EVERY_S:
            return
        self._saved_s = time.monotonic()
        text = json.dumps(asdict(self.state))
        fresh = self._folder / f"{SCRUB_FILE}.new"
        try:
            fresh.write_text(f"{text}\n{_checksum(text)}\n", encoding="ascii")
            fresh.replace(self._folder / SCRUB_FILE)
        except OSError as error:
            log.warning("where the scrub stands cannot be kept: %s", error.strerror)


def _step(read: Iterator[tuple[bytes, int]]) -> tuple[int, int, bytes]:
    """Takes keys and sizes up to a step; rows, bytes, and the last key: none once all was read."""
    rows = size_bytes = 0
    for key, row_bytes in read:
        rows, size_bytes = rows + 1, size_bytes + row_bytes
        if rows >= STEP_ROWS or size_bytes >= STEP_BYTES:
            return rows, size_bytes, key
    return rows, size_bytes, b""


def load(path: Path) -> ScrubState:
    """What was kept; a new state where there is none, or it is damaged itself."""
    try:
        text, checksum = path.read_text("ascii").splitlines()
        if checksum != _checksum(text):
            raise ValueError("its checksum does not match")
        told: Mapping[str, object] = json.loads(text)
        state = ScrubState(**told)  # type: ignore[arg-type]
        state.files = {name: Seen(**seen) for name, seen in state.files.items()}  # type: ignore[arg-type]
    except FileNotFoundError:
        return ScrubState()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s is not used, the scrub begins anew: %s", path, error)
        return ScrubState()
    return state


def _checksum(text: str) -> str:
    return f"{google_crc32c.value(text.encode()):08x}"


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000

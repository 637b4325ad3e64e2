"""Archives the log of a cluster as it grows, and takes backups when they are due."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from mailraft.cluster.backup.archive import Archive, Reach
from mailraft.cluster.backup.manifest import Manifest, backups
from mailraft.cluster.backup.nodes import LogRead, Nodes
from mailraft.cluster.backup.prune import prune
from mailraft.cluster.backup.store import BackupStore, StoreBusyError
from mailraft.cluster.backup.together import together
from mailraft.internal.v1 import raft_pb2
from mailraft.wire import errors

log = logging.getLogger(__name__)

POLL_S = 2.0
# A segment is put this often; earlier when it holds so much.
SEGMENT_S = 10.0
SEGMENT_BYTES = 16 * 1024 * 1024
# Shards that are asked at a time.
CONCURRENT = 8
# Why a backup is taken.
BEGIN, GAP, DUE = "the archive begins", "the log was compacted before it was archived", "it is time"


@dataclass(frozen=True, slots=True)
class Put:
    """What was archived: told after each segment."""

    entries: int
    stored_bytes: int
    behind_s: float  # of the shard that is archived least; infinite: one was never read
    failed: dict[int, str]  # why a shard could not be read


@dataclass(frozen=True, slots=True)
class Schedule:
    """When to take a backup besides those that a gap asks for, and how many to keep."""

    every_s: float = 0.0  # 0: never
    keep: int = 0  # 0: all


@dataclass(slots=True)
class Stream:
    """run() until it is cancelled; what it holds is archived then."""

    nodes: Nodes
    store: BackupStore
    take: Callable[[], Awaitable[Manifest]]  # a backup
    told: Callable[[Put], None] = lambda _: None
    took: Callable[[Manifest, str], None] = lambda *_: None  # a backup, and why
    schedule: Schedule = field(default_factory=Schedule)
    poll_s: float = POLL_S
    segment_s: float = SEGMENT_S
    bytes_per_s: int = 0
    _archive: Archive = field(init=False)
    _held: dict[int, list[raft_pb2.LogEntry]] = field(default_factory=dict)
    _reach: dict[int, Reach] = field(default_factory=dict)  # with what is held
    _failed: dict[int, str] = field(default_factory=dict)
    _held_bytes: int = 0
    _put_s: float = 0.0

    def __post_init__(self) -> None:
        self._archive = Archive(self.store, self.nodes.map.cluster_id)

    async def run(self) -> None:
        """Raises DamagedBackupError; errors of nodes are told and tried again."""
        await self.begin()
        try:
            while True:
                began_s = time.monotonic()
                await self.step()
                await asyncio.sleep(max(0.0, began_s + self.poll_s - time.monotonic()))
        finally:
            self.finish()

    async def begin(self) -> None:
        """Go on where the archive ends, or behind the newest backup; begin with one if need be."""
        self._archive.open()
        self._reach = dict(self._archive.reach)
        self._put_s = time.monotonic()
        known = backups(self.store, self.nodes.map.cluster_id)
        # A shard that is not archived yet goes on behind the newest backup.
        for shard in known[-1].shards if known else ():
            self._reach.setdefault(shard.group, Reach(shard.index, known[-1].began_ms))
        missing = set(self.nodes.groups) - self._reach.keys()
        if missing or not known:
            await self._base(BEGIN, missing or set(self.nodes.groups))

    async def step(self) -> None:
        """Ask every shard once, and put what is due."""

        async def ask(group: int) -> tuple[int, LogRead | None]:
            return group, await self._read(group)

        found = await together((partial(ask, each) for each in self.nodes.groups), CONCURRENT)
        gaps = {group for group, read in found if read is not None and read.gap}
        for group, read in found:
            if read is not None and not read.gap:
                self._hold(group, read)
        late = time.monotonic() - self._put_s >= self.segment_s
        if late or self._held_bytes >= SEGMENT_BYTES:
            self.finish()
        if gaps:
            self.finish()
            await self._base(GAP, gaps)
        elif self._due():
            await self._base(DUE, set())

    def finish(self) -> None:
        """Put what is held."""
        count = sum(map(len, self._held.values()))
        stored = self._archive.add(self._held, self._reach)
        self._held, self._held_bytes, self._put_s = {}, 0, time.monotonic()
        self.told(Put(count, stored, self._behind_s(), dict(self._failed)))

    async def _read(self, group: int) -> LogRead | None:
        try:
            read = await self.nodes.read_log(group, self._reach[group].index, self.bytes_per_s)
        except errors.MailraftError as error:
            self._failed[group] = str(error)
            return None
        self._failed.pop(group, None)
        return read

    def _hold(self, group: int, read: LogRead) -> None:
        at = self._reach[group].index
        if read.entries and [each.index for each in read.entries] != list(
            range(at + 1, at + 1 + len(read.entries))
        ):
            raise AssertionError(f"shard {group}: entries do not follow {at}")
        if read.entries:
            self._held.setdefault(group, []).extend(read.entries)
            self._held_bytes += sum(each.ByteSize() for each in read.entries)
            at = read.entries[-1].index
        # A replica that is behind what is archived proves nothing.
        if read.applied_index >= at:
            self._reach[group] = Reach(at, read.time_ms)

    async def _base(self, why: str, groups: set[int]) -> None:
        """A backup, and the archive of these shards goes on behind it."""
        try:
            manifest = await self.take()
        except (StoreBusyError, errors.MailraftError) as error:
            if not self._reach.keys() >= set(self.nodes.groups):
                raise  # nothing to go on from
            log.warning("no backup: %s", error)
            return
        for group in groups:
            shard = manifest.shard(group)
            if shard is not None:
                self._reach[group] = Reach(shard.index, manifest.began_ms)
        self._archive.add({}, self._reach)
        self.took(manifest, why)
        if self.schedule.keep:
            prune(self.store, manifest.cluster_id, self.schedule.keep)

    def _due(self) -> bool:
        if not self.schedule.every_s:
            return False
        newest = backups(self.store, self.nodes.map.cluster_id)[-1]
        return time.time() - newest.began_ms / 1000 >= self.schedule.every_s

    def _behind_s(self) -> float:
        oldest_ms = min((each.time_ms for each in self._reach.values()), default=0)
        return max(0.0, time.time() - oldest_ms / 1000) if oldest_ms else float("inf")

"""The loop that carries out Ready: write, flush, send, apply, answer.

One turn of consensus a flush, not one an event: what arrives while the disk is busy is taken
together (a grpc.aio server accepts about one call a turn of its loop, so work per turn multiplies
into every call). The loop writes unsynced, in program order; the disk thread only ever flushes,
since writing holds the GIL and flushing does not.
"""

from __future__ import annotations

import asyncio
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

from mailraft.internal.v1 import raft_pb2
from mailraft.node import failpoints
from mailraft.node.consensus.host import Host
from mailraft.node.consensus.messages import (
    Appended,
    AppliedUpTo,
    ChangeConfiguration,
    ChangeRefused,
    Discarded,
    Event,
    Outcome,
    Propose,
    ReadIndex,
    ReadReady,
    ReadRefused,
    Ready,
    Rejected,
    Retire,
    SnapshotArrived,
    SnapshotWanted,
    Transfer,
)
from mailraft.node.consensus.settings import Settings
from mailraft.node.engine.store import Store
from mailraft.node.entry_traces import EntryTraces
from mailraft.node.interfaces import ApplyWrite, Entry, GroupId, ReplicaId
from mailraft.node.metrics import NodeMetrics
from mailraft.node.shard import Leadership, Replica
from mailraft.node.timing import Flushes
from mailraft.wire import errors

log = logging.getLogger(__name__)

# Frames from peers that wait for a turn; past it their streams are read no further.
INBOX_EVENTS_MAX = 4_096
# How long what was flushed may wait for the watermark that proves it (docs/guarantees.md).
WATERMARK_S = 0.1
FLUSHES_KEPT = 16  # of which the median is told
FLUSH_PATIENCE_S = 0.02  # work waits no longer for a flush under way


class Streams(Protocol):
    """Where frames go."""

    def send(self, peer: int, frame: raft_pb2.ExchangeRequest) -> None:
        """Queue a frame; drops it when the peer's queue is full or its stream is down."""


def now_s() -> float:
    """Seconds of a clock that never jumps and counts while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Runtime:
    """Owns the store and the host of a node; everything but the flush runs on one event loop."""

    def __init__(
        self,
        store: Store,
        host: Host,
        replicas: Mapping[GroupId, Replica],
        streams: Streams,
        settings: Settings,
        metrics: NodeMetrics,
    ) -> None:
        self._store, self._host, self._streams = store, host, streams
        self._replicas, self._settings, self._metrics = replicas, settings, metrics
        self._inbox: list[Event] = []
        self._asking: dict[GroupId, None] = {}  # in the order in which they came
        self._disk_watchers: dict[GroupId, None] = {}  # groups with writes that wait for replicas
        self._room = asyncio.Event()
        self._room.set()
        self._due = asyncio.Event()
        self._turned = asyncio.Event()
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="disk")
        self._flush: asyncio.Future[int] | None = None
        self._flush_covers, self._flush_began_s = 0, 0.0
        self._flushed_s = now_s()
        self._written = 0
        self._durable = 0
        self._stopping = False
        self._wakes_s = math.inf  # when a turn comes that was asked for before the next tick
        self.traces, self._flushes = EntryTraces(host.node), Flushes()
        self._flush_took_s: deque[float] = deque(maxlen=FLUSHES_KEPT)
        self._followers: list[tuple[GroupId, asyncio.Future[None]]] = []
        self._want_snapshot: Callable[[SnapshotWanted], None] = lambda _: None
        self._between: list[tuple[Callable[[], None], asyncio.Future[None]]] = []
        self._installing: dict[tuple[GroupId, int], asyncio.Future[bool]] = {}

    # ---- for streams, replicas and services ------------------------------------------------------

    def tell(self, event: Event) -> None:
        """Hand an event to the next turn."""
        self._inbox.append(event)
        if len(self._inbox) >= INBOX_EVENTS_MAX:
            self._room.clear()
        self.wake()

    async def room(self) -> None:
        """Wait until the inbox takes more: what reads from a peer calls this between frames."""
        await self._room.wait()

    def wake(self) -> None:
        """There is work. It waits for a flush under way, and goes with the rest; but what others
        can do without this node's disk must not wait for it when it is slow.
        """
        if self._flush is None or self.flush_waits_s > FLUSH_PATIENCE_S:
            self._due.set()

    def ask(self, group: GroupId) -> None:
        """The group's replica has reads or commands for the next turn."""
        self._asking[group] = None
        self.wake()

    def watch_disks(self, group: GroupId) -> None:
        """Tell the group's replica after each turn what is on whose disk, while it wants it."""
        self._disk_watchers[group] = None

    async def transfer(self, group: GroupId, target: ReplicaId = 0, *, deadline_s: float) -> bool:
        """Hand leadership of a group to another replica; 0: to the one that is furthest ahead.

        True once this replica does not lead, also when it never did. Calls wait meanwhile, and
        none is lost: it commits here after all, or is sent on to the new leader.
        """
        if not self._replicas[group].leadership.leading:
            return True
        follows: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._followers.append((group, follows))
        self.tell(Transfer(group, target))
        try:
            await asyncio.wait_for(follows, max(0.0, deadline_s - now_s()))
        except TimeoutError:
            return False
        finally:
            self._followers.remove((group, follows))
        return True

    async def retire(self, *, deadline_s: float) -> None:
        """Hand over all that is led here, and lead nothing any more: for a node that is to stop.

        Returns when that is done, when nobody is there to take over, or at the deadline.
        """
        self.tell(Retire())
        await self._until(lambda: not any(map(self._host.has_heir, self._replicas)), deadline_s)

    async def settled(self, *, deadline_s: float) -> None:
        """Wait until no call waits for consensus here, or for the deadline."""
        await self._until(
            lambda: not any(replica.has_open for replica in self._replicas.values()), deadline_s
        )

    async def _until(self, reached: Callable[[], bool], deadline_s: float) -> None:
        """Look again after each turn."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline_s - now_s())):
                while not reached():
                    self._turned.clear()
                    await self._turned.wait()

    async def change_members(
        self,
        group: GroupId,
        expected_version: int,
        voters: tuple[ReplicaId, ...],
        learners: tuple[ReplicaId, ...],
        *,
        deadline_s: float,
    ) -> int:
        """Have a group's members changed; the index of that change, once it is committed.

        Raises JobConflictError with the reason when it may not be changed so now, NotLeaderError,
        CommitUnknownError (ask what configuration is in force).
        """
        replica = self._replicas[group]
        token, done = replica.begin_change()
        self.tell(ChangeConfiguration(group, token, expected_version, voters, learners))
        try:
            return await asyncio.wait_for(done, max(0.0, deadline_s - now_s()))
        except TimeoutError:
            raise errors.CommitUnknownError(
                f"shard {group}: the change of its members did not commit in time"
            ) from None
        finally:
            replica.forget_change(token)

    def send_snapshots_by(self, want: Callable[[SnapshotWanted], None]) -> None:
        """Where snapshots that the host wants sent are asked for."""
        self._want_snapshot = want

    async def flushed(self) -> None:
        """Wait until everything that is written by now is on disk. Raises DiskError."""
        await asyncio.get_running_loop().run_in_executor(self._disk, self._sync)

    @property
    def flush_waits_s(self) -> float:
        """How long the flush that is under way has taken so far; 0 while there is none."""
        return now_s() - self._flush_began_s if self._flush is not None else 0.0

    @property
    def flush_ms(self) -> int:
        """What a flush takes: the median of the latest, or that under way if it takes longer."""
        usual_s = statistics.median(self._flush_took_s or (0.0,))
        return int(max(usual_s, self.flush_waits_s) * 1000)

    async def install(self, arrived: SnapshotArrived) -> bool:
        """Hand a snapshot to consensus; whether it is live, on disk with the next flush."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._installing[arrived.group, arrived.generation] = done
        self.tell(arrived)
        return await done

    async def between_turns(self, work: Callable[[], None]) -> None:
        """Have work done where no turn is under way: what it changes, no turn has half seen."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._between.append((work, done))
        self.wake()
        await done

    # ---- the loop --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Turn until stopped. Raises DiskError when the disk failed: the process must end then."""
        self._tick()
        while not self._stopping:
            await self._due.wait()
            self._due.clear()
            await self._turn()
            self._turned.set()

    def _tick(self) -> None:
        """A turn is due at least once a tick, also while a flush is under way."""
        self._due.set()
        if not self._stopping:
            asyncio.get_running_loop().call_later(self._settings.tick_s, self._tick)

    def halt(self) -> None:
        """No turn any more, and no heartbeat: for a node whose store is given up."""
        self._stopping = True
        self._due.set()

    async def stop(self) -> None:
        """End after the turn under way; what was written is flushed."""
        self._stopping = True
        self._due.set()
        if self._flush is not None:
            await asyncio.wait([self._flush])
        for replica in self._replicas.values():
            replica.stop("this node shuts down")

    def close(self) -> None:
        self._disk.shutdown(wait=True)

    async def _turn(self) -> None:
        self._collect_flush()
        self._do_between()
        inbox, self._inbox = self._inbox, []
        self._room.set()
        inbox.extend(self._take_asked())
        ready = self._host.step(now_s(), inbox, self._durable)
        if ready.writes:
            self._store.write(ready.writes)
            self._written = ready.sequence
        self._begin_flush()
        self._take_snapshots(ready)
        if self.traces:
            self.traces.attach(ready.outcomes, ready.messages)
            self.traces.written(self._written, now_s())
        for peer, frame in ready.messages:
            failpoints.hit("send.before")
            self._streams.send(peer, frame)
            failpoints.hit("send.after")
        self._tell_replicas(ready)
        self._tell_disks()
        for committed in ready.committed:
            await self._apply(committed.group, committed.entries)
        self._wake_at(ready.soon_s)

    def _wake_at(self, at_s: float) -> None:
        """Before the next tick, if that comes later."""
        if at_s < self._wakes_s:
            self._wakes_s = at_s
            loop = asyncio.get_running_loop()
            loop.call_later(max(0.0, at_s - now_s()), self._wake_on_time)

    def _wake_on_time(self) -> None:
        self._wakes_s = math.inf
        self.wake()

    def _take_asked(self) -> Iterator[Event]:
        """What waits in replicas; one that has more than it may hand on is asked again."""
        asking, self._asking = self._asking, {}
        for group in asking:
            replica = self._replicas.get(group)
            if replica is None:
                continue
            read = replica.next_read()
            if read is not None:
                yield ReadIndex(group, read)
            entry = replica.next_entry()
            if entry is not None:
                if entry.traces:
                    self.traces.proposed(group, entry.token, entry.traces)
                yield Propose(group, entry.token, entry.kind, entry.payload, entry.bodies)
            if replica.has_waiting:
                self._asking[group] = None

    def _do_between(self) -> None:
        waiting, self._between = self._between, []
        for work, done in waiting:
            work()
            if not done.done():
                done.set_result(None)

    def _tell_replicas(self, ready: Ready) -> None:
        for stopped in ready.stopped:
            log.critical("replica of shard %d stops: %s", stopped.group, stopped.reason)
            self._replicas[stopped.group].stop("this replica stopped itself; see the node's log")
        for status in ready.changed:
            leadership = Leadership(status.leader, status.term, status.leading)
            replica = self._replicas[status.group]
            if replica.leadership.leader != status.leader and status.leader:
                self._metrics.leader_changes.labels(status.group).inc()
            replica.lead(leadership)
            for group, follows in self._followers:
                if group == status.group and not status.leading and not follows.done():
                    follows.set_result(None)
        for outcome in ready.outcomes:
            asked = self._replicas.get(outcome.group)
            if asked is not None:  # else it was removed while this was on its way
                self._tell_outcome(asked, outcome)

    def _tell_disks(self) -> None:
        for group in tuple(self._disk_watchers):
            replica = self._replicas.get(group)
            if replica is None or not replica.told_disks(self._host.match_indexes(group)):
                del self._disk_watchers[group]

    def _tell_outcome(self, replica: Replica, outcome: Outcome) -> None:
        became = ""
        match outcome:
            case Appended(token, _, index, term):
                times = replica.placed(token, index, term)
                self._flushes.written(self._written, times, now_s())
                became = "appended"
            case Rejected(token):
                replica.rejected(token)
                became = "rejected"
            case Discarded(token):
                replica.discarded(token)
                became = "discarded"
            case ReadReady(token, _, index):
                replica.read_ready(token, index)
            case ReadRefused(token):
                replica.read_refused(token)
            case ChangeRefused(token, _, reason):
                replica.change_refused(token, reason)
        if became:
            self._metrics.entries.labels(outcome.group, became).inc()

    def _take_snapshots(self, ready: Ready) -> None:
        """Those that arrived are live now, or are dropped; those that are wanted are sent."""
        for taken in ready.snapshots_taken:
            if taken.installed:
                self._replicas[taken.group].restored(self._store.view(taken.group), taken.index)
            else:
                self._store.drop_generation(taken.group, taken.generation)
            became = "installed" if taken.installed else "dropped"
            self._metrics.snapshots.labels(taken.group, became).inc()
            waiting = self._installing.pop((taken.group, taken.generation), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(taken.installed)
        # The generations before them, once nobody reads them any more.
        self._store.drop_retired()
        for wanted in ready.snapshots_wanted:
            self._want_snapshot(wanted)

    async def _apply(self, group: GroupId, entries: tuple[Entry, ...]) -> None:
        """Apply entries in order, giving way to calls between two of them."""
        replica = self._replicas[group]
        replica.committed(entries)
        for entry in entries:
            began_s = now_s()
            try:
                done = replica.apply(entry)
            except Exception:
                # Row 21: a replica that cannot apply stops itself, and not its neighbours.
                log.critical("shard %d cannot apply entry %d", group, entry.index, exc_info=True)
                self._host.remove_group(group)
                replica.stop("this replica could not apply an entry; see the node's log")
                return
            failpoints.hit("apply.before")
            self._store.write([ApplyWrite(group, entry.index, entry.term, done.effects)])
            failpoints.hit("apply.after")
            replica.applied(entry, done)
            if self.traces:
                self.traces.applied(group, entry.index, began_s, now_s())
            await asyncio.sleep(0)
        # A turn of its own only where more waits to be applied; else it is news for the next one.
        self._inbox.append(AppliedUpTo(group, entries[-1].index))
        if self._host.has_committed_more(group):
            self.wake()

    # ---- flushing --------------------------------------------------------------------------------

    def _begin_flush(self) -> None:
        """One flush at a time; it makes durable whatever was written before it began."""
        if self._flush is not None:
            return
        overdue = self._store.watermark_pending and now_s() - self._flushed_s > WATERMARK_S
        if self._written == self._durable and not overdue:
            return
        self._flush_covers, self._flush_began_s = self._written, now_s()
        loop = asyncio.get_running_loop()
        self._flush = loop.run_in_executor(self._disk, self._sync)
        self._flush.add_done_callback(lambda _: self._due.set())
        loop.call_later(FLUSH_PATIENCE_S, self._lose_patience)

    def _lose_patience(self) -> None:
        if self.flush_waits_s >= FLUSH_PATIENCE_S and (self._inbox or self._asking):
            self._due.set()

    def _sync(self) -> int:
        """On the disk thread."""
        with self._metrics.flush_seconds.time():
            failpoints.hit("journal.before_sync")
            sequence = self._store.flush()
        failpoints.hit("journal.after_sync")
        return sequence

    def _collect_flush(self) -> None:
        if self._flush is None or not self._flush.done():
            return
        flush, self._flush = self._flush, None
        flush.result()  # any error ends the process: what is durable now is unknown (fsyncgate)
        self._durable = max(self._durable, self._flush_covers)
        self._flushed_s = now_s()
        self._flush_took_s.append(self._flushed_s - self._flush_began_s)
        self._flushes.flushed(self._durable, self._flushed_s)
        if self.traces:
            self.traces.flushed(self._durable, self._flushed_s)

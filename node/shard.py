"""One replica of one shard, between gRPC handlers and the runtime: propose() and read().

Generic over a StateMachine. Everything runs on the node's event loop: a handler awaits, the runtime
takes what waits (`next_entry`), and later tells what became of it (`placed`, `applied`, ...). No
lock is needed, and between two awaits a view does not change.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mailraft.node import refusals, timing
from mailraft.node.durability import WAITS_MAX, DiskWaits, Need, This
from mailraft.node.interfaces import (
    Applied,
    Effect,
    Entry,
    EntryKind,
    GroupId,
    Proposal,
    ReplicaId,
    Standing,
    StateMachine,
    View,
)
from mailraft.node.member_changes import MemberChanges
from mailraft.node.proposals import Committed, Placed, ProposalQueue, Waiting
from mailraft.node.read_indexes import ReadIndexes
from mailraft.node.timing import EntryTimes
from mailraft.v1 import common_pb2, error_pb2
from mailraft.wire import errors, feature_levels, observed, tracing

# A read asks a quorum at most so long before it is told that this replica lags: less than a router
# gives a try, so that it hears why.
PROBE_S = 0.5
# Reads that may be old have the replica ask a quorum how old, at most so often, and do not wait.
REFRESH_S = 1.0
# Entries that have a place in the log and are not applied yet.
ENTRIES_IN_FLIGHT_MAX = 64


@dataclass(frozen=True, slots=True)
class ReadPoint:
    """A view that holds what the level asked for; valid until the caller next awaits."""

    view: View
    index: int
    age_ms: int
    consistency_met: common_pb2.Consistency.ValueType
    complete: bool = True
    replicas: int = 0  # that were asked


Listener = Callable[[tuple[Effect, ...]], None]


@dataclass(frozen=True, slots=True)
class NextEntry:
    """One entry to propose. `token` names it in the host's outcomes."""

    token: int
    kind: EntryKind
    payload: bytes
    bodies: tuple[bytes, ...]
    traces: tuple[str, ...] = ()  # of the calls that wait for it


@dataclass(frozen=True, slots=True)
class Leadership:
    leader: ReplicaId = 0
    term: int = 0
    leading: bool = False


class Replica:
    """A replica as handlers see it. The runtime calls the methods below the line."""

    def __init__(
        self,
        group: GroupId,
        replica: ReplicaId,
        machine: StateMachine,
        view: View,
        applied_index: int,
        *,
        wake: Callable[[], None],
        now: Callable[[], float],
        standing: Standing,
    ) -> None:
        self.group, self.replica = group, replica
        self.machine, self.view = machine, view
        self.applied_index = applied_index
        self.leadership = Leadership()
        self._wake, self._now, self._standing = wake, now, standing
        self._queue = ProposalQueue()
        self._proposed: dict[int, list[Waiting]] = {}  # by token, place in the log unknown yet
        self._placed: dict[int, Placed] = {}  # by index
        self._token = 0
        self._disks = DiskWaits()
        self._applies: set[asyncio.Future[None]] = set()
        self._listeners: list[Listener] = []
        self._stopped: str | None = None
        self._indexes = ReadIndexes()
        self._changes = MemberChanges()

    # ---- for handlers ----------------------------------------------------------------------------

    async def propose(
        self, command: object, bodies: Iterable[bytes] = (), *, deadline_s: float
    ) -> Committed:
        """Have a command committed and applied here; deadline_s is on the node's clock.

        Raises NotLeaderError (nothing was written), OverloadedError (nothing was written),
        CommitUnknownError (retry by request_id), ShuttingDownError.
        """
        waiting = self._enqueue(Proposal(command, tuple(bodies)))
        committed = await self._outcome(waiting, deadline_s)
        timing.answered(self.group, waiting.since_s, committed.times, now_s=self._now())
        return committed

    def check_contact(self, need: Need) -> None:
        """Refuse a write on arrival whose level cannot be met now: nothing is written.

        Raises NotLeaderError, NoLeaderError, QuorumUnavailableError, OverloadedError.
        """
        if not self.leadership.leading:
            raise self.not_leader()
        if len(self._disks) >= WAITS_MAX:
            raise errors.OverloadedError(f"shard {self.group}: {WAITS_MAX} calls wait for replicas")
        short = need.shortfall(self._standing.in_contact(), self._standing.durable())
        if short is not None:
            raise refusals.no_quorum(self.group, short)

    async def wait_on_disks(
        self, index: int, need: Need, *, deadline_s: float
    ) -> common_pb2.LevelMet.ValueType:
        """Whether a committed entry is on the disks that a level needs, waiting until it is.

        NO at the deadline; UNKNOWN when this replica leads no more.
        """
        if not self.leadership.leading:
            return common_pb2.LEVEL_MET_UNKNOWN
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._on_disks(index, need, done)
        try:
            with observed.waiting("level", self._now):
                known = await asyncio.wait_for(done, max(0.0, deadline_s - self._now()))
        except TimeoutError:
            return common_pb2.LEVEL_MET_NO
        return common_pb2.LEVEL_MET_YES if known else common_pb2.LEVEL_MET_UNKNOWN

    def disks_with(self, index: int) -> int:
        """On the leader: how many voters have an entry on disk; 0 elsewhere."""
        return sum(durable >= index for durable in self._standing.durable().values())

    async def accept(
        self, command: object, bodies: Iterable[bytes] = (), *, deadline_s: float
    ) -> None:
        """Have a command put into the log and on this disk. It may still be lost, or refused.

        Raises what propose() raises.
        """
        waiting = self._enqueue(Proposal(command, tuple(bodies)))
        waiting.on_own_disk = asyncio.get_running_loop().create_future()
        waiting.done.add_done_callback(_look)  # nobody waits for what becomes of it later
        either = (waiting.done, waiting.on_own_disk)
        timeout_s = max(0.0, deadline_s - self._now())
        with observed.waiting(timing.FLUSH, self._now):
            await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done.done():
            waiting.done.result()
        elif not waiting.on_own_disk.done():
            waiting.done.cancel()
            raise self._commit_unknown("it was not on disk in time")
        elif not waiting.on_own_disk.result():
            raise self._commit_unknown("leadership was lost before it was on disk")

    async def read(
        self,
        consistency: common_pb2.Consistency.ValueType,
        *,
        deadline_s: float,
        max_age_ms: int = 0,
    ) -> ReadPoint:
        """A view that keeps the promise of a level (docs/guarantees.md).

        LINEARIZABLE asks a quorum for an index, on a follower through its leader, and waits until
        that is applied here; reads that wait share the question. BOUNDED does the same when it is
        not certain that what is applied here is at most max_age_ms old. Others read what is applied
        here; for SESSION the caller checks min_state and waits with `wait_applied`.

        Raises NotLeaderError and NoLeaderError (leadership changed, or nobody leads),
        QuorumUnavailableError (not in time), ReplicaLaggingError (BOUNDED), ShuttingDownError.
        """
        self._check_running()
        began_s = self._now()
        bounded = consistency == common_pb2.CONSISTENCY_BOUNDED
        if consistency == common_pb2.CONSISTENCY_LINEARIZABLE:
            await self._pass_index(deadline_s)
        elif bounded and self.age_ms() > max_age_ms:
            try:
                await self._pass_index(min(deadline_s, began_s + PROBE_S))
            except (errors.NotLeaderError, errors.NoLeaderError, errors.QuorumUnavailableError):
                raise self.lagging(f"this may be older than {max_age_ms} ms") from None
        age_ms = self.age_ms(began_s)
        if age_ms > (min(REFRESH_S * 1000, max_age_ms / 2) if bounded else REFRESH_S * 1000):
            self._refresh()
        return ReadPoint(self.view, self.applied_index, age_ms, consistency)

    async def wait_applied(self, *, deadline_s: float) -> bool:
        """Wait until another entry is applied here; False when the deadline passed first."""
        self._check_running()
        if not self.leadership.leading:
            self._refresh()  # a leader tells a commit index at once where somebody waits for it
        done = asyncio.get_running_loop().create_future()
        self._applies.add(done)
        try:
            await asyncio.wait_for(done, max(0.0, deadline_s - self._now()))
        except TimeoutError:
            return False
        finally:
            self._applies.discard(done)
        return True

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Have every applied entry's effects told, on leader and follower alike, once they can be
        read here; what is returned ends it. The listener must be quick and not raise.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    @property
    def stopped(self) -> bool:
        """Whether nothing is answered or applied here any more."""
        return self._stopped is not None

    @property
    def has_waiting(self) -> bool:
        """Whether reads or commands wait for a turn."""
        return bool(self._queue) or self._indexes.waiting

    @property
    def has_open(self) -> bool:
        """Whether a call waits for what becomes of it."""
        return self.has_waiting or any(
            (self._proposed, self._placed, self._indexes.open, self._changes)
        )

    @property
    def commands_waiting(self) -> int:
        """Commands that have no entry yet."""
        return len(self._queue)

    @property
    def entries_open(self) -> int:
        """Entries proposed here whose fate is not known yet."""
        return len(self._proposed) + len(self._placed)

    def age_ms(self, at_s: float | None = None) -> int:
        """How old, at most, this replica's data was then, or is now (docs/guarantees.md)."""
        return _ms((self._now() if at_s is None else at_s) - self._indexes.current_s)

    def heard_age_ms(self) -> int:
        """How long ago the leader was heard; 0 on the leader itself."""
        return 0 if self.leadership.leading else _ms(self._now() - self._standing.leader_heard_s())

    def lagging(self, why: str, fresher: ReplicaId = 0) -> errors.MailraftError:
        """What a read is refused with that another replica may be able to serve."""
        return errors.ReplicaLaggingError(
            f"replica {self.replica} of shard {self.group}: {why}",
            detail=error_pb2.ReplicaLagging(
                shard=self.group,
                replica_id=self.replica,
                applied_index=self.applied_index,
                age_ms=self.age_ms(),
                fresher_replica_id=fresher,
            ),
        )

    def not_leader(self) -> errors.MailraftError:
        """What a call is refused with that needs the leader, and this replica does not lead."""
        leader, term = self.leadership.leader, self.leadership.term
        return refusals.not_leader(self.group, self.replica, leader, term)

    # ---- inside ----------------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._stopped is not None:
            raise errors.ShuttingDownError(self._stopped)

    def _enqueue(self, proposal: Proposal) -> Waiting:
        self._check_running()
        if not self.leadership.leading:
            raise self.not_leader()
        feature_levels.check(proposal.command, self._standing.feature_level())
        done: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        waiting = Waiting(proposal, done, self._now(), trace=tracing.recorded())
        if not self._queue.put(waiting):
            raise errors.OverloadedError(
                f"shard {self.group} has {len(self._queue)} commands waiting"
            )
        self._wake()
        return waiting

    async def _outcome(self, waiting: Waiting, deadline_s: float) -> Committed:
        try:
            return await asyncio.wait_for(waiting.done, max(0.0, deadline_s - self._now()))
        except TimeoutError:
            # Row 20: it may still be committed; only the request_id can tell.
            raise self._commit_unknown("it did not commit in time") from None

    def _commit_unknown(self, why: str) -> errors.MailraftError:
        return refusals.commit_unknown(self.group, why)

    def _on_disks(self, index: int, need: Need, done: asyncio.Future[bool]) -> None:
        self._disks.add(index, need, done)
        self._disks.told(self._standing.durable())
        self._standing.watch_disks()

    def _refresh(self) -> None:
        """Find out how old the data is, for later reads; nobody waits for it."""
        if self.leadership.leader and not self._indexes.open:
            self._indexes.add().add_done_callback(_look)
            self._wake()

    async def _pass_index(self, deadline_s: float) -> None:
        if not self.leadership.leader:
            raise self.not_leader()
        done = self._indexes.add()
        self._wake()
        try:
            with observed.waiting("read index", self._now):
                await asyncio.wait_for(done, max(0.0, deadline_s - self._now()))
        except TimeoutError:
            raise refusals.no_quorum(self.group) from None

    # ---- for the runtime -------------------------------------------------------------------------

    def next_read(self) -> int | None:
        """A token to ask a read index under, for all reads that wait; None when none does."""
        if not self._indexes.ask(self._token + 1, self._now()):
            return None
        self._token += 1
        return self._token

    def read_ready(self, token: int, index: int) -> None:
        """As ReadIndexes.answered."""
        self._indexes.answered(token, index, self.applied_index)

    def read_refused(self, token: int) -> None:
        """Leadership changed, or nobody leads: the callers may ask again."""
        self._indexes.refused(token, self.not_leader())

    def next_entry(self) -> NextEntry | None:
        """What waits, as one entry (bounded); None when nothing does, or too much is open."""
        if not self._queue or self.entries_open >= ENTRIES_IN_FLIGHT_MAX:
            return None
        taken = self._queue.take()
        if not taken:
            return None
        payload, bodies = self.machine.encode([waiting.proposal for waiting in taken])
        self._token += 1
        self._proposed[self._token] = taken
        traces = tuple(waiting.trace for waiting in taken if waiting.trace)
        return NextEntry(self._token, EntryKind.COMMAND, payload, bodies, traces)

    def begin_change(self) -> tuple[int, asyncio.Future[int]]:
        """A token for a change of the members, and what tells its index once it is committed."""
        self._check_running()
        self._token += 1
        return -self._token, self._changes.begin(-self._token)

    def change_refused(self, token: int, reason: str) -> None:
        """A change of the members was appended nowhere."""
        self._changes.end(token, errors.JobConflictError(f"shard {self.group}: {reason}"))

    def forget_change(self, token: int) -> None:
        """Nobody waits for it any more."""
        self._changes.forget(token)

    def placed(self, token: int, index: int, term: int) -> EntryTimes:
        """A proposal has a place in the log; what is answered wants to know when it is on disk."""
        times = EntryTimes()
        if token < 0:
            self._changes.placed(token, index, term)
            return times
        waiters = self._proposed.pop(token, [])  # none: it stopped in this very turn
        self._placed[index] = Placed(term, token, waiters, times)
        for waiting in waiters:
            if waiting.on_own_disk is not None:
                self._on_disks(index, This(self.replica), waiting.on_own_disk)
        return times

    def told_disks(self, durable: Mapping[ReplicaId, int]) -> bool:
        """Up to where each voter's log is on its disk; whether anybody waits for more."""
        self._disks.told(durable)
        return bool(self._disks)

    def rejected(self, token: int) -> None:
        """A proposal was appended nowhere."""
        self._changes.end(token, self.not_leader())
        for waiting in self._proposed.pop(token, []):
            waiting.fail(self.not_leader())

    def discarded(self, token: int) -> None:
        """Another entry was committed in a proposal's place: its callers may safely ask again."""
        self._changes.end(token, self.not_leader())
        for index, placed in list(self._placed.items()):
            if placed.token == token:
                del self._placed[index]
                for waiting in placed.waiters:
                    waiting.fail(self.not_leader())

    def lead(self, leadership: Leadership) -> None:
        """Leadership changed. What was not proposed yet goes back to its callers."""
        if not leadership.leading or leadership.term != self.leadership.term:
            self._disks.lost()
        self.leadership = leadership
        if not leadership.leading:
            self._queue.fail_all(self.not_leader())

    def apply(self, entry: Entry) -> Applied:
        """Run the state machine; the runtime writes the effects, then calls `applied`."""
        return self.machine.apply(self.view, entry)

    def committed(self, entries: Iterable[Entry]) -> None:
        """Entries are about to be applied."""
        now_s = self._now()
        for entry in entries:
            placed = self._placed.get(entry.index)
            if placed is not None:
                placed.times.committed_s = now_s

    def applied(self, entry: Entry, done: Applied) -> None:
        """The effects of an entry are written: answer those who wait for it."""
        self.applied_index = entry.index
        self._changes.applied(entry.index, entry.term, self.not_leader)
        placed = self._placed.pop(entry.index, None)
        if placed is not None:
            waiters, placed.times.applied_s = placed.waiters, self._now()
            if placed.term == entry.term:
                # When it was appended this log held all that was committed: a leader of a higher
                # term would have needed a voter of those that took it in this term afterwards.
                self._indexes.current_s = max(self._indexes.current_s, waiters[0].since_s)
                for waiting, reply in zip(waiters, done.replies, strict=True):
                    if not waiting.done.done():
                        waiting.done.set_result(Committed(reply, entry.index, placed.times))
            else:
                for waiting in waiters:
                    waiting.fail(self.not_leader())
        self._indexes.applied(self.applied_index)
        for waiter in self._applies:
            if not waiter.done():
                waiter.set_result(None)
        for listener in tuple(self._listeners):
            listener(done.effects)

    def restored(self, view: View, index: int) -> None:
        """A snapshot took the place of state and log: what became of open proposals up to it cannot
        be told here.
        """
        self.view, self.applied_index = view, index
        for placed in [placed for placed in self._placed if placed <= index]:
            for waiting in self._placed.pop(placed).waiters:
                waiting.fail(self._commit_unknown("a snapshot was installed meanwhile"))
        self._indexes.applied(self.applied_index)
        for waiter in self._applies:
            if not waiter.done():
                waiter.set_result(None)

    def stop(self, reason: str) -> None:
        """Answer everybody who waits; nothing more is taken."""
        self._stopped = reason
        self._disks.lost()
        self._queue.fail_all(errors.ShuttingDownError(reason))
        unknown = [placed.waiters for placed in self._placed.values()]
        for waiters in [*unknown, *self._proposed.values()]:
            for waiting in waiters:
                waiting.fail(errors.CommitUnknownError(reason))
        self._placed.clear()
        self._proposed.clear()
        self._changes.stop(errors.CommitUnknownError(reason))
        self._indexes.stop(errors.ShuttingDownError(reason))


def _ms(age_s: float) -> int:
    """Rounded up: an age is at most so much."""
    return math.ceil(min(max(age_s, 0.0), 2**31) * 1000)


def _look(done: asyncio.Future[Any]) -> None:
    """At an error that nobody else looks at."""
    if not done.cancelled():
        done.exception()

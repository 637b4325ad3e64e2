"""One replica of one shard, between gRPC handlers and the runtime: propose() and read().

Generic over a StateMachine. Everything runs on the node's event loop: a handler awaits, the runtime
takes what waits (`next_entry`), and later tells what became of it (`placed`, `applied`, ...). No
lock is needed, and between two awaits a view does not change.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mailraft.node.interfaces import (
    Applied,
    Effect,
    Entry,
    EntryKind,
    GroupId,
    Proposal,
    ReplicaId,
    StateMachine,
    View,
    node_of,
)
from mailraft.v1 import common_pb2, error_pb2
from mailraft.wire import errors

# Proposals that wait for the next entry; past it callers are told to come back (OVERLOADED).
QUEUE_COMMANDS_MAX = 8_192
QUEUE_BYTES_MAX = 64 * 1024 * 1024
# One entry: what arrives during one flush, up to this (docs/consensus.md, order of a turn).
ENTRY_COMMANDS_MAX = 256
ENTRY_BYTES_MAX = 4 * 1024 * 1024
# Entries that have a place in the log and are not applied yet.
ENTRIES_IN_FLIGHT_MAX = 64
# Questions for a read index that are open; reads that come meanwhile share the next.
READ_INDEXES_IN_FLIGHT_MAX = 2


@dataclass(frozen=True, slots=True)
class Committed:
    """A command's answer, and where in the log it stands."""

    reply: object
    index: int


@dataclass(frozen=True, slots=True)
class ReadPoint:
    """A view that holds what the level asked for; valid until the caller next awaits."""

    view: View
    index: int
    age_ms: int
    consistency_met: common_pb2.Consistency.ValueType


Listener = Callable[[tuple[Effect, ...]], None]


@dataclass(slots=True)
class _Waiting:
    proposal: Proposal
    done: asyncio.Future[Committed]


@dataclass(frozen=True, slots=True)
class NextEntry:
    """One entry to propose. `token` names it in the host's outcomes."""

    token: int
    kind: EntryKind
    payload: bytes
    bodies: tuple[bytes, ...]


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
        heard: Callable[[], float],
    ) -> None:
        self.group, self.replica = group, replica
        self.machine, self.view = machine, view
        self.applied_index = applied_index
        self.leadership = Leadership()
        self._wake, self._now, self._heard = wake, now, heard
        self._queue: deque[_Waiting] = deque()
        self._queue_bytes = 0
        self._proposed: dict[int, list[_Waiting]] = {}  # by token, place in the log unknown yet
        self._placed: dict[int, tuple[int, int, list[_Waiting]]] = {}  # index -> term, token, who
        self._token = 0
        self._applies: set[asyncio.Future[None]] = set()
        self._listeners: list[Listener] = []
        self._stopped: str | None = None
        self._readers: list[asyncio.Future[None]] = []  # no index asked for yet
        self._indexing: dict[int, list[asyncio.Future[None]]] = {}  # by token, no index known yet
        self._indexed: list[tuple[int, list[asyncio.Future[None]]]] = []  # not applied yet

    # ---- for handlers ----------------------------------------------------------------------------

    async def propose(
        self, command: object, bodies: Iterable[bytes] = (), *, deadline_s: float
    ) -> Committed:
        """Have a command committed and applied here; deadline_s is on the node's clock.

        Raises NotLeaderError (nothing was written), OverloadedError (nothing was written),
        CommitUnknownError (retry by request_id), ShuttingDownError.
        """
        waiting = self._enqueue(Proposal(command, tuple(bodies)))
        return await self._outcome(waiting, deadline_s)

    async def read(
        self, consistency: common_pb2.Consistency.ValueType, *, deadline_s: float
    ) -> ReadPoint:
        """A view that keeps the promise of a level (docs/guarantees.md).

        LINEARIZABLE asks a quorum for an index, on a follower through its leader, and waits until
        that is applied here; reads that wait share the question. SESSION and LOCAL read what is
        applied here; the caller checks min_state and waits with `wait_applied`.

        Raises NotLeaderError and NoLeaderError (leadership changed, or nobody leads),
        QuorumUnavailableError (not in time), ShuttingDownError.
        """
        self._check_running()
        if consistency == common_pb2.CONSISTENCY_LINEARIZABLE:
            await self._pass_index(deadline_s)
        return ReadPoint(self.view, self.applied_index, self.age_ms(), consistency)

    async def wait_applied(self, *, deadline_s: float) -> bool:
        """Wait until another entry is applied here; False when the deadline passed first."""
        self._check_running()
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
    def commands_waiting(self) -> int:
        """Commands that have no entry yet."""
        return len(self._queue)

    def age_ms(self) -> int:
        """How old this replica's data may be: 0 on the leader, else since the leader was heard."""
        if self.leadership.leading:
            return 0
        age_s = self._now() - self._heard()
        return int(min(age_s, 2**31) * 1000)

    def not_leader(self) -> errors.MailraftError:
        """What a call is refused with that needs the leader, and this replica does not lead."""
        leader, term = self.leadership.leader, self.leadership.term
        if not leader or leader == self.replica:
            return errors.NoLeaderError(f"shard {self.group} has no leader now")
        return errors.NotLeaderError(
            f"replica {self.replica} of shard {self.group} does not lead",
            detail=error_pb2.NotLeader(
                shard=self.group,
                term=term,
                leader_replica_id=leader,
                leader_node_id=node_of(leader),
            ),
        )

    # ---- inside ----------------------------------------------------------------------------------

    def _check_running(self) -> None:
        if self._stopped is not None:
            raise errors.ShuttingDownError(self._stopped)

    def _enqueue(self, proposal: Proposal) -> _Waiting:
        self._check_running()
        if not self.leadership.leading:
            raise self.not_leader()
        if (
            len(self._queue) >= QUEUE_COMMANDS_MAX
            or self._queue_bytes + proposal.size_bytes > QUEUE_BYTES_MAX
        ):
            raise errors.OverloadedError(
                f"shard {self.group} has {len(self._queue)} commands waiting"
            )
        waiting = _Waiting(proposal, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._queue_bytes += proposal.size_bytes
        self._wake()
        return waiting

    async def _outcome(self, waiting: _Waiting, deadline_s: float) -> Committed:
        try:
            return await asyncio.wait_for(waiting.done, max(0.0, deadline_s - self._now()))
        except TimeoutError:
            # Row 20: it may still be committed; only the request_id can tell.
            raise self._commit_unknown("it did not commit in time") from None

    def _commit_unknown(self, why: str) -> errors.MailraftError:
        return errors.CommitUnknownError(
            f"shard {self.group}: {why}", detail=error_pb2.CommitUnknown(shard=self.group)
        )

    async def _pass_index(self, deadline_s: float) -> None:
        if not self.leadership.leader:
            raise self.not_leader()
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._readers.append(done)
        self._wake()
        try:
            await asyncio.wait_for(done, max(0.0, deadline_s - self._now()))
        except TimeoutError:
            raise errors.QuorumUnavailableError(
                f"shard {self.group} found no quorum to order the read",
                detail=error_pb2.QuorumUnavailable(shard=self.group),
            ) from None

    # ---- for the runtime -------------------------------------------------------------------------

    def next_read(self) -> int | None:
        """A token to ask a read index under, for all reads that wait; None when none does."""
        waiting = [done for done in self._readers if not done.done()]
        if not waiting or len(self._indexing) >= READ_INDEXES_IN_FLIGHT_MAX:
            return None
        self._readers = []
        self._token += 1
        self._indexing[self._token] = waiting
        return self._token

    def read_ready(self, token: int, index: int) -> None:
        """Once `index` is applied, the reads of a token may see the state."""
        self._indexed.append((index, self._indexing.pop(token)))
        self._release_readers()

    def read_refused(self, token: int) -> None:
        """Leadership changed, or nobody leads: the callers may ask again."""
        for done in self._indexing.pop(token, []):
            if not done.done():
                done.set_exception(self.not_leader())

    def _release_readers(self) -> None:
        waiting, self._indexed = self._indexed, []
        for index, readers in waiting:
            if index > self.applied_index:
                self._indexed.append((index, readers))
                continue
            for done in readers:
                if not done.done():
                    done.set_result(None)

    def next_entry(self) -> NextEntry | None:
        """What waits, as one entry (bounded); None when nothing does, or too much is open."""
        in_flight = len(self._proposed) + len(self._placed)
        if not self._queue or in_flight >= ENTRIES_IN_FLIGHT_MAX:
            return None
        taken: list[_Waiting] = []
        size_bytes = 0
        while self._queue and len(taken) < ENTRY_COMMANDS_MAX:
            size_bytes += self._queue[0].proposal.size_bytes
            if taken and size_bytes > ENTRY_BYTES_MAX:
                break
            waiting = self._queue.popleft()
            self._queue_bytes -= waiting.proposal.size_bytes
            if not waiting.done.done():  # else its caller gave up: never proposed, nothing to undo
                taken.append(waiting)
        if not taken:
            return None
        payload, bodies = self.machine.encode([waiting.proposal for waiting in taken])
        self._token += 1
        self._proposed[self._token] = taken
        return NextEntry(self._token, EntryKind.COMMAND, payload, bodies)

    def placed(self, token: int, index: int, term: int) -> None:
        """A proposal has a place in the log."""
        self._placed[index] = (term, token, self._proposed.pop(token))

    def rejected(self, token: int) -> None:
        """A proposal was appended nowhere."""
        for waiting in self._proposed.pop(token, []):
            _fail(waiting, self.not_leader())

    def discarded(self, token: int) -> None:
        """Another entry was committed in a proposal's place: its callers may safely ask again."""
        for index, (_, placed_token, waiters) in list(self._placed.items()):
            if placed_token == token:
                del self._placed[index]
                for waiting in waiters:
                    _fail(waiting, self.not_leader())

    def lead(self, leadership: Leadership) -> None:
        """Leadership changed. What was not proposed yet goes back to its callers."""
        self.leadership = leadership
        if not leadership.leading:
            while self._queue:
                _fail(self._queue.popleft(), self.not_leader())
            self._queue_bytes = 0

    def apply(self, entry: Entry) -> Applied:
        """Run the state machine; the runtime writes the effects, then calls `applied`."""
        return self.machine.apply(self.view, entry)

    def applied(self, entry: Entry, done: Applied) -> None:
        """The effects of an entry are written: answer those who wait for it."""
        self.applied_index = entry.index
        placed = self._placed.pop(entry.index, None)
        if placed is not None:
            term, _, waiters = placed
            if term == entry.term:
                for waiting, reply in zip(waiters, done.replies, strict=True):
                    if not waiting.done.done():
                        waiting.done.set_result(Committed(reply, entry.index))
            else:
                for waiting in waiters:
                    _fail(waiting, self.not_leader())
        self._release_readers()
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
            _, _, waiters = self._placed.pop(placed)
            for waiting in waiters:
                _fail(waiting, self._commit_unknown("a snapshot was installed meanwhile"))
        self._release_readers()
        for waiter in self._applies:
            if not waiter.done():
                waiter.set_result(None)

    def stop(self, reason: str) -> None:
        """Answer everybody who waits; nothing more is taken."""
        self._stopped = reason
        for waiting in self._queue:
            _fail(waiting, errors.ShuttingDownError(reason))
        self._queue.clear()
        unknown = [waiters for _, _, waiters in self._placed.values()]
        for waiters in [*unknown, *self._proposed.values()]:
            for waiting in waiters:
                _fail(waiting, errors.CommitUnknownError(reason))
        self._placed.clear()
        self._proposed.clear()
        indexed = [readers for _, readers in self._indexed]
        for readers in (self._readers, *self._indexing.values(), *indexed):
            for done in readers:
                if not done.done():
                    done.set_exception(errors.ShuttingDownError(reason))
        self._readers, self._indexing, self._indexed = [], {}, []


def _fail(waiting: _Waiting, error: errors.MailraftError) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(error)

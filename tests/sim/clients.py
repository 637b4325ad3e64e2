"""Clients of a simulated cluster: they ask, wait, retry at another node, and give up at last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.sim.world import SimNode, World

from mailraft.node.consensus.messages import (
    Appended,
    ChangeRefused,
    Discarded,
    Outcome,
    Propose,
    ReadIndex,
    ReadReady,
    ReadRefused,
    Rejected,
)
from mailraft.node.interfaces import Entry, EntryKind

ATTEMPT_S = (0.3, 1.5)  # how long one attempt waits for its answer
PAUSE_S = (0.02, 0.2)  # ... and how long until the next
GIVE_UP_S = 8.0
FOLLOWER_READS = 0.4
UNKNOWN = float("inf")


@dataclass(slots=True)
class Operation:
    """One client call: what was asked, when, and what came of it (no end: it may have happened)."""

    number: int
    group: int
    account: bytes
    value: bytes | None  # None: a linearizable read
    invoked: float
    completed: float = UNKNOWN
    index: int = 0  # where the append stands; for a read, up to where it saw
    seen: bytes = b""
    attempts: int = 0
    at: int = 0  # the node of the last attempt


@dataclass(slots=True)
class _Open:
    """What one node owes its callers."""

    waiting: dict[int, Operation] = field(default_factory=dict)  # token -> operation
    placed: dict[tuple[int, int], tuple[int, Operation]] = field(default_factory=dict)
    reading: list[tuple[int, int, Operation]] = field(default_factory=list)  # group, index


class SimClients:
    """`count` clients, each with one operation at a time, until `stop_s`."""

    def __init__(
        self,
        world: World,
        *,
        count: int,
        accounts: Sequence[bytes],
        stop_s: float,
        reads: float = 0.3,
        think_s: float = 0.04,
    ) -> None:
        self.world, self.accounts, self.stop_s = world, accounts, stop_s
        self.reads, self.think_s = reads, think_s
        self.operations: list[Operation] = []
        self._tokens = 0
        self._open: dict[int, _Open] = {number: _Open() for number in world.nodes}
        world.clients = self
        for _ in range(count):
            world.after(1.0 + self._pause(), self._next)

    def _pause(self) -> float:
        return self.world.chance.expovariate(1 / self.think_s)

    def _next(self) -> None:
        if self.world.now > self.stop_s:
            return
        chance = self.world.chance
        value = None if chance.random() < self.reads else b"v%d" % len(self.operations)
        group = chance.choice(list(self.world.groups))
        self.begin(group, chance.choice(list(self.accounts)), value)

    # ---- one operation ---------------------------------------------------------------------------

    def begin(self, group: int, account: bytes, value: bytes | None) -> Operation:
        operation = Operation(len(self.operations), group, account, value, self.world.now)
        self.operations.append(operation)
        self._attempt(operation)
        return operation

    def _attempt(self, operation: Operation) -> None:
        world = self.world
        if operation.index or world.now > max(operation.invoked + GIVE_UP_S, self.stop_s):
            return
        operation.attempts += 1
        attempt = operation.attempts
        operation.at = self._choose(operation)
        world.after(world.chance.uniform(*ATTEMPT_S), lambda: self._again(operation, attempt))
        self._tokens += 1
        self._open[operation.at].waiting[self._tokens] = operation
        if operation.value is None:
            world.give(operation.at, ReadIndex(operation.group, self._tokens))
        else:
            payload = operation.account + b":" + operation.value
            world.give(
                operation.at,
                Propose(operation.group, self._tokens, EntryKind.COMMAND, payload),
            )

    def _choose(self, operation: Operation) -> int:
        """The leader by what was last heard; now and then, and for some reads, anybody."""
        world = self.world
        anybody = world.chance.choice(sorted(world.nodes))
        lost = FOLLOWER_READS if operation.value is None else 0.1
        if operation.attempts % 3 == 0 or world.chance.random() < lost:
            return anybody
        return world.leader(operation.group) or anybody

    def _again(self, operation: Operation, attempt: int) -> None:
        """Refused, or nothing was heard: the same value again, as a retry by request_id."""
        if operation.attempts != attempt or operation.index:
            return
        if self.world.now > max(operation.invoked + GIVE_UP_S, self.stop_s):
            self._finish()
        else:
            self._attempt(operation)

    def _finish(self) -> None:
        self.world.after(self._pause(), self._next)

    def _complete(self, operation: Operation, index: int, seen: bytes = b"") -> None:
        if operation.index:
            return  # an earlier attempt was answered already
        operation.completed, operation.index, operation.seen = self.world.now, index, seen
        self._finish()

    # ---- what nodes tell -------------------------------------------------------------------------

    def outcome(self, node: SimNode, outcome: Outcome) -> None:
        here = self._open[node.number]
        operation = here.waiting.get(outcome.token)
        if operation is None:
            return
        match outcome:
            case Appended(_, group, index, term):
                here.placed[group, index] = (term, operation)
            case ReadReady(token, group, index):
                del here.waiting[token]
                here.reading.append((group, index, operation))
                self._serve_reads(node, group)
            case Rejected() | Discarded() | ReadRefused() | ChangeRefused():
                attempt = operation.attempts
                pause_s = self.world.chance.uniform(*PAUSE_S)
                self.world.after(pause_s, lambda: self._again(operation, attempt))

    def applied(self, node: SimNode, group: int, entry: Entry, value: int) -> None:
        placed = self._open[node.number].placed.pop((group, entry.index), None)
        if placed is not None and placed[0] == entry.term:
            self._complete(placed[1], value)
        self._serve_reads(node, group)

    def crashed(self, node: SimNode) -> None:
        self._open[node.number] = _Open()

    def _serve_reads(self, node: SimNode, group: int) -> None:
        here = self._open[node.number]
        applied_index = node.disk.applied(group)[0]
        waiting, here.reading = here.reading, []
        for of, index, operation in waiting:
            if of == group and index <= applied_index:
                seen = node.disk.view(group).get(operation.account) or b""
                self._complete(operation, applied_index, seen)
            else:
                here.reading.append((of, index, operation))

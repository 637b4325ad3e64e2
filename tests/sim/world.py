"""A cluster in one process, one thread and one seed: faked clock, network and disks around the code
that runs in production (Host, Store). Same seed, same history, in any process.

A world is a heap of things to come. Nodes run Host over a SimDisk; the state machine keeps, per
account, the list of values appended to it, so that loss, doubling and disorder all show.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from tests.sim.disk import SimDisk

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.host import Host
from mailraft.node.consensus.messages import (
    Appended,
    AppliedUpTo,
    Discarded,
    Event,
    PeerDown,
    PeerUp,
    Propose,
    Ready,
    Received,
    Rejected,
)
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.consensus.settings import Settings
from mailraft.node.interfaces import (
    ApplyWrite,
    Configuration,
    Entry,
    EntryKind,
    Put,
    replica_id,
)

READ = b"?"  # payloads are b"<account>:<value>", or b"<account>:?" for a read


class PropertyError(AssertionError):
    """A promise of Raft or of the store does not hold; the first word names the property."""


@dataclass(slots=True)
class Operation:
    """One client call: what was asked, when, and what came of it (no end: it may have happened)."""

    number: int
    group: int
    account: bytes
    value: bytes
    invoked: float
    completed: float = float("inf")
    index: int = 0
    seen: bytes | None = None  # a read's answer
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """Chances and times of one message; a partition is a set of directed pairs that are cut."""

    delay_min_s: float = 0.001
    delay_max_s: float = 0.01
    drop: float = 0.0
    duplicate: float = 0.0
    slow: float = 0.0  # chance of a delay up to slow_s, so also of reordering
    slow_s: float = 1.0


@dataclass(slots=True)
class SimNode:
    number: int
    disk: SimDisk
    host: Host | None = None
    inbox: list[Event] = field(default_factory=list)
    durable: int = 0
    flushing: bool = False
    flush_wanted: int = 0
    life: int = 0  # rises at each crash: what belongs to an earlier life is void
    waiting: dict[int, Operation] = field(default_factory=dict)  # token -> operation
    placed: dict[tuple[int, int], tuple[int, Operation]] = field(default_factory=dict)
    step_due: bool = False


class World:
    def __init__(
        self,
        seed: int,
        *,
        nodes: int = 3,
        groups: int = 1,
        network: Network | None = None,
        mutants: Mutant = Mutant.NONE,
        settings: Settings | None = None,
        flush_s: tuple[float, float] = (0.0005, 0.01),
    ) -> None:
        self.seed, self.chance = seed, Random(seed)
        self.network, self.mutants = network or Network(), mutants
        self.settings = settings or Settings()
        self.flush_s = flush_s
        self.now = 0.0
        self.log: list[str] = []
        self.operations: list[Operation] = []
        self.cut: set[tuple[int, int]] = set()
        self.power_cuts = 0
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._sessions: dict[tuple[int, int], int] = {}
        self._linked: set[tuple[int, int]] = set()
        self._leaders: dict[tuple[int, int], int] = {}  # (group, term) -> node
        self._applied: dict[tuple[int, int], tuple[int, bytes]] = {}  # (group, index) -> what
        self._tokens = 0
        self.groups = range(1, groups + 1)
        self.configuration = Configuration(
            1, tuple(replica_id(number, 1) for number in range(1, nodes + 1))
        )
        self.nodes = {
            number: SimNode(number, SimDisk(node=number)) for number in range(1, nodes + 1)
        }
        for node in self.nodes.values():
            for group in self.groups:
                node.disk.create_group(group, replica_id(node.number, 1), self.configuration)
        for number in self.nodes:
            self.start(number)

    # ---- time -------------------------------------------------------------------------------------

    def after(self, delay_s: float, do: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._coming, (self.now + delay_s, self._order, do))

    def run(self, for_s: float) -> None:
        until = self.now + for_s
        while self._coming and self._coming[0][0] <= until:
            self.now, _, do = heapq.heappop(self._coming)
            do()
        self.now = until

    def run_until(self, condition: Callable[[], bool], within_s: float, why: str) -> None:
        """Raises PropertyError("progress ...") when the condition does not come true in time."""
        until = self.now + within_s
        while not condition():
            if not self._coming or self._coming[0][0] > until:
                raise PropertyError(f"progress: {why} within {within_s} s")
            self.now, _, do = heapq.heappop(self._coming)
            do()

    def note(self, text: str) -> None:
        self.log.append(f"{self.now:9.4f} {text}")

    # ---- nodes ------------------------------------------------------------------------------------

    def start(self, number: int) -> None:
        node = self.nodes[number]
        if node.host is not None:
            return
        node.life += 1
        node.host = Host(
            number, seed=self.chance.getrandbits(64), settings=self.settings, mutants=self.mutants
        )
        node.inbox, node.durable, node.flushing, node.flush_wanted = [], 0, False, 0
        node.waiting, node.placed, node.step_due = {}, {}, False
        for group in self.groups:
            node.host.add_group(self.now, group, node.disk.load(group), node.disk.log(group))
        self.note(f"n{number} starts")
        self._relink()
        self._tick(number, node.life)

    def crash(self, number: int) -> None:
        """Kill -9 and power loss in one: what was not flushed is gone, but for what the kernel wrote."""
        node = self.nodes[number]
        if node.host is None:
            return
        node.host = None
        node.life += 1
        survive = self.chance.choice((0, self.chance.randint(0, node.disk.unflushed_bytes)))
        self.note(
            f"n{number} loses power ({node.disk.unflushed_bytes} unflushed, {survive} survive)"
        )
        node.disk.crash(survive_bytes=survive)
        self.power_cuts += 1
        self._relink()

    def partition(self, *sides: set[int]) -> None:
        """Nodes of different sides hear nothing of each other."""
        side_of = {number: i for i, side in enumerate(sides) for number in side}
        self.cut_links(
            {(a, b) for a in self.nodes for b in self.nodes if side_of.get(a) != side_of.get(b)}
        )

    def cut_links(self, links: set[tuple[int, int]]) -> None:
        self.cut = links
        self.note(f"cut {sorted(links)}" if links else "network heals")
        self._relink()

    def _relink(self) -> None:
        """Tell hosts which streams are up; a stream that comes back has a new session."""
        for a in self.nodes:
            for b in self.nodes:
                alive = self.nodes[a].host is not None and self.nodes[b].host is not None
                up = alive and a != b and (a, b) not in self.cut
                link = (a, b)
                if up and link not in self._linked:
                    self._linked.add(link)
                    self._sessions[link] = self._sessions.get(link, 0) + 1
                    self._give(a, PeerUp(b))
                elif not up and link in self._linked:
                    self._linked.discard(link)
                    self._give(a, PeerDown(b))

    def _tick(self, number: int, life: int) -> None:
        node = self.nodes[number]
        if node.life != life or node.host is None:
            return
        self._step(node)
        self.after(self.settings.tick_s, lambda: self._tick(number, life))

    def _give(self, number: int, event: Event) -> None:
        node = self.nodes[number]
        if node.host is None:
            return
        node.inbox.append(event)
        if not node.step_due:
            node.step_due = True
            life = node.life
            self.after(0.0002, lambda: self._due(node, life))

    def _due(self, node: SimNode, life: int) -> None:
        if node.life == life and node.host is not None:
            self._step(node)

    def _step(self, node: SimNode) -> None:
        assert node.host is not None
        node.step_due = False
        inbox, node.inbox = node.inbox, []
        ready = node.host.step(self.now, inbox, node.durable)
        if ready.stopped:
            raise PropertyError(f"replica stopped itself: {ready.stopped[0].reason}")
        self._watch_leaders(node, ready)
        if ready.writes:
            node.disk.write(ready.writes)
            node.flush_wanted = ready.sequence
        self._begin_flush(node)
        for peer, frame in ready.messages:
            self._send(node.number, peer, frame)
        self._take_outcomes(node, ready)
        for committed in ready.committed:
            for entry in committed.entries:
                self._apply(node, committed.group, entry)
            self._give(node.number, AppliedUpTo(committed.group, committed.entries[-1].index))

    def _begin_flush(self, node: SimNode) -> None:
        if node.flushing or node.durable >= node.flush_wanted:
            return
        node.flushing = True
        covers, upto, life = node.flush_wanted, node.disk.sequence, node.life

        def done() -> None:
            if node.life != life or node.host is None:
                return
            node.disk.flush(upto)
            node.flushing, node.durable = False, covers
            self._step(node)

        self.after(self.chance.uniform(*self.flush_s), done)

    def _send(self, a: int, b: int, frame: raft_pb2.ExchangeRequest) -> None:
        session = self._sessions.get((a, b), 0)
        copies = 2 if self.chance.random() < self.network.duplicate else 1
        data = frame.SerializeToString()  # what arrives is a copy, as through a socket
        for _ in range(copies):
            if (a, b) in self.cut or self.chance.random() < self.network.drop:
                continue
            delay_s = self.chance.uniform(self.network.delay_min_s, self.network.delay_max_s)
            if self.chance.random() < self.network.slow:
                delay_s += self.chance.random() * self.network.slow_s
            life = self.nodes[b].life
            self.after(delay_s, lambda: self._arrive(a, b, session, life, data))

    def _arrive(self, a: int, b: int, session: int, life: int, data: bytes) -> None:
        if self.nodes[b].life == life and (a, b) not in self.cut:
            frame = raft_pb2.ExchangeRequest.FromString(data)
            self._give(b, Received(a, session, frame))

    # ---- the state machine ------------------------------------------------------------------------

    def _apply(self, node: SimNode, group: int, entry: Entry) -> None:
        what = (entry.term, entry.payload)
        first = self._applied.setdefault((group, entry.index), what)
        if first != what:
            raise PropertyError(
                f"state machine safety: index {entry.index} of group {group} is {first} and {what}"
            )
        effects: tuple[Put, ...] = ()
        before = b""
        account = b""
        if entry.kind == EntryKind.COMMAND:
            account, value = entry.payload.split(b":", 1)
            before = node.disk.view(group).get(account) or b""
            if value != READ:
                effects = (Put(account, before + value + b","),)
        node.disk.write([ApplyWrite(group, entry.index, entry.term, effects)])
        waiting = node.placed.pop((group, entry.index), None)
        if waiting is None:
            return
        term, operation = waiting
        if term == entry.term:
            operation.completed, operation.index = self.now, entry.index
            if operation.value == READ:
                operation.seen = before
        else:
            operation.refused = True

    # ---- clients ----------------------------------------------------------------------------------

    def call(
        self, group: int, account: bytes, value: bytes, number: int | None = None
    ) -> Operation:
        """Ask a node (the one that says it leads, or any) for one append or read."""
        operation = Operation(len(self.operations), group, account, value, self.now)
        self.operations.append(operation)
        target = number or self.leader(group) or self.chance.choice(sorted(self.nodes))
        node = self.nodes[target]
        if node.host is None:
            operation.refused = True
            return operation
        self._tokens += 1
        node.waiting[self._tokens] = operation
        payload = account + b":" + value
        self._give(target, Propose(group, self._tokens, EntryKind.COMMAND, payload))
        return operation

    def leader(self, group: int) -> int | None:
        leading = [
            (status.term, number)
            for number, node in self.nodes.items()
            if node.host is not None
            and (status := node.host.status(group)) is not None
            and status.leading
        ]
        return max(leading)[1] if leading else None

    def _take_outcomes(self, node: SimNode, ready: Ready) -> None:
        for outcome in ready.outcomes:
            operation = node.waiting.get(outcome.token)
            if operation is None:
                continue
            match outcome:
                case Appended(_, group, index, term):
                    node.placed[(group, index)] = (term, operation)
                case Rejected() | Discarded():
                    operation.refused = True

    # ---- what is watched all the time -----------------------------------------------------------------

    def _watch_leaders(self, node: SimNode, ready: Ready) -> None:
        for status in ready.changed:
            if not status.leading:
                continue
            key = (status.group, status.term)
            first = self._leaders.setdefault(key, node.number)
            if first != node.number:
                raise PropertyError(
                    f"election safety: n{first} and n{node.number} lead group {status.group} "
                    f"in term {status.term}"
                )
            self.note(f"n{node.number} leads group {status.group} in term {status.term}")

    def applied_entries(self, group: int) -> Iterator[tuple[int, bytes]]:
        for (of, index), (_, payload) in sorted(self._applied.items()):
            if of == group:
                yield index, payload

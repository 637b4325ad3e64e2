"""A cluster in one process, one thread and one seed: faked clock, network and disks around the code
that runs in production (Host, Store). Same seed, same history, in any process.

A world is a heap of things to come. Nodes run Host over a SimDisk; the state machine keeps, per
account, the list of values appended to it, so that loss, doubling and disorder all show.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from tests.sim.disk import SimDisk
from tests.sim.snapshots import Snapshots
from tests.sim.transcript import describe
from tests.sim.watch import PropertyError, Watch

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.host import Host
from mailraft.node.consensus.messages import (
    AppliedUpTo,
    ChangeConfiguration,
    Event,
    Outcome,
    PeerDown,
    PeerUp,
    Ready,
    Received,
    Transfer,
)
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.consensus.settings import Settings
from mailraft.node.interfaces import (
    ApplyWrite,
    Configuration,
    Entry,
    EntryKind,
    Put,
    node_of,
    replica_id,
)

# What says that a term was adopted: after any of these a power cut must not lower it.
_REVEALING = frozenset({"append_reply", "confirm_reply"})
# A node that lost its power says nothing: its peers' streams break when keepalive gives up.
KEEPALIVE_S = 1.0
RECONNECT_S = 0.05


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
    step_due: bool = False
    wakes_s: float = math.inf  # when a turn comes that was asked for before the next tick
    stopped: bool = False  # SIGSTOP: nothing runs, messages pile up
    clock_rate: float = 1.0
    clock_ahead_s: float = 0.0


class Clients(Protocol):
    """Who hears of outcomes and of applied entries."""

    def outcome(self, node: SimNode, outcome: Outcome) -> None: ...

    def applied(self, node: SimNode, group: int, entry: Entry, value: int) -> None: ...

    def crashed(self, node: SimNode) -> None: ...


class World:
    """Nodes 1..n, each with a replica of groups 1..m, and `spares` whose replicas are no members
    yet. `after` and `run` are its clock.
    """

    def __init__(
        self,
        seed: int,
        *,
        nodes: int = 3,
        spares: int = 0,
        groups: int = 1,
        network: Network | None = None,
        mutants: Mutant = Mutant.NONE,
        settings: Settings | None = None,
        flush_s: tuple[float, float] = (0.0005, 0.01),
        clock_skew: float = 0.0,
    ) -> None:
        self.seed, self.chance = seed, Random(seed)
        self.network, self.mutants = network or Network(), mutants
        self.settings = settings or Settings()
        self.flush_s = flush_s
        self.now = 0.0
        self.log: list[str] = []
        self.trace = False  # every message into the log
        self.watch = Watch()
        self.snapshots = Snapshots(self)
        self.clients: Clients | None = None
        self.cut: set[tuple[int, int]] = set()
        self.power_cuts = 0
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._sessions: dict[tuple[int, int], int] = {}
        self._linked: set[tuple[int, int]] = set()
        self._broken: set[tuple[int, int]] = set()  # to be opened again at once
        self._unnoticed: set[int] = set()  # dead, and nobody knows
        self.groups = range(1, groups + 1)
        birth = Configuration(1, tuple(replica_id(number, 1) for number in range(1, nodes + 1)))
        alone = Configuration(0, ())
        self.nodes = {
            number: SimNode(number, SimDisk(node=number)) for number in range(1, nodes + spares + 1)
        }
        for node in self.nodes.values():
            node.clock_rate = 1 + self.chance.uniform(-clock_skew, clock_skew)
            node.clock_ahead_s = self.chance.uniform(0, 1000 * clock_skew)
            for group in self.groups:
                configuration = birth if node.number <= nodes else alone
                node.disk.create_group(group, replica_id(node.number, 1), configuration)
        for number in self.nodes:
            self.start(number)

    # ---- time ------------------------------------------------------------------------------------

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

    # ---- nodes -----------------------------------------------------------------------------------

    def start(self, number: int) -> None:
        node = self.nodes[number]
        if node.host is not None:
            return
        self._notice(number)
        node.life += 1
        node.host = Host(
            number, seed=self.chance.getrandbits(64), settings=self.settings, mutants=self.mutants
        )
        node.inbox, node.durable, node.flushing, node.flush_wanted = [], 0, False, 0
        node.step_due = node.stopped = False
        node.wakes_s = math.inf
        for group in self.groups:
            stored = node.disk.load(group)
            node.host.add_group(self._clock(node), group, stored, node.disk.log(group))
            self.watch.restarts(group, number, stored.hard_state.term)
        self.note(f"n{number} starts")
        self._relink()
        self._tick(number, node.life)

    def crash(self, number: int, *, unnoticed: bool = False) -> None:
        """Kill -9 and power loss in one: only what was flushed stays, and what the kernel wrote.

        `unnoticed`: its peers' streams stay open, as if no kernel were there to reset them.
        """
        node = self.nodes[number]
        if node.host is None:
            return
        node.host = None
        node.life += 1
        survive = self.chance.choice((0, self.chance.randint(0, node.disk.unflushed_bytes)))
        self.note(
            f"n{number} loses power ({node.disk.unflushed_bytes} bytes unflushed, "
            f"{survive} survive)"
        )
        node.disk.crash(survive_bytes=survive)
        self.power_cuts += 1
        if self.clients is not None:
            self.clients.crashed(node)
        if unnoticed:
            self._unnoticed.add(number)
            self.after(KEEPALIVE_S, lambda: self._notice(number))
        self._relink()

    def _notice(self, number: int) -> None:
        if number in self._unnoticed:
            self._unnoticed.discard(number)
            self._relink()

    def stop(self, number: int) -> None:
        """SIGSTOP: the node does nothing, and does not know it."""
        if self.nodes[number].host is not None and not self.nodes[number].stopped:
            self.nodes[number].stopped = True
            self.note(f"n{number} is stopped")

    def resume(self, number: int) -> None:
        node = self.nodes[number]
        if node.host is not None and node.stopped:
            node.stopped = False
            self.note(f"n{number} goes on")
            self._tick(number, node.life)

    def transfer(self, group: int, target: int) -> None:
        leader = self.leader(group)
        if leader is not None and leader != target:
            self.note(f"n{leader} is asked to hand group {group} to n{target}")
            self.give(leader, Transfer(group, replica_id(target, 1)))

    def change_members(self, group: int, draw: float) -> None:
        """Ask the leader for one change: a spare becomes a learner, a learner a voter, or a voter
        goes. Which one is drawn from `draw`, in [0, 1).
        """
        leader = self.leader(group)
        if leader is None:
            return
        now = self._configuration(self.nodes[leader], group)
        voters, learners = list(now.voters), list(now.learners)
        everyone = [replica_id(number, 1) for number in self.nodes]
        strangers = [one for one in everyone if one not in voters and one not in learners]
        steps = [("join", one) for one in strangers] + [("promote", one) for one in learners]
        if len(voters) > 1:
            steps += [("leave", one) for one in voters]
        if not steps:
            return
        what, one = steps[int(draw * len(steps))]
        self.note(f"n{leader} is asked to let n{node_of(one)} {what} group {group}")
        if what == "join":
            learners.append(one)
        elif what == "promote":
            learners.remove(one)
            voters.append(one)
        else:
            voters.remove(one)
        wanted = ChangeConfiguration(group, 0, now.version, tuple(voters), tuple(learners))
        self.give(leader, wanted)

    def members(self, group: int) -> list[int]:
        """Node numbers of voters and learners, as the leader has it; all nodes without one."""
        leader = self.leader(group)
        if leader is None:
            return sorted(self.nodes)
        now = self._configuration(self.nodes[leader], group)
        return sorted(node_of(one) for one in (*now.voters, *now.learners))

    def _clock(self, node: SimNode) -> float:
        return self.now * node.clock_rate + node.clock_ahead_s

    # ---- links -----------------------------------------------------------------------------------

    def partition(self, *sides: set[int]) -> None:
        """Nodes of different sides hear nothing of each other."""
        side_of = {number: i for i, side in enumerate(sides) for number in side}
        self.cut_links(
            {(a, b) for a in self.nodes for b in self.nodes if side_of.get(a) != side_of.get(b)}
        )

    def cut_links(self, links: set[tuple[int, int]]) -> None:
        if links == self.cut:
            return
        self.cut = links
        self.note(f"cut {_links(links)}" if links else "network heals")
        self._relink()

    def break_streams(self, number: int) -> None:
        """All streams to a node that lives break, and are opened again."""
        self.note(f"streams to n{number} break")
        streams = {(other, number) for other in self.nodes}
        self._broken |= streams
        self._relink()

        def reconnect() -> None:
            self._broken -= streams
            self._relink()

        self.after(RECONNECT_S, reconnect)

    def _relink(self) -> None:
        """Tell hosts which streams are up; a stream that comes back has a new session."""
        for a in self.nodes:
            for b in self.nodes:
                link = (a, b)
                alive = self.nodes[a].host is not None and (
                    self.nodes[b].host is not None or b in self._unnoticed
                )
                up = alive and a != b and link not in self.cut | self._broken
                if up and link not in self._linked:
                    self._linked.add(link)
                    self._sessions[link] = self._sessions.get(link, 0) + 1
                    self.give(a, PeerUp(b))
                elif not up and link in self._linked:
                    self._linked.discard(link)
                    self.give(a, PeerDown(b))

    def _send(self, a: int, b: int, frame: raft_pb2.ExchangeRequest) -> None:
        self._note_revealed(a, frame)
        session = self._sessions.get((a, b), 0)
        copies = 2 if self.chance.random() < self.network.duplicate else 1
        life = self.nodes[b].life
        data = frame.SerializeToString()  # what arrives is a copy, as through a socket
        for _ in range(copies):
            if (a, b) in self.cut or self.chance.random() < self.network.drop:
                continue
            delay_s = self.chance.uniform(self.network.delay_min_s, self.network.delay_max_s)
            if self.chance.random() < self.network.slow:
                delay_s += self.chance.random() * self.network.slow_s
            self.after(delay_s, lambda: self._arrive(a, b, session, life, data))

    def _note_revealed(self, a: int, frame: raft_pb2.ExchangeRequest) -> None:
        for envelope in frame.envelopes:
            kind = envelope.WhichOneof("body")
            if kind in _REVEALING or (
                kind in {"request_vote", "vote_reply"} and not getattr(envelope, kind).pre_vote
            ):
                self.watch.says(envelope.group, a, envelope.term)
        if self.trace:
            for line in describe(frame, groups=len(self.groups) > 1):
                self.note(line)

    def _arrive(self, a: int, b: int, session: int, life: int, data: bytes) -> None:
        if self.nodes[b].life == life and (a, b) not in self.cut:
            frame = raft_pb2.ExchangeRequest.FromString(data)
            self.give(b, Received(a, session, frame))

    # ---- turns -----------------------------------------------------------------------------------

    def _tick(self, number: int, life: int) -> None:
        node = self.nodes[number]
        if node.life != life or node.host is None or node.stopped:
            return
        self._step(node)
        self.after(self.settings.tick_s, lambda: self._tick(number, life))

    def give(self, number: int, event: Event) -> None:
        """Put an event into a node's inbox; a dead node hears nothing."""
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
            node.step_due = False
            if not node.stopped:
                self._step(node)

    def _step(self, node: SimNode) -> None:
        assert node.host is not None
        inbox, node.inbox = node.inbox, []
        ready = node.host.step(self._clock(node), inbox, node.durable)
        if ready.stopped:
            raise PropertyError(f"replica stopped itself: {ready.stopped[0].reason}")
        if ready.writes:
            node.disk.write(ready.writes)
            node.flush_wanted = ready.sequence
        self.snapshots.carry_out(node, ready)
        self._watch(node, ready)
        self._begin_flush(node)
        for peer, frame in ready.messages:
            self._send(node.number, peer, frame)
        if self.clients is not None:
            for outcome in ready.outcomes:
                self.clients.outcome(node, outcome)
        for committed in ready.committed:
            for entry in committed.entries:
                self._apply(node, committed.group, entry)
            self.give(node.number, AppliedUpTo(committed.group, committed.entries[-1].index))
        if ready.soon_s < node.wakes_s:
            node.wakes_s, life = ready.soon_s, node.life
            self.after(
                max(0.0002, ready.soon_s - self._clock(node)), lambda: self._wake(node, life)
            )

    def _wake(self, node: SimNode, life: int) -> None:
        if node.life == life and node.host is not None:
            node.wakes_s = math.inf
            if not node.stopped:
                self._step(node)

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
            if not node.stopped:
                self._step(node)

        self.after(self.chance.uniform(*self.flush_s), done)

    def _apply(self, node: SimNode, group: int, entry: Entry) -> None:
        """The state machine: a value is appended to its account once, whoever retries it."""
        self.watch.applies(group, entry)
        effects: tuple[Put, ...] = ()
        first_index = entry.index
        if entry.kind == EntryKind.COMMAND:
            account, value = entry.payload.split(b":", 1)
            view = node.disk.view(group)
            known = view.get(b"at:" + value)
            if known is None:
                before = view.get(account) or b""
                effects = (
                    Put(account, before + value + b","),
                    Put(b"at:" + value, b"%d" % entry.index),
                )
            else:
                first_index = int(known)
        node.disk.write([ApplyWrite(group, entry.index, entry.term, effects)])
        if self.clients is not None:
            self.clients.applied(node, group, entry, first_index)

    # ---- what is watched all the time ------------------------------------------------------------

    def leader(self, group: int) -> int | None:
        leading = [
            (status.term, number)
            for number, node in self.nodes.items()
            if node.host is not None
            and (status := node.host.status(group)) is not None
            and status.leading
        ]
        return max(leading)[1] if leading else None

    def _watch(self, node: SimNode, ready: Ready) -> None:
        assert node.host is not None
        for changed in ready.changed:
            if changed.leading:
                self.watch.leads(changed.group, changed.term, node.number)
                self.note(f"n{node.number} leads group {changed.group} in term {changed.term}")
        disks = {number: other.disk for number, other in self.nodes.items()}
        for group in self.groups:
            status = node.host.status(group)
            if status is None:
                continue
            if not status.leading:
                self.watch.learns(group, node.number, status.commit_index)
            else:
                term = node.disk.term(group, status.commit_index)
                self.watch.commits(
                    group,
                    node.number,
                    status.commit_index,
                    status.term if term is None else term,
                    self._configuration(node, group),
                    disks,
                )

    def _configuration(self, node: SimNode, group: int) -> Configuration:
        configuration = node.host.configuration(group) if node.host is not None else None
        return configuration or Configuration(0, ())


def _links(links: set[tuple[int, int]]) -> str:
    return " ".join(f"n{a}->n{b}" for a, b in sorted(links))

"""A hand-driven cluster for directed scenarios: nothing moves but what the scenario moves.

Every node runs the Host of production over a SimDisk. Messages wait in their links until they are
delivered, flushes until they are made (unless `flushing` says at once), and time stands still.
The transcript tells what happened, one line each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tests.sim.disk import SimDisk
from tests.sim.transcript import describe
from tests.sim.watch import PropertyError, Watch

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.host import Host
from mailraft.node.consensus.messages import (
    Appended,
    AppliedUpTo,
    ChangeConfiguration,
    Discarded,
    Event,
    GroupStatus,
    Outcome,
    PeerDown,
    PeerUp,
    Propose,
    ReadIndex,
    Ready,
    Received,
    Retire,
    SnapshotArrived,
    Transfer,
)
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.consensus.settings import Settings
from mailraft.node.engine.snapshot import SnapshotSource
from mailraft.node.interfaces import (
    AppendEntries,
    ApplyWrite,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    LogBase,
    ReplicaId,
    SaveHardState,
    node_of,
    replica_id,
)

GROUP = 1
# Nobody campaigns by itself: deadlines lie far away, and a scenario brings one forward.
# What may wait for a while is due at the next turn, since time stands still.
SETTINGS = Settings(
    election_timeout_min_s=0.5, election_timeout_max_s=1e6, commit_notice_s=0.0, read_patience_s=0.0
)
TIMEOUT_S = SETTINGS.election_timeout_min_s


class Scene:
    """Nodes 1..voters, each a voter of one group, and behind them `spares` that are no members
    yet. `logs` are the terms of the entries that they
    begin with (from index 2 on, behind the birth entry), on disk; `terms` their current ones, where
    that is not the last entry's.
    """

    def __init__(
        self,
        voters: int,
        mutants: Mutant = Mutant.NONE,
        *,
        logs: Mapping[int, Sequence[int]] = MappingProxyType({}),
        terms: Mapping[int, int] = MappingProxyType({}),
        settings: Settings = SETTINGS,
        spares: int = 0,
    ) -> None:
        self.mutants, self.settings = mutants, settings
        self.now = 100.0
        self.transcript: list[str] = []
        self.watch = Watch()
        birth = Configuration(1, tuple(_replica(n) for n in range(1, voters + 1)))
        self.birth = birth
        self.disks = {n: SimDisk(node=n) for n in range(1, voters + spares + 1)}
        self.hosts: dict[int, Host] = {}
        self.links: dict[tuple[int, int], deque[bytes]] = {}
        self.flushing = set(self.disks)  # nodes whose flushes take no time
        self.outcomes: dict[int, list[Outcome]] = {}  # by token
        self.applied: dict[int, list[Entry]] = {n: [] for n in self.disks}
        self.entry_bytes: dict[tuple[int, int], int] = {}  # sent, by link
        self.snapshots_wanted: set[tuple[int, int]] = set()  # sending node, receiving replica
        self._written: dict[int, int] = {}
        self._durable: dict[int, int] = {}
        self._tokens = 0
        for number, disk in self.disks.items():
            alone = Configuration(0, ())
            disk.create_group(GROUP, _replica(number), birth if number <= voters else alone)
            if number in logs:
                _fill(disk, logs[number], terms.get(number, logs[number][-1]))
        for number in self.disks:
            self.start(number)

    # ---- nodes -----------------------------------------------------------------------------------

    def start(self, number: int) -> None:
        host = Host(number, seed=number, settings=self.settings, mutants=self.mutants)
        stored = self.disks[number].load(GROUP)
        host.add_group(self.now, GROUP, stored, self.disks[number].log(GROUP))
        self.watch.restarts(GROUP, number, stored.hard_state.term)
        self.hosts[number] = host
        self._written[number] = self._durable[number] = 0
        for other in self.hosts:
            if other != number:
                self.links[number, other] = deque()
                self.links[other, number] = deque()
                self.step(number, PeerUp(other))
                self.step(other, PeerDown(number), PeerUp(number))

    def power_cut(self, *numbers: int) -> None:
        """What these nodes did not flush is gone, and so is what is on its way to and from them."""
        self._note(f"power cut at {_names(numbers)}")
        for number in numbers:
            self.disks[number].crash()
        for number in numbers:
            self.start(number)

    def lose_disk(self, number: int) -> None:
        """It comes back under its old name with nothing."""
        self._note(f"n{number} comes back on an empty disk")
        self.disks[number] = SimDisk(node=number)
        self.disks[number].create_group(GROUP, _replica(number), self.birth, amnesic=True)
        self.watch.forgets(GROUP, number)
        self.start(number)

    def step(self, number: int, *events: Event) -> None:
        """A turn; with `flushing`, another one whenever something became durable."""
        inbox = list(events)
        while True:
            ready = self.hosts[number].step(self.now, inbox, self._durable[number])
            inbox = self._carry_out(number, ready)
            if number in self.flushing and self._written[number] > self._durable[number]:
                self.disks[number].flush()
                self._durable[number] = self._written[number]
            elif not inbox:
                return

    def flush(self, number: int) -> None:
        self.disks[number].flush()
        self._durable[number] = self._written[number]
        self._note(f"n{number} flushes")
        self.step(number)

    def _carry_out(self, number: int, ready: Ready) -> list[Event]:
        if ready.stopped:
            raise PropertyError(f"replica stopped itself: {ready.stopped[0].reason}")
        if ready.writes:
            self.disks[number].write(ready.writes)
            self._written[number] = ready.sequence
        self._watch(number, ready)
        for peer, frame in ready.messages:
            self._post(number, peer, frame)
        self.snapshots_wanted.update((number, wanted.replica) for wanted in ready.snapshots_wanted)
        for taken in ready.snapshots_taken:
            what = "installs" if taken.installed else "does not need"
            self._note(f"n{number} {what} the snapshot at {taken.index}")
        for outcome in ready.outcomes:
            self.outcomes.setdefault(outcome.token, []).append(outcome)
        told: list[Event] = []
        for committed in ready.committed:
            for entry in committed.entries:
                self.watch.applies(GROUP, entry)
                self.applied[number].append(entry)
                self.disks[number].write([ApplyWrite(GROUP, entry.index, entry.term, ())])
            told.append(AppliedUpTo(GROUP, committed.entries[-1].index))
        return told

    def _watch(self, number: int, ready: Ready) -> None:
        for status in ready.changed:
            if status.leading:
                self.watch.leads(GROUP, status.term, number)
                self._note(f"n{number} leads in term {status.term}")
        status_now = self.status(number)
        index = status_now.commit_index
        if not status_now.leading:
            self.watch.learns(GROUP, number, index)
        else:
            term = self.disks[number].term(GROUP, index) or 0
            self.watch.commits(GROUP, number, index, term, self.configuration(number), self.disks)

    # ---- messages --------------------------------------------------------------------------------

    def _post(self, a: int, b: int, frame: raft_pb2.ExchangeRequest) -> None:
        for line in describe(frame, groups=False):
            self._note(line)
        for envelope in frame.envelopes:
            if envelope.HasField("append_entries"):
                size_bytes = sum(len(entry.payload) for entry in envelope.append_entries.entries)
                self.entry_bytes[a, b] = self.entry_bytes.get((a, b), 0) + size_bytes
        if (a, b) in self.links:
            self.links[a, b].append(frame.SerializeToString())

    def deliver(self, a: int, b: int) -> None:
        """Everything on its way from a to b, one frame a turn."""
        for _ in range(len(self.links[a, b])):
            data = self.links[a, b].popleft()
            self.step(b, Received(a, 1, raft_pb2.ExchangeRequest.FromString(data)))

    def drop(self, *nodes: int) -> None:
        """Everything on its way to or from these nodes is lost."""
        for (a, b), link in self.links.items():
            if a in nodes or b in nodes:
                link.clear()

    def drop_between(self, a: int, b: int) -> None:
        self.links[a, b].clear()
        self.links[b, a].clear()

    def take(self, a: int, b: int) -> list[bytes]:
        """Hold back what is on its way from a to b: the network may deliver it later, or twice."""
        taken = list(self.links[a, b])
        self.links[a, b].clear()
        return taken

    def put(self, a: int, b: int, frames: Iterable[bytes]) -> None:
        self.links[a, b].extend(frames)

    def settle(self, *nodes: int) -> None:
        """Deliver among these nodes (all, when none is named) until nothing is on its way."""
        among = set(nodes or self.hosts)
        for _ in range(200):
            busy = [link for link in sorted(self.links) if self.links[link] and set(link) <= among]
            if not busy:
                return
            for link in busy:
                self.deliver(*link)
        raise PropertyError("progress: the messages do not come to an end")

    # ---- what a scenario asks for ----------------------------------------------------------------

    def pass_s(self, seconds: float) -> None:
        self.now += seconds

    def campaign(self, number: int) -> None:
        """The leader is silent for an election timeout, and this node is the first to notice."""
        self.pass_s(TIMEOUT_S + 0.01)
        self.time_out(number)

    def time_out(self, number: int) -> None:
        """Only this node thinks that the leader is silent."""
        self._note(f"n{number} times out")
        host = self.hosts[number]
        host._groups[GROUP].call_election_in(-1.0)
        host._touch(host._groups[GROUP])
        self.step(number)

    def elect(self, number: int, *voters: int) -> None:
        """Make it leader with the voices of these (all, when none is named); its first entry is
        on its way then, and has arrived nowhere.
        """
        self.campaign(number)
        for _ in range(2):  # pre-votes, votes
            for a_to_b in (True, False):
                for voter in voters or set(self.hosts) - {number}:
                    self.deliver(*((number, voter) if a_to_b else (voter, number)))
                if self.status(number).leading:
                    return
        raise PropertyError(f"progress: n{number} does not win its election")

    def lose(self, number: int, *peers: int) -> None:
        """The streams of these peers to a node break; what it sends may still arrive."""
        for peer in peers:
            self._note(f"n{peer} loses its stream to n{number}")
            self.step(peer, PeerDown(number))

    def reconnect(self, number: int, *peers: int) -> None:
        """... and are open again."""
        for peer in peers:
            self.step(peer, PeerUp(number))

    def propose(self, number: int, value: bytes) -> int:
        """Ask a node for an entry; answers a token for `outcomes`."""
        self._tokens += 1
        self._note(f"n{number} is asked for {value.decode()}")
        self.step(number, Propose(GROUP, self._tokens, EntryKind.COMMAND, value))
        return self._tokens

    def read(self, number: int) -> int:
        self._tokens += 1
        self._note(f"n{number} is asked for a read index")
        self.step(number, ReadIndex(GROUP, self._tokens))
        return self._tokens

    def transfer(self, number: int, target: int) -> None:
        self._note(f"n{number} is asked to hand over to n{target}")
        self.step(number, Transfer(GROUP, _replica(target)))

    def retire(self, number: int) -> None:
        self._note(f"n{number} is about to stop")
        self.step(number, Retire())

    def snapshot(self, number: int) -> SnapshotInHand:
        """What a node has applied, as it is now: `bring` may take its time."""
        source = self.disks[number].snapshot(GROUP)
        self._note(f"n{number} begins a snapshot at {source.applied.index}/t{source.applied.term}")
        return SnapshotInHand(_replica(number), source)

    def bring(self, number: int, snapshot: SnapshotInHand) -> None:
        """A snapshot arrives at a node."""
        disk, source = self.disks[number], snapshot.source
        generation = disk.burn_generation(GROUP)
        disk.flush()
        sink = disk.receive(GROUP, generation)
        for pack in source.packs():
            sink.add(pack)
        assert source.totals is not None
        sink.finish(source.totals, source.applied)
        applied = source.applied
        configuration = self.hosts[node_of(snapshot.sender)].configuration_at(GROUP, applied.index)
        assert configuration is not None
        base = LogBase(applied.index, applied.term, configuration)
        self.step(number, SnapshotArrived(GROUP, snapshot.sender, generation, base, applied.digest))

    def change(
        self,
        number: int,
        voters: Sequence[int],
        learners: Sequence[int] = (),
        *,
        version: int | None = None,
    ) -> int:
        """Ask a leader for other members; it expects the version that is in force there."""
        self._tokens += 1
        if version is None:
            version = self.configuration(number).version
        told = f"voters {_names(voters)}" + (f", learners {_names(learners)}" if learners else "")
        self._note(f"n{number} is asked for {told}")
        wanted = ChangeConfiguration(
            GROUP,
            self._tokens,
            version,
            tuple(map(_replica, voters)),
            tuple(map(_replica, learners)),
        )
        self.step(number, wanted)
        return self._tokens

    def live_s(self, seconds: float, *nodes: int) -> None:
        """Time passes among these nodes (all, when none is named) as it does when all is well."""
        for _ in range(round(seconds / SETTINGS.heartbeat_s)):
            self.pass_s(SETTINGS.heartbeat_s)
            for number in nodes or self.hosts:
                self.step(number)
            self.settle(*nodes)

    # ---- what it looks at ------------------------------------------------------------------------

    def status(self, number: int) -> GroupStatus:
        status = self.hosts[number].status(GROUP)
        assert status is not None
        return status

    def configuration(self, number: int) -> Configuration:
        """The latest in its log."""
        configuration = self.hosts[number].configuration(GROUP)
        assert configuration is not None
        return configuration

    def voters(self, number: int) -> list[int]:
        return [node_of(replica) for replica in self.configuration(number).voters]

    def leaders(self) -> list[int]:
        return [number for number in self.hosts if self.status(number).leading]

    def values(self, number: int) -> list[bytes]:
        """What this node applied, in order."""
        commands = (e for e in self.applied[number] if e.kind is EntryKind.COMMAND)
        return [entry.payload for entry in commands]

    def log(self, number: int) -> list[tuple[int, int]]:
        """(index, term) of every entry behind the birth entry."""
        disk = self.disks[number]
        last = disk.load(GROUP).last_index
        entries = disk.log(GROUP).entries(2, last, 1 << 30)
        return [(entry.index, entry.term) for entry in entries]

    def appended(self, token: int) -> bool:
        return any(isinstance(outcome, Appended) for outcome in self.outcomes.get(token, []))

    def discarded(self, token: int) -> bool:
        return any(isinstance(outcome, Discarded) for outcome in self.outcomes.get(token, []))

    def _note(self, text: str) -> None:
        self.transcript.append(text)


@dataclass(frozen=True, slots=True)
class SnapshotInHand:
    """A snapshot on its way."""

    sender: ReplicaId
    source: SnapshotSource


def _replica(number: int) -> int:
    return replica_id(number, 1)


def _fill(disk: SimDisk, terms: Sequence[int], term: int) -> None:
    entries = tuple(
        Entry(index, term, EntryKind.COMMAND, b"%d/t%d" % (index, term))
        for index, term in enumerate(terms, 2)
    )
    disk.write([AppendEntries(GROUP, entries), SaveHardState(GROUP, HardState(term))])
    disk.flush()


def _names(numbers: Iterable[int]) -> str:
    return " ".join(f"n{number}" for number in numbers)

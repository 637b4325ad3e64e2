"""All groups of one node behind one function: step(now, inbox, durable) -> Ready.

The shape is etcd-io/raft's: the caller writes, flushes, sends, applies and tells the time. Nothing
in here waits, and nothing leaves before what it rests on is durable, except entries on their way to
followers, whose own copies count separately (docs/consensus.md, "Order of things in a turn").
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.frames import Frames
from mailraft.node.consensus.group import Draft, Group, Journal
from mailraft.node.consensus.heartbeat import Incoming, Outgoing
from mailraft.node.consensus.held import Held
from mailraft.node.consensus.messages import (
    Appended,
    AppliedUpTo,
    ChangeConfiguration,
    ChangeRefused,
    Committed,
    DamagedEntryError,
    Discarded,
    Event,
    GroupStatus,
    NodeNumber,
    Outcome,
    PeerDown,
    PeerUp,
    Prefer,
    Propose,
    ReadIndex,
    ReadRefused,
    Ready,
    Received,
    Rejected,
    Retire,
    SnapshotArrived,
    SnapshotSent,
    SnapshotTaken,
    SnapshotWanted,
    Stopped,
    Transfer,
)
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.consensus.questions import Questions
from mailraft.node.consensus.settings import Settings
from mailraft.node.consensus.stock import LEADER, surroundings
from mailraft.node.consensus.timers import Timers
from mailraft.node.interfaces import (
    GroupId,
    LogReader,
    LogWrite,
    ReplicaId,
    StoredLog,
    node_of,
)

FLUSH_MEMORY = 0.9  # of the longest wait, with each write that took less


class Host(Questions):
    """Every group that this node has a replica of. Not thread safe; one turn at a time.

    `seed` makes election timeouts repeatable. All times are seconds of one clock that never jumps
    back and counts while the machine sleeps.
    """

    def __init__(
        self,
        node: NodeNumber,
        *,
        seed: int,
        settings: Settings | None = None,
        mutants: Mutant = Mutant.NONE,
    ) -> None:
        self.node = node
        self._settings = settings or Settings()
        self._mutants = mutants
        self._chance = Random(seed)
        super().__init__()
        self._sequence = 0
        self._durable = 0
        # Writes that are not durable yet: sequence, whose, and since when.
        self._awaiting: deque[tuple[int, Group, float]] = deque()
        self._flush_s = 0.0  # the longest wait for durability lately
        self._held = Held()
        self._up: set[NodeNumber] = set()
        self._sessions: dict[NodeNumber, int] = {}
        self._led_changed = True  # since the last heartbeat
        self._next_heartbeat = 0.0
        self._timers = Timers()
        self._soon_s: dict[GroupId, float] = {}  # who wants a turn before the next tick
        self._hung = self._retiring = False
        self._reported: dict[GroupId, GroupStatus] = {}
        # This turn's, emptied by each Ready.
        self._touched: dict[GroupId, Group] = {}
        self._outcomes: list[Outcome] = []
        self._stopped: list[Stopped] = []
        self._acks: list[tuple[NodeNumber, raft_pb2.HeartbeatAck]] = []
        self._snapshots_taken: list[SnapshotTaken] = []

    # ---- groups ---------------------------------------------------------------------------------

    def add_group(self, now: float, group: GroupId, stored: StoredLog, reader: LogReader) -> None:
        """Start the replica that lies on disk as `stored`."""
        surroundings.enter(now, self._chance)
        added = Group(
            group,
            stored.replica,
            stored.base.configuration,
            Journal(group, stored, reader),
            self._settings,
            self._mutants,
            self._beats,
        )
        self._groups[group] = added
        self._beats.unsettle(group, added.term, 0)
        for peer in sorted(self._up):
            self._tell_peer(added, peer, up=True)
        self._touch(added)

    def remove_group(self, group: GroupId) -> None:
        self._groups.pop(group, None)
        self._touched.pop(group, None)
        self._reported.pop(group, None)
        self._timers.drop(group)
        self._soon_s.pop(group, None)
        self._held.drop(group)
        self._led_changed = True

    # ---- a turn ---------------------------------------------------------------------------------

    def step(self, now: float, inbox: Sequence[Event], durable: int) -> Ready:
        """One turn. `durable` is the highest Ready.sequence whose writes are on disk."""
        surroundings.enter(now, self._chance, self._flush_s)
        self._take_durable(durable)
        for event in inbox:
            self._take(event)
        self._take_due()
        hung = self._disk_hangs()
        if self._retiring:
            self._hand_all_over()
        beat = now >= self._next_heartbeat and not hung
        if beat:
            self._next_heartbeat = now + self._settings.heartbeat_s
        for group in list(self._touched.values()):
            self._guarded(group, self._turn_of, group)
        return self._ready(beat=beat)

    def _take_due(self) -> None:
        """Give a turn to the groups that are due; heartbeats may have put that off since."""
        for number in self._timers.take(surroundings.now):
            if number in self._touched:
                continue  # it has its turn; and what it became a moment ago is not all in place yet
            group = self._groups[number]
            due_s = group.due_s()
            if due_s > surroundings.now:
                self._timers.set(number, due_s)
            else:
                self._touch(group)

    def _disk_hangs(self) -> bool:
        """A hung disk must not keep its leaders: hand them over, beat no more, favour nobody."""
        waited_s = surroundings.now - self._awaiting[0][2] if self._awaiting else 0.0
        hung = waited_s > self._settings.disk_hung_s
        if not hung and not self._hung:
            return False  # as nearly always: no walk over all groups
        self._hung = hung
        for group in self._groups.values():
            group.disk_hung = hung
        if hung:
            self._hand_all_over()
        return hung

    def _hand_all_over(self) -> None:
        for group in self._groups.values():
            if group.role == LEADER:
                group.hand_over_once()
                self._touch(group)

    def _turn_of(self, group: Group) -> None:
        group.tick()
        if group.take_members_changed():
            self._led_changed = True
            for peer in sorted(self._up):
                self._tell_peer(group, peer, up=True, again=False)
        for event in group.take_held_proposals():
            self._take_proposal(event)
        if group.want_append or (group.role == LEADER and not group.all_caught_up()):
            group.send_appends()

    def _take_durable(self, durable: int) -> None:
        if durable > self._sequence:
            raise AssertionError(
                f"{durable} cannot be durable: only {self._sequence} was handed out"
            )
        self._durable = max(self._durable, durable)
        while self._awaiting and self._awaiting[0][0] <= self._durable:
            _, group, since = self._awaiting.popleft()
            self._flush_s = max(surroundings.now - since, FLUSH_MEMORY * self._flush_s)
            group.on_durable(self._durable)
            if self._groups.get(group.group) is group:  # and not another life of it
                self._touch(group)

    def _touch(self, group: Group) -> None:
        self._touched[group.group] = group

    def _guarded(self, group: Group, work: object, *arguments: object) -> None:
        """One group's exception stops that replica, loudly, and not its neighbours."""
        try:
            work(*arguments)  # type: ignore[operator]
        except DamagedEntryError:
            return  # as if the message had been lost: it is sent again
        except Exception as error:  # noqa: BLE001  # whatever it is, the neighbours go on
            self._stop(group, error)

    def _stop(self, group: Group, error: Exception) -> None:
        self.remove_group(group.group)
        self._stopped.append(Stopped(group.group, f"{type(error).__name__}: {error}"))

    # ---- events ---------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        match event:
            case Received():
                self._take_frame(event)
            case Propose():
                self._take_proposal(event)
            case AppliedUpTo(group, index):
                if group in self._groups:
                    self._groups[group].on_applied(index)
                    self._touch(self._groups[group])
            case PeerUp(peer):
                self._up.add(peer)
                self._led_changed = True
                self._beats.outgoing.setdefault(peer, Outgoing()).reconnect()
                self._tell_groups(peer, up=True)
            case PeerDown(peer):
                self._up.discard(peer)
                self._tell_groups(peer, up=False)
            case ReadIndex():
                self._take_read(event)
            case SnapshotArrived():
                self._take_snapshot(event)
            case ChangeConfiguration():
                self._take_change(event)
            case Retire():
                self._retiring = True
                for group in self._groups.values():
                    group.retiring = True
            case _:
                self._take_wish(event)

    def _take_wish(self, event: Transfer | Prefer | SnapshotSent) -> None:
        group = self._groups.get(event.group)
        if group is None:
            return
        match event:
            case Transfer():
                group.hand_over(event.target)
                self._touch(group)
            case Prefer():
                group.preferred = event.replica
                self._touch(group)
            case SnapshotSent():
                group.on_snapshot_sent(event.replica)
                self._touch(group)

    def _take_snapshot(self, event: SnapshotArrived) -> None:
        group, installed = self._groups.get(event.group), False
        if group is not None:
            self._touch(group)
            try:
                installed = group.on_snapshot(event)
            except Exception as error:  # noqa: BLE001  # as _guarded
                self._stop(group, error)
        self._snapshots_taken.append(
            SnapshotTaken(event.group, event.generation, event.base.index, installed)
        )

    def _take_change(self, event: ChangeConfiguration) -> None:
        group = self._groups.get(event.group)
        if group is None:
            reason = "no replica of this group is here"
            self._outcomes.append(ChangeRefused(event.token, event.group, reason))
            return
        self._touch(group)
        place = group.change_configuration(event)
        if isinstance(place, str):
            self._outcomes.append(ChangeRefused(event.token, event.group, place))
        else:
            self._outcomes.append(Appended(event.token, event.group, *place))

    def _take_read(self, event: ReadIndex) -> None:
        group = self._groups.get(event.group)
        if group is None:
            self._outcomes.append(ReadRefused(event.token, event.group, 0))
            return
        group.ask_read_index(event.token)
        self._touch(group)

    def _tell_groups(self, peer: NodeNumber, *, up: bool) -> None:
        for group in self._groups.values():
            self._tell_peer(group, peer, up=up)
            if not up and node_of(group.leader) == peer:
                group.on_leader_lost()
            self._touch(group)

    def _tell_peer(self, group: Group, peer: NodeNumber, *, up: bool, again: bool = True) -> None:
        for node in group.peers_in_order():
            if node_of(node.id) == peer and (again or node not in group.connected_nodes):
                group.on_peer(node, up=up)

    def _take_proposal(self, event: Propose) -> None:
        group = self._groups.get(event.group)
        if group is None:
            self._outcomes.append(Rejected(event.token, event.group, 0))
            return
        self._touch(group)
        if group.holds_proposals:
            group.held_proposals.append(event)
            return
        discarded = Discarded(event.token, event.group)
        place = group.propose(
            Draft(event.kind, event.payload, event.bodies),
            lambda: self._outcomes.append(discarded),
        )
        if place is None:
            self._outcomes.append(Rejected(event.token, event.group, group.leader))
        else:
            self._outcomes.append(Appended(event.token, event.group, *place))

    def _take_frame(self, event: Received) -> None:
        session = self._sessions.get(event.peer, -1)
        if event.session < session:
            return  # row 4: from a connection that has been replaced
        if event.session > session:
            self._sessions[event.peer] = event.session
            self._keep_heard(event.peer)
            self._beats.incoming[event.peer] = Incoming(event.peer)
        frame = event.frame
        for envelope in frame.envelopes:
            group = self._groups.get(envelope.group)
            if group is None or node_of(envelope.from_replica) != event.peer:
                continue
            self._touch(group)
            self._guarded(group, group.receive, envelope)
        if frame.HasField("heartbeat"):
            self._take_heartbeat(event.peer, frame.heartbeat)
        if frame.HasField("heartbeat_ack"):
            outgoing = self._beats.outgoing.setdefault(event.peer, Outgoing())
            outgoing.acknowledged(frame.heartbeat_ack, surroundings.now)

    def _take_heartbeat(self, peer: NodeNumber, beat: raft_pb2.Heartbeat) -> None:
        (self._beats.full.add if beat.disk_full else self._beats.full.discard)(peer)
        incoming = self._beats.incoming[peer]
        if incoming.is_news(beat):
            self._keep_heard(peer)
            incoming.learn(beat)
        known, ack = incoming.take(beat, surroundings.now)
        self._acks.append((peer, ack))
        for number in sorted(incoming.unsettled) if known else ():
            group = self._groups.get(number)
            if group is not None:
                self._touch(group)
            if group is None or group.on_led(*incoming.led[number]):
                incoming.unsettled.discard(number)

    def _keep_heard(self, peer: NodeNumber) -> None:
        """Before what a peer says it leads is replaced."""
        incoming = self._beats.incoming.get(peer)
        for number in incoming.led if incoming is not None else ():
            if number in self._groups:
                self._groups[number].keep_heard()

    # ---- Ready ----------------------------------------------------------------------------------

    def _ready(self, *, beat: bool) -> Ready:
        writes = self._collect_writes()
        committed: list[Committed] = []
        changed: list[GroupStatus] = []
        wanted: list[SnapshotWanted] = []
        for group in self._touched.values():
            for envelope, until in group.take_envelopes():
                self._held.put(envelope, until)
            self._outcomes.extend(group.read_outcomes)
            group.read_outcomes.clear()
            entries = group.take_committed()
            if entries is not None:
                committed.append(entries)
            wanted.extend(group.snapshots_wanted())
            status = group.status()
            before = self._reported.get(group.group)
            if before is None or _leadership(before) != _leadership(status):
                self._reported[group.group] = status
                changed.append(status)
                self._led_changed = True
                self._beats.unsettle(group.group, status.term, status.leader)
            next_tick_s = surroundings.now + self._settings.tick_s
            soon_s = group.soon_s()
            if soon_s < math.inf:
                self._soon_s[group.group] = soon_s
            else:
                self._soon_s.pop(group.group, None)
            self._timers.set(group.group, min(soon_s, max(next_tick_s, group.due_s())))
        outcomes, self._outcomes = tuple(self._outcomes), []
        stopped, self._stopped = tuple(self._stopped), []
        taken, self._snapshots_taken = self._snapshots_taken, []
        # A replica that has stopped since has written nothing.
        taken = [t if t.group in self._groups else replace(t, installed=False) for t in taken]
        self._touched = {}
        return Ready(
            sequence=self._sequence,
            writes=writes,
            messages=tuple(self._frames(beat=beat)),
            committed=tuple(committed),
            outcomes=outcomes,
            changed=tuple(changed),
            stopped=stopped,
            snapshots_wanted=tuple(wanted),
            snapshots_taken=tuple(taken),
            soon_s=min(self._soon_s.values(), default=math.inf),
        )

    def _collect_writes(self) -> tuple[LogWrite, ...]:
        sequence = self._sequence + 1
        writes: list[LogWrite] = []
        for group in self._touched.values():
            own = group.take_writes(sequence)
            if own:
                writes.extend(own)
                self._awaiting.append((sequence, group, surroundings.now))
        if writes:
            self._sequence = sequence
        return tuple(writes)

    def _frames(self, *, beat: bool) -> list[tuple[NodeNumber, raft_pb2.ExchangeRequest]]:
        """Envelopes whose time has come, heartbeats and their answers, a frame or more per peer."""
        frames = Frames()
        for envelope in self._held.take(self._durable):
            peer = node_of(envelope.to_replica)
            if peer in self._up:
                frames.add(peer, envelope)
        for peer, ack in self._acks:
            if peer in self._up:
                frames.open(peer).heartbeat_ack.CopyFrom(ack)
        self._acks = []
        if beat:
            idle_s = self._settings.idle_heartbeat_s
            for peer, outgoing in sorted(self._beats.outgoing.items()):
                if self._led_changed:
                    outgoing.update(self._led_at(peer))
                if peer in self._up and outgoing.is_due(surroundings.now, idle_s):
                    frames.open(peer).heartbeat.CopyFrom(outgoing.beat(surroundings.now))
            self._led_changed = False
        return frames.done

    def _led_at(self, peer: NodeNumber) -> list[tuple[GroupId, int, ReplicaId]]:
        return [
            (group.group, group.term, group.replica)
            for group in self._groups.values()
            if group.role == LEADER and any(node_of(n.id) == peer for n in group.peers_in_order())
        ]


def _leadership(status: GroupStatus) -> tuple[int, int, bool]:
    return status.leader, status.term, status.leading

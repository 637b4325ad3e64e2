"""One heartbeat per peer and period, whatever the number of groups (row 18).

A node tells each peer which (group, term) it leads there; the whole set travels until the peer
acknowledged its version, then only the version does. What a beat says to each group is looked up
when a group wants to know it, so taking one costs the same for one group and for a thousand.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.messages import NodeNumber
from mailraft.node.interfaces import GroupId, ReplicaId, node_of

Led = tuple[tuple[GroupId, int, ReplicaId], ...]  # (group, term, leader), ascending
NEVER_S = float("-inf")


@dataclass(slots=True)
class Outgoing:
    """What this node tells one peer."""

    led: Led = ()
    version: int = 0
    acknowledged_version: int = 0
    sequence: int = 0
    followed_s: float = NEVER_S  # when the peer last said that it follows the set as it is
    beaten_s: float = NEVER_S

    def update(self, led: Iterable[tuple[GroupId, int, ReplicaId]]) -> None:
        fresh = tuple(sorted(led))
        if fresh != self.led or not self.version:
            self.led = fresh
            self.version += 1

    def is_due(self, now: float, idle_s: float) -> bool:
        """Each time, while somebody's patience depends on it. Nodes that share no group must not
        cost each other as much, or those of a large cluster would do little else.
        """
        known = self.acknowledged_version == self.version
        return bool(self.led) or not known or now - self.beaten_s >= idle_s

    def beat(self, now: float) -> raft_pb2.Heartbeat:
        self.sequence += 1
        self.beaten_s = now
        beat = raft_pb2.Heartbeat(led_version=self.version, sequence=self.sequence)
        if self.acknowledged_version != self.version:
            beat.complete = True
            beat.led.extend(raft_pb2.LedGroup(group=g, term=t, replica=r) for g, t, r in self.led)
        return beat

    def acknowledged(self, ack: raft_pb2.HeartbeatAck, now: float) -> None:
        self.acknowledged_version = ack.led_version
        if ack.led_version == self.version:
            self.followed_s = now

    def reconnect(self) -> None:
        self.acknowledged_version = 0


@dataclass(slots=True)
class Incoming:
    """What one peer told this node, in the stream that is open now."""

    peer: NodeNumber
    version: int = 0
    led: dict[GroupId, tuple[int, ReplicaId]] = field(default_factory=dict)  # to (term, leader)
    heard_s: float = NEVER_S  # the last beat of the set as it is known here
    unsettled: set[GroupId] = field(default_factory=set)  # led by the peer, and not followed here

    def is_news(self, beat: raft_pb2.Heartbeat) -> bool:
        """Whether `learn` would change the set."""
        return beat.complete and beat.led_version != self.version

    def learn(self, beat: raft_pb2.Heartbeat) -> None:
        self.version = beat.led_version
        own = [led for led in beat.led if node_of(led.replica) == self.peer]
        self.led = {led.group: (led.term, led.replica) for led in own}
        self.unsettled = set(self.led)

    def take(self, beat: raft_pb2.Heartbeat, now: float) -> tuple[bool, raft_pb2.HeartbeatAck]:
        """Whether the set is known, whose leaders are heard then; and what to answer (an older
        version asks for the set).
        """
        known = self.version == beat.led_version
        if known:
            self.heard_s = now
        return known, raft_pb2.HeartbeatAck(led_version=self.version, sequence=beat.sequence)


class Beats:
    """What the heartbeats of all nodes say, for the groups of this one."""

    def __init__(self) -> None:
        self.outgoing: dict[NodeNumber, Outgoing] = {}
        self.incoming: dict[NodeNumber, Incoming] = {}
        self.full: set[NodeNumber] = set()  # peers that said last that their disk is full

    def heard_s(self, group: GroupId, term: int, leader: ReplicaId) -> float:
        """When the node of a leader last said that it leads the group, in this very term."""
        incoming = self.incoming.get(node_of(leader))
        if incoming is None or incoming.led.get(group) != (term, leader):
            return NEVER_S
        return incoming.heard_s

    def followed_s(self, peer: NodeNumber) -> float:
        """When a peer last said that it follows the groups that this node leads."""
        outgoing = self.outgoing.get(peer)
        return outgoing.followed_s if outgoing is not None else NEVER_S

    def unsettle(self, group: GroupId, term: int, leader: ReplicaId) -> None:
        """A replica here follows another leader now, or none: the next beats tell it theirs."""
        for incoming in self.incoming.values():
            if incoming.led.get(group, (term, leader)) != (term, leader):
                incoming.unsettled.add(group)

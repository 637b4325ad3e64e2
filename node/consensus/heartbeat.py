"""One heartbeat per peer and period, whatever the number of groups (row 18).

A node tells each peer which (group, term) it leads there; the whole set travels until the peer
acknowledged its version, then only the version does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mailraft.internal.v1 import raft_pb2
from mailraft.node.interfaces import GroupId, ReplicaId

Led = tuple[tuple[GroupId, int, ReplicaId], ...]  # (group, term, leader), ascending


@dataclass(slots=True)
class Outgoing:
    """What this node tells one peer."""

    led: Led = ()
    version: int = 0
    acknowledged_version: int = 0
    sequence: int = 0

    def update(self, led: Iterable[tuple[GroupId, int, ReplicaId]]) -> None:
        fresh = tuple(sorted(led))
        if fresh != self.led or not self.version:
            self.led = fresh
            self.version += 1

    def beat(self) -> raft_pb2.Heartbeat:
        self.sequence += 1
        beat = raft_pb2.Heartbeat(led_version=self.version, sequence=self.sequence)
        if self.acknowledged_version != self.version:
            beat.complete = True
            beat.led.extend(raft_pb2.LedGroup(group=g, term=t, replica=r) for g, t, r in self.led)
        return beat

    def acknowledged(self, ack: raft_pb2.HeartbeatAck) -> bool:
        """Whether the peer follows the set as it is now."""
        self.acknowledged_version = ack.led_version
        return ack.led_version == self.version

    def reconnect(self) -> None:
        self.acknowledged_version = 0


@dataclass(slots=True)
class Incoming:
    """What one peer told this node, in the stream that is open now."""

    version: int = 0
    led: Led = field(default=())

    def take(self, beat: raft_pb2.Heartbeat) -> tuple[bool, raft_pb2.HeartbeatAck]:
        """Whether the set is known, and what to answer (an older version asks for the set)."""
        if beat.complete:
            self.version = beat.led_version
            self.led = tuple((led.group, led.term, led.replica) for led in beat.led)
        known = self.version == beat.led_version
        return known, raft_pb2.HeartbeatAck(led_version=self.version, sequence=beat.sequence)

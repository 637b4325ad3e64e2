"""Leadership transfer that loses no request (Raft thesis section 3.10).

Stock hands over only if the target holds the whole log at that instant, which under load is never
(row 17). Here the leader takes in no proposals meanwhile: they wait, at most one election timeout,
and are then appended after all, or go back to their callers with the new leader's name.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.messages import Propose
from mailraft.node.consensus.replica import ReplicaBase
from mailraft.node.consensus.stock import LEADER, Node, surroundings
from mailraft.node.interfaces import ReplicaId

# When a new leader tries to hand over to the replica that placement prefers, and how often then.
# Not at once: it may have taken over from that very one, which stops.
PREFER_FIRST_S = 1.0
PREFER_EVERY_S = 5.0
# ... and how far behind that may be: what it lacks travels while proposals wait.
PREFER_LAG_ENTRIES = 16


@dataclass(slots=True)
class _HandOver:
    target: Node
    until_s: float
    asked_s: float = float("-inf")


class Transfers(ReplicaBase):
    def begin_transfers(self) -> None:
        self.held_proposals: list[Propose] = []
        self.preferred: ReplicaId = 0
        self._hand_over: _HandOver | None = None
        self._hold_until_s = 0.0
        self._preferred_s = float("-inf")

    @property
    def holds_proposals(self) -> bool:
        """Proposals wait, for the end of a transfer or for word of the new leader."""
        if self._hand_over is not None:
            return True
        return (
            bool(self.held_proposals) and not self.leader and surroundings.now < self._hold_until_s
        )

    @property
    def transfer_pending(self) -> bool:
        return self._hand_over is not None or bool(self.held_proposals)

    def hand_over(self, target: ReplicaId) -> None:
        """Begin a transfer, if anyone can take over; 0: to the voter that is furthest ahead."""
        if self.role != LEADER:
            return
        able = [node for node in self.heirs() if target in (0, node.id)]
        if able:
            self._hold_until_s = surroundings.now + self.election_timeout_s
            best = max(able, key=lambda node: self.match_index[node])
            self._hand_over = _HandOver(best, self._hold_until_s)
            self.want_append = True

    def hand_over_once(self) -> None:
        """Unless that is under way."""
        if self._hand_over is None:
            self.hand_over(0)

    def advance_transfer(self) -> None:
        """In each turn: tell the target once it has everything, or give up."""
        if self._hand_over is None:
            self._prefer()
            return
        under_way = self._hand_over
        if (
            self.role != LEADER
            or surroundings.now >= under_way.until_s
            or under_way.target not in self.connected_nodes
        ):
            self._hand_over = None
        elif (
            self.match_index[under_way.target] == self.journal.last_index
            and surroundings.now - under_way.asked_s >= self.settings.heartbeat_s
        ):
            under_way.asked_s = surroundings.now
            self.send(under_way.target.id, timeout_now=raft_pb2.TimeoutNow())

    def take_held_proposals(self) -> list[Propose]:
        """Those whose wait is over, in order."""
        if self.holds_proposals:
            return []
        taken, self.held_proposals = self.held_proposals, []
        return taken

    @property
    def prefer_due_s(self) -> float:
        """When this leader should see whether the preferred one can take over."""
        if self.role != LEADER or self.preferred in (0, self.replica):
            return float("inf")
        return max(self.leading_since_s + PREFER_FIRST_S, self._preferred_s + PREFER_EVERY_S)

    def _prefer(self) -> None:
        """Leader balance: lead where placement wants it, as soon as that costs nothing."""
        if surroundings.now >= self.prefer_due_s:
            self._preferred_s = surroundings.now
            behind = self.journal.last_index - self.match_index.get(Node(self.preferred), 0)
            if behind <= PREFER_LAG_ENTRIES:
                self.hand_over(self.preferred)

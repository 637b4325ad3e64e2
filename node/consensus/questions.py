"""What may be asked of a host between two turns. Nothing in here changes anything."""

from __future__ import annotations

from collections.abc import Set

from mailraft.node.consensus.group import Group
from mailraft.node.consensus.heartbeat import Beats
from mailraft.node.consensus.messages import GroupStatus, NodeNumber
from mailraft.node.consensus.stock import LEADER
from mailraft.node.interfaces import Configuration, GroupId, ReplicaId
from mailraft.node.quorum_reads import Position


class Questions:
    """Groups that this node has no replica of answer nothing."""

    def __init__(self) -> None:
        self._groups: dict[GroupId, Group] = {}
        self._beats = Beats()

    def status(self, group: GroupId) -> GroupStatus | None:
        found = self._groups.get(group)
        return found.status() if found is not None else None

    def configuration_at(self, group: GroupId, index: int) -> Configuration | None:
        """In force at an applied index; None where no replica of the group runs."""
        found = self._groups.get(group)
        return found.configuration_at(index) if found is not None else None

    def leader_heard_s(self, group: GroupId) -> float:
        """When a follower last heard its leader, on the host's clock; long ago when never."""
        found = self._groups.get(group)
        return found.leader_heard_s if found is not None else float("-inf")

    def log_end(self, group: GroupId) -> tuple[int, int]:
        """Term and index of the last entry: which of two logs is longer (Raft section 5.4.1)."""
        found = self._groups.get(group)
        return (0, 0) if found is None else found.log_end()

    @property
    def full_peers(self) -> Set[NodeNumber]:
        """Nodes whose disks are full, as they said last."""
        return self._beats.full

    def has_committed_more(self, group: GroupId) -> bool:
        """Whether entries are committed beyond those that were handed on to be applied."""
        found = self._groups.get(group)
        return found is not None and found.has_committed_more

    def has_heir(self, group: GroupId) -> bool:
        """Whether this node leads the group, and another voter is there to take over."""
        found = self._groups.get(group)
        return found is not None and found.role == LEADER and bool(found.heirs())

    def groups(self) -> tuple[GroupId, ...]:
        return tuple(sorted(self._groups))

    def match_indexes(self, group: GroupId) -> dict[int, int]:
        """On a leader: durable index per voter, its own included; empty elsewhere."""
        found = self._groups.get(group)
        if found is None or found.role != LEADER:
            return {}
        matches = {int(node.id): found.match_index[node] for node in found.voters_in_order()}
        if found.is_voter:
            matches[found.replica] = found.durable_index
        return matches

    def in_contact(self, group: GroupId) -> frozenset[ReplicaId]:
        """On a leader: the voters that were heard lately, itself included; empty elsewhere."""
        found = self._groups.get(group)
        if found is None or found.role != LEADER:
            return frozenset()
        heard = found.voters_heard()
        return heard | {found.replica} if found.is_voter else heard

    def progress(self, group: GroupId) -> dict[int, int]:
        """On a leader: the durable index of every other member, learners too; empty elsewhere."""
        found = self._groups.get(group)
        if found is None or found.role != LEADER:
            return {}
        return {int(node.id): found.match_index[node] for node in found.peers_in_order()}

    def log_bytes(self, group: GroupId) -> int:
        """About what the log takes, without bodies."""
        found = self._groups.get(group)
        return found.journal.sizes.size_bytes if found is not None else 0

    def configuration(self, group: GroupId) -> Configuration | None:
        """The latest in the replica's log, committed or not."""
        found = self._groups.get(group)
        return found.configuration if found is not None else None

    def position(self, group: GroupId, applied_index: int) -> Position | None:
        """How far the replica here is, which has applied so much."""
        found = self._groups.get(group)
        if found is None:
            return None
        return Position(
            found.replica,
            applied_index,
            found.journal.last_index,
            found.configuration.version,
            found.configuration.voters,
            found.journal.amnesic,
        )

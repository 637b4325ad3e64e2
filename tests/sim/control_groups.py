"""Groups and nodes of a ControlWorld: what a controller can see and ask of them, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from tests.sim.watch import PropertyError

from mailraft.cluster.control.observed import Change
from mailraft.internal.v1 import control_pb2, raft_pb2
from mailraft.node.consensus.membership import PROMOTION_LAG_ENTRIES, _misshapen
from mailraft.node.consensus.messages import ChangeConfiguration
from mailraft.node.interfaces import Configuration, GroupId, ReplicaId, node_of
from mailraft.v1 import cluster_pb2

LOG_ENTRIES = 400  # at the start: what a learner has to catch up with
CAUGHT_UP_A_STEP = 90


class SimGroup:
    """As Raft sees it: one leader, one configuration in force, maybe not committed yet."""

    def __init__(self, shard: cluster_pb2.Shard) -> None:
        self.id = shard.id
        voters = tuple(sorted(each.replica_id for each in shard.replicas))
        self.configuration = self.committed = Configuration(1, voters)
        self.term, self.leader, self.last_index = 1, shard.replicas[0].replica_id, LOG_ENTRIES
        self.match = dict.fromkeys(voters, LOG_ENTRIES)
        self.ever_voted = set(voters)
        self.old_leaders: dict[int, control_pb2.ReplicaReport] = {}  # split off, and not aware

    def __str__(self) -> str:
        told = self.configuration
        names = [f"{node_of(each)}" for each in told.voters]
        learners = [f"({node_of(each)})" for each in told.learners]
        sign = "" if told == self.committed else "?"
        members = " ".join(names + learners)
        return f"g{self.id} v{told.version}{sign} {members} led by {node_of(self.leader)}"

    @property
    def members(self) -> tuple[ReplicaId, ...]:
        return (*self.configuration.voters, *self.configuration.learners)

    def step(self, random: Random, nodes: Mapping[int, SimNode], *, restless: bool) -> None:
        voters = self.configuration.voters
        live = [each for each in voters if nodes[node_of(each)].serves(self.id, each)]
        if self.leader and self.leader not in live:
            self._lose_leader(random, nodes)
            voters = self.configuration.voters
            live = [each for each in voters if nodes[node_of(each)].serves(self.id, each)]
        if len(live) <= len(voters) // 2:
            return
        if not self.leader or (restless and random.random() < 0.02):
            if random.random() < 0.5:
                return
            furthest = max(self.match[each] for each in live)
            able = [each for each in live if self.match[each] == furthest]
            self.term, self.leader = self.term + 1, random.choice(able)
        self.last_index += random.randrange(6)
        for each in self.members:
            if nodes[node_of(each)].serves(self.id, each):
                most = self.match.get(each, 0) + random.randrange(1, CAUGHT_UP_A_STEP)
                self.match[each] = min(self.last_index, most)
        self.match[self.leader] = self.last_index
        self.committed = self.configuration
        self.ever_voted.update(self.committed.voters)

    def change(self, asked: Change) -> bool:
        """As node.consensus.membership.Membership.why_not."""
        now = self.configuration
        wanted = ChangeConfiguration(
            self.id, 0, asked.expected_version, asked.voters, asked.learners
        )
        if asked.expected_version != now.version or now != self.committed:
            return False
        if _misshapen(now, wanted):
            return False
        for replica in set(asked.voters) - set(now.voters):
            match = self.match.get(replica, 0)
            behind = self.last_index - match
            if replica not in now.learners or not match or behind > PROMOTION_LAG_ENTRIES:
                return False
        self.configuration = Configuration(now.version + 1, asked.voters, asked.learners)
        for replica in self.members:
            self.match.setdefault(replica, 0)
        return True

    def hand_over(self, to: ReplicaId, nodes: Mapping[int, SimNode]) -> None:
        if to in self.configuration.voters and nodes[node_of(to)].serves(self.id, to):
            self.term, self.leader = self.term + 1, to

    def report(self, replica: ReplicaId) -> control_pb2.ReplicaReport:
        told = control_pb2.ReplicaReport(
            group=self.id,
            replica_id=replica,
            leading=replica == self.leader,
            leader=self.leader,
            term=self.term,
            last_index=self.last_index,
            configuration=raft_pb2.Configuration(
                version=self.configuration.version,
                voters=self.configuration.voters,
                learners=self.configuration.learners,
            ),
            configuration_committed=self.configuration == self.committed,
        )
        if told.leading:
            for other in self.members:
                if other != replica:
                    told.progress.add(replica_id=other, match_index=self.match[other])
        return told

    def _lose_leader(self, random: Random, nodes: Mapping[int, SimNode]) -> None:
        old = nodes[node_of(self.leader)]
        if old.split:
            self.old_leaders[old.number] = self.report(self.leader)
        self.leader = 0
        if self.configuration != self.committed and random.random() < 0.5:
            self.configuration = self.committed  # truncated: its version may be given again


@dataclass(slots=True)
class SimNode:
    number: int
    up: bool = True
    cut: bool = False  # from everybody
    split: bool = False  # from other nodes, not from the controller
    gone: bool = False  # it has left the cluster
    away_since: int = 1 << 30
    epoch: int = 0
    rows: dict[GroupId, ReplicaId] = field(default_factory=dict)
    removed: set[tuple[GroupId, ReplicaId]] = field(default_factory=set)

    @property
    def reachable(self) -> bool:
        return self.up and not self.cut

    @property
    def serving(self) -> bool:
        return self.reachable and not self.split

    def serves(self, group: GroupId, replica: ReplicaId) -> bool:
        return self.serving and self.rows.get(group) == replica

    def report(self, address: str, groups: Mapping[int, SimGroup]) -> control_pb2.ReportResponse:
        told = control_pb2.ReportResponse(node_id=self.number, address=address)
        for number, replica in self.rows.items():
            group = groups[number]
            if self.split and self.number in group.old_leaders:
                told.replicas.append(group.old_leaders[self.number])
            else:
                told.replicas.append(group.report(replica))
        return told

    def adopt(self, newest: cluster_pb2.ClusterMap, groups: Mapping[int, SimGroup]) -> None:
        """As node.hosting.Hosting.adopt."""
        if newest.epoch <= self.epoch:
            return
        self.epoch = newest.epoch
        mine = next(node for node in newest.nodes if node.id == self.number)
        if mine.state == cluster_pb2.NODE_STATE_REMOVED:
            self.up, self.gone = False, True
            return
        for shard in (newest.meta, *newest.shards):
            group, held = groups[shard.id], self.rows.get(shard.id, 0)
            wanted = sum(each.replica_id for each in shard.replicas if each.node_id == self.number)
            ahead = group.configuration.version > shard.configuration_version
            if held and held != wanted and not (ahead and held in group.members):
                if held in group.configuration.voters or held in group.committed.voters:
                    raise PropertyError(f"members stay: a voter of {group} is removed")
                del self.rows[shard.id]
                self.removed.add((shard.id, held))
            if wanted and shard.id not in self.rows:
                if (shard.id, wanted) in self.removed and wanted in group.ever_voted:
                    raise PropertyError(f"one life: {wanted:#x} of {group} voted before")
                self.rows[shard.id] = wanted
                group.match[wanted] = 0

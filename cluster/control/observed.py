"""What a controller knows at one moment, and what it can do next. Immutable values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from mailraft.internal.v1 import control_pb2, meta_pb2
from mailraft.node.interfaces import GroupId, ReplicaId
from mailraft.v1 import admin_pb2, cluster_pb2, job_pb2

# Reports come twice a second; one that is so old says nothing about now.
HEARD_LATELY_S = 3.0
# The median of the latest flushes: hundred times what it is on a healthy disk.
FLUSH_SLOW_MS = 250


@dataclass(frozen=True)  # without slots: it remembers what is looked up often
class Observed:
    """The meta group's state, and how the nodes say they do.

    reports: the latest of each node that was heard at all; silent_s: how long ago, by node.
    """

    map: cluster_pb2.ClusterMap
    settings: admin_pb2.Settings
    jobs: Sequence[meta_pb2.MetaJobRecord]  # not finished, oldest first
    reports: Mapping[int, control_pb2.ReportResponse]
    silent_s: Mapping[int, float]

    @cached_property
    def groups(self) -> list[cluster_pb2.Shard]:
        """The meta group, then the shards."""
        return [self.map.meta, *self.map.shards]

    @cached_property
    def moving(self) -> list[meta_pb2.MetaJobRecord]:
        """Open jobs that move a replica."""
        return [each for each in self.jobs if each.job.spec.HasField("move")]

    def group(self, number: GroupId) -> cluster_pb2.Shard | None:
        return self._by_number.get(number)

    def node(self, number: int) -> cluster_pb2.Node | None:
        return next((each for each in self.map.nodes if each.id == number), None)

    def heard(self, number: int) -> bool:
        """Whether it is up, for all we know: it told so lately."""
        return number in self.reports and not self.silent(number)

    def silent(self, number: int) -> bool:
        """Whether it is down, for all we know: neither, while we have not asked for long enough."""
        return self.silent_s.get(number, 0.0) >= HEARD_LATELY_S

    def slow_disk(self, number: int) -> bool:
        """Whether it can serve, but should lead nothing."""
        report = self.reports.get(number)
        return report is not None and report.flush_ms > FLUSH_SLOW_MS

    def dead(self, number: int) -> bool:
        """Whether it has been silent for so long that its replicas are placed anew."""
        after_s = self.settings.replace_after_ms / 1000
        return bool(after_s) and self.silent_s.get(number, 0.0) > after_s

    def leader(self, group: GroupId) -> control_pb2.ReplicaReport | None:
        """What the leader of a group tells; None: nobody leads, as far as was heard lately."""
        return self._leaders.get(group)

    def settled(self, group: GroupId) -> control_pb2.ReplicaReport | None:
        """As `leader`, while no change of the group's members is under way."""
        leader = self.leader(group)
        return leader if leader is not None and leader.configuration_committed else None

    def replica(self, node: int, group: GroupId) -> control_pb2.ReplicaReport | None:
        """What a node tells of its replica of a group."""
        report = self.reports.get(node)
        if report is None:
            return None
        return next((each for each in report.replicas if each.group == group), None)

    @cached_property
    def _by_number(self) -> dict[GroupId, cluster_pb2.Shard]:
        return {each.id: each for each in self.groups}

    @cached_property
    def _leaders(self) -> dict[GroupId, control_pb2.ReplicaReport]:
        found: dict[GroupId, control_pb2.ReplicaReport] = {}
        for number, report in self.reports.items():
            for each in report.replicas if self.heard(number) else ():
                known = found.get(each.group)
                if each.leading and not each.stopped and (known is None or each.term > known.term):
                    found[each.group] = each
        return found


# ---- actions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """Put the configuration that is in force into the map."""

    shard: cluster_pb2.Shard


@dataclass(frozen=True, slots=True)
class RecordForced:
    """The same, where what the map says may not be the newest that was decided."""

    shard: cluster_pb2.Shard


@dataclass(frozen=True, slots=True)
class Change:
    """Ask a group's leader to change its members."""

    node: int
    group: GroupId
    expected_version: int
    voters: tuple[ReplicaId, ...]
    learners: tuple[ReplicaId, ...]


@dataclass(frozen=True, slots=True)
class HandOver:
    """Ask a group's leader to let another replica lead."""

    node: int
    group: GroupId
    to: ReplicaId


@dataclass(frozen=True, slots=True)
class Begin:
    spec: job_pb2.JobSpec
    parent: str = ""


@dataclass(frozen=True, slots=True)
class Advance:
    """Record what became of a job."""

    job: job_pb2.Job  # as it should be
    expected_version: int


@dataclass(frozen=True, slots=True)
class SetState:
    node: int
    state: cluster_pb2.NodeState.ValueType


@dataclass(frozen=True, slots=True)
class Describe:
    """Put what a node tells of itself into the map."""

    node: int
    version: str
    address: str


Action = Record | RecordForced | Change | HandOver | Begin | Advance | SetState | Describe


@dataclass(slots=True)
class Plan:
    """Actions in the order in which they were found; none depends on another of the same plan."""

    actions: list[Action] = field(default_factory=list)

    def add(self, action: Action | None) -> None:
        if action is not None:
            self.actions.append(action)

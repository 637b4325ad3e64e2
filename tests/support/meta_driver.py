"""Drives the meta group's state machine: two replicas, fed the same entries, that never differ."""

from __future__ import annotations

from dict_view import DictView
from mailraft.cluster import mapfile
from mailraft.cluster.meta import machine, state
from mailraft.internal.v1 import meta_pb2
from mailraft.node.interfaces import Entry, EntryKind, Proposal, replica_id
from mailraft.v1 import admin_pb2, cluster_pb2, error_pb2, job_pb2

START_MS = 1_700_000_000_000
VOTER, LEARNER = cluster_pb2.REPLICA_ROLE_VOTER, cluster_pb2.REPLICA_ROLE_LEARNER
ACTIVE, DRAINING = cluster_pb2.NODE_STATE_ACTIVE, cluster_pb2.NODE_STATE_DRAINING
DRAINED, LEAVING = cluster_pb2.NODE_STATE_DRAINED, cluster_pb2.NODE_STATE_DECOMMISSIONING
REMOVED = cluster_pb2.NODE_STATE_REMOVED


def node(number: int, **more: object) -> cluster_pb2.Node:
    """As an operator adds it; the number is only in its name."""
    made = cluster_pb2.Node(name=f"n{number}", address=f"n{number}:1", weight_milli=1_000)
    for name, value in more.items():
        setattr(made, name, value)
    return made


def first_map(count: int = 4, shards: int = 3, **more: object) -> cluster_pb2.ClusterMap:
    """That a cluster begins with."""
    there = [node(number, id=number, state=ACTIVE, **more) for number in range(1, count + 1)]
    return mapfile.make(there, shards, cluster_id="c")


class Meta:
    """Two replicas of the meta group that must never differ."""

    def __init__(self, first: cluster_pb2.ClusterMap | None = None) -> None:
        self.machine, self.views, self.index = (
            machine.MetaStateMachine(),
            [DictView(), DictView()],
            0,
        )
        self.now_ms = START_MS
        if first is not None:
            self.run(bootstrap=meta_pb2.BootstrapMeta(map=first))

    @property
    def map(self) -> cluster_pb2.ClusterMap:
        found = state.cluster_map(self.views[0])
        assert found is not None
        return found

    @property
    def head(self) -> meta_pb2.MetaHeadRecord:
        found = state.head(self.views[0])
        assert found is not None
        return found

    def apply(self, *commands: meta_pb2.MetaCommand) -> list[meta_pb2.MetaReply]:
        """Commands as one entry."""
        payload, _ = self.machine.encode([Proposal(each) for each in commands])
        self.index += 1
        entry = Entry(self.index, 1, EntryKind.COMMAND, payload)
        one, other = (self.machine.apply(view, entry) for view in self.views)
        assert one == other
        for view in self.views:
            view.apply(one.effects)
        assert self.views[0].rows == self.views[1].rows
        return [each for each in one.replies if isinstance(each, meta_pb2.MetaReply)]

    def run(
        self, request_id: bytes = b"", if_epoch: int = 0, **action: object
    ) -> meta_pb2.MetaReply:
        command = meta_pb2.MetaCommand(
            time_ms=self.now_ms,
            request_id=request_id,
            if_epoch=if_epoch,
            fingerprint=b"f" if request_id else b"",
            **action,  # type: ignore[arg-type]  # one of the oneof
        )
        [reply] = self.apply(command)
        return reply

    def admit(self, told: cluster_pb2.Node, **more: bytes) -> meta_pb2.MetaReply:
        return self.run(admit_node=meta_pb2.AdmitNode(node=told), **more)  # type: ignore[arg-type]

    def set_state(self, number: int, wanted: cluster_pb2.NodeState.ValueType) -> meta_pb2.MetaReply:
        return self.run(set_node_state=meta_pb2.SetNodeState(node_id=number, state=wanted))

    def describe(self, number: int, version: str, address: str = "") -> meta_pb2.MetaReply:
        told = meta_pb2.DescribeNode(node_id=number, version=version, address=address)
        return self.run(describe_node=told)

    def record(self, shard: int, version: int, *on: int, learners: tuple[int, ...] = ()) -> object:
        told = cluster_pb2.Shard(id=shard, configuration_version=version)
        for each in (*on, *learners):
            role = LEARNER if each in learners else VOTER
            told.replicas.add(replica_id=replica_id(each, 1), node_id=each, role=role)
        return self.run(record_shard=meta_pb2.RecordShard(shard=told))

    def begin(self, parent: str = "", **spec: object) -> meta_pb2.MetaReply:
        wanted = job_pb2.JobSpec(**spec)  # type: ignore[arg-type]  # one of the oneof
        return self.run(begin_job=meta_pb2.BeginJob(spec=wanted, parent_job_id=parent))

    def move(self, shard: int, source: int = 0, to: int = 0) -> meta_pb2.MetaReply:
        return self.begin(move=job_pb2.MoveSpec(shard=shard, from_node_id=source, to_node_id=to))

    def advance(
        self, job: job_pb2.Job, wanted: job_pb2.JobState.ValueType, version: int = 0
    ) -> meta_pb2.MetaReply:
        told = job_pb2.Job()
        told.CopyFrom(job)
        told.state = wanted
        return self.run(
            advance_job=meta_pb2.AdvanceJob(job_id=job.id, expected_version=version, job=told)
        )

    def change(self, *fields: str, **values: object) -> meta_pb2.MetaReply:
        wanted = admin_pb2.Settings(**values)  # type: ignore[arg-type]
        return self.run(change_settings=meta_pb2.ChangeSettings(settings=wanted, fields=fields))

    def on(self, shard: int) -> list[int]:
        found = state.shard(self.views[0], shard)
        assert found is not None
        return [each.node_id for each in found.replicas]

    def off(self, shard: int) -> list[int]:
        return [each.id for each in self.map.nodes if each.id not in self.on(shard)]


def refused(reply: meta_pb2.MetaReply) -> str:
    """Why; empty: it was not."""
    if not reply.HasField("refusal"):
        return ""
    known = error_pb2.ErrorReason.DESCRIPTOR.values_by_number
    return known[reply.refusal.reason].name.removeprefix("ERROR_REASON_")


def request_id(time_ms: int = START_MS, number: int = 1) -> bytes:
    """UUIDv7 of a time."""
    return (time_ms << 80 | 7 << 76 | 2 << 62 | number).to_bytes(16)

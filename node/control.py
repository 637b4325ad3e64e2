"""What the controller asks of this node: how it does, and to change who is in a group.

Only nodes of this cluster may call it, each by its certificate (node/identity.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc

from mailraft.internal.v1 import control_pb2, control_pb2_grpc, raft_pb2
from mailraft.node.clocks import PeerClocks
from mailraft.node.consensus.host import Host
from mailraft.node.digest_exchange import DigestExchange
from mailraft.node.disk_space import DiskSpace
from mailraft.node.engine.store import Store
from mailraft.node.healing import Healing
from mailraft.node.identity import refuse_stranger
from mailraft.node.interfaces import ClusterView, GroupId
from mailraft.node.pace import LoopLag
from mailraft.node.runtime import Runtime, now_s
from mailraft.node.shard import Replica
from mailraft.wire import errors

DEADLINE_MAX_S = 30.0
SIZE_AGE_S = 10.0  # walking the folder is not for every report

Context = grpc.aio.ServicerContext[Any, Any]


class ControlService(control_pb2_grpc.ControlServiceServicer):
    """Implements ControlService of mailraft.internal.v1."""

    def __init__(
        self,
        view: ClusterView,
        store: Store,
        host: Host,
        runtime: Runtime,
        replicas: Mapping[GroupId, Replica],
        *,
        lag: LoopLag,
        clocks: PeerClocks,
        space: DiskSpace,
        digests: DigestExchange,
        healing: Healing,
        version: str,
        feature_level: int,
    ) -> None:
        self._view, self._store, self._host = view, store, host
        self._runtime, self._replicas = runtime, replicas
        self._lag, self._clocks, self._space, self._digests = lag, clocks, space, digests
        self._healing = healing
        self._version, self._feature_level = version, feature_level
        self._used_bytes, self._used_s = 0, float("-inf")

    async def Report(  # noqa: N802  # the name of the RPC
        self, request: control_pb2.ReportRequest, context: Context
    ) -> control_pb2.ReportResponse:
        await refuse_stranger(context, self._view)
        usage = self._store.disk_usage()
        if now_s() - self._used_s > SIZE_AGE_S:
            self._used_s = now_s()
            self._used_bytes = await asyncio.to_thread(self._store.approximate_bytes)
        return control_pb2.ReportResponse(
            node_id=self._view.node,
            version=self._version,
            feature_level=self._feature_level,
            epoch=self._view.epoch,
            replicas=[self._report(each) for each in self._replicas.values()],
            disk_used_bytes=self._used_bytes,
            disk_free_bytes=usage.free_bytes,
            disk_total_bytes=usage.total_bytes,
            disk_full=self._space.full,
            clock_ahead_ms=self._clocks.skew_ms(),
            loop_lag_ms=self._lag.worst_ms,
            flush_ms=self._runtime.flush_ms,
            repairing=self._healing.repairs.kept,
            damage=self._healing.damage,
            address=next(p.address for p in self._view.peers() if p.node == self._view.node),
        )

    async def ChangeMembers(  # noqa: N802  # the name of the RPC
        self, request: control_pb2.ChangeMembersRequest, context: Context
    ) -> control_pb2.ChangeMembersResponse:
        await refuse_stranger(context, self._view)
        try:
            self._leading(request.group)
            index = await self._runtime.change_members(
                request.group,
                request.expected_version,
                tuple(sorted(request.voters)),
                tuple(sorted(request.learners)),
                deadline_s=now_s() + _timeout_s(context),
            )
        except errors.MailraftError as error:
            await errors.abort(context, error)
        return control_pb2.ChangeMembersResponse(index=index)

    async def HandOver(  # noqa: N802  # the name of the RPC
        self, request: control_pb2.HandOverRequest, context: Context
    ) -> control_pb2.HandOverResponse:
        await refuse_stranger(context, self._view)
        try:
            self._leading(request.group)
            deadline_s = now_s() + _timeout_s(context)
            if not await self._runtime.transfer(
                request.group, request.replica_id, deadline_s=deadline_s
            ):
                raise errors.ReplicaLaggingError(f"shard {request.group}: nobody took over in time")
        except errors.MailraftError as error:
            await errors.abort(context, error)
        return control_pb2.HandOverResponse()

    # ---- inside ----------------------------------------------------------------------------------

    def _leading(self, group: GroupId) -> Replica:
        replica = self._replicas.get(group)
        if replica is None:
            raise errors.ShardNotFoundError(f"no replica of shard {group} is here")
        if not replica.leadership.leading:
            raise replica.not_leader()
        return replica

    def _report(self, replica: Replica) -> control_pb2.ReplicaReport:
        group = replica.group
        told = control_pb2.ReplicaReport(
            group=group,
            replica_id=replica.replica,
            stopped=replica.stopped,
            leading=replica.leadership.leading,
            leader=replica.leadership.leader,
            term=replica.leadership.term,
            applied_index=replica.applied_index,
            differing=sorted(self._digests.differing(group)),
            fetching=self._healing.repairs.is_fetching(group),
        )
        status, configuration = self._host.status(group), self._host.configuration(group)
        if status is None or configuration is None:
            return told
        told.last_index = status.last_index
        told.configuration.CopyFrom(
            raft_pb2.Configuration(
                format=1,
                version=configuration.version,
                voters=configuration.voters,
                learners=configuration.learners,
            )
        )
        committed = self._host.configuration_at(group, status.commit_index)
        told.configuration_committed = committed == configuration
        for other, index in sorted(self._host.progress(group).items()):
            told.progress.add(replica_id=other, match_index=index)
        return told


def _timeout_s(context: Context) -> float:
    remaining_s: float | None = context.time_remaining()
    return DEADLINE_MAX_S if remaining_s is None else min(remaining_s * 0.9, DEADLINE_MAX_S)

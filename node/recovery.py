"""What is left of groups that lost their majority, and how one replica goes on alone.

Nothing here decides: an operator does, with the answers of all nodes (cluster/recovery.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from mailraft.internal.v1 import record_pb2, recovery_service_pb2, recovery_service_pb2_grpc
from mailraft.node import forcing
from mailraft.node.consensus.host import Host
from mailraft.node.engine import keys
from mailraft.node.engine.records import encode_configuration
from mailraft.node.hosting import Hosting
from mailraft.node.interfaces import ClusterView, Configuration, GroupId, ReplicaId
from mailraft.node.runtime import Runtime, now_s
from mailraft.node.shard import Replica
from mailraft.wire import errors

# A leader that was heard within this may be there: several election timeouts.
HEARD_LATELY_S = 5.0

Context = grpc.aio.ServicerContext[Any, Any]


class RecoveryService(recovery_service_pb2_grpc.RecoveryServiceServicer):
    """Implements RecoveryService of mailraft.internal.v1."""

    def __init__(
        self,
        view: ClusterView,
        host: Host,
        runtime: Runtime,
        hosting: Hosting,
        replicas: Mapping[GroupId, Replica],
        version: str,
    ) -> None:
        self._view, self._host, self._runtime = view, host, runtime
        self._hosting, self._replicas, self._version = hosting, replicas, version

    async def Survey(  # noqa: N802  # the name of the RPC
        self, request: recovery_service_pb2.SurveyRequest, context: Context
    ) -> recovery_service_pb2.SurveyResponse:
        await self._refuse_other_cluster(request.cluster_id, context)
        return recovery_service_pb2.SurveyResponse(
            node_id=self._view.node,
            version=self._version,
            epoch=self._view.epoch,
            replicas=[self._surveyed(each) for each in self._replicas.values()],
        )

    async def Force(  # noqa: N802  # the name of the RPC
        self, request: recovery_service_pb2.ForceRequest, context: Context
    ) -> recovery_service_pb2.ForceResponse:
        await self._refuse_other_cluster(request.cluster_id, context)
        outcome: list[Configuration | errors.MailraftError] = []
        # What is checked is still so when it is done: both are between the same two turns.
        await self._runtime.between_turns(lambda: outcome.append(self._forced(request)))
        [found] = outcome
        if not isinstance(found, Configuration):
            await errors.abort(context, found)
        await self._runtime.flushed()
        return recovery_service_pb2.ForceResponse(
            replica_id=found.voters[0], configuration=encode_configuration(found)
        )

    # ---- inside ----------------------------------------------------------------------------------

    async def _refuse_other_cluster(self, cluster_id: str, context: Context) -> None:
        if cluster_id != self._view.cluster_id:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this is another cluster")

    def _surveyed(self, replica: Replica) -> recovery_service_pb2.SurveyedReplica:
        told = recovery_service_pb2.SurveyedReplica(
            group=replica.group,
            replica_id=replica.replica,
            stopped=replica.stopped,
        )
        status = self._host.status(replica.group)
        configuration = self._host.configuration(replica.group)
        position = self._host.position(replica.group, replica.applied_index)
        if status is None or configuration is None or position is None:
            told.stopped = True
            return told
        told.amnesic = position.amnesic
        told.configuration.CopyFrom(encode_configuration(configuration))
        told.term, told.commit_index = status.term, status.commit_index
        told.last_term, told.last_index = self._host.log_end(replica.group)
        told.leader = self._leader(replica.group)
        heard_s = now_s() - self._host.leader_heard_s(replica.group)
        told.leader_heard_ms = 0 if status.leading else max(0, round(heard_s * 1000))
        clock = replica.view.get(keys.SHARD_CLOCK)
        if clock is not None:
            told.clock_ms = record_pb2.ClockRecord.FromString(clock).clock_ms
        return told

    def _leader(self, group: GroupId) -> ReplicaId:
        """0: none was heard lately. A replica that hears nobody does not forget whom it heard."""
        status = self._host.status(group)
        if status is None:
            return 0
        heard = now_s() - self._host.leader_heard_s(group) < HEARD_LATELY_S
        return status.leader if status.leading or heard else 0

    def _check(self, request: recovery_service_pb2.ForceRequest) -> None:
        """Raises why the replica may not be forced."""
        group, replica = request.group, self._replicas.get(request.group)
        if replica is None:
            raise errors.ShardNotFoundError(f"no replica of shard {group} is here")
        if replica.replica != request.replica_id:
            raise errors.ReplicaNotFoundError(
                f"the replica of shard {group} here is {replica.replica:#x}"
            )
        if replica.stopped or self._host.status(group) is None:
            raise errors.JobConflictError(f"the replica of shard {group} here is stopped")
        leader = self._leader(group)
        if leader:
            raise errors.JobConflictError(f"shard {group} has a leader, {leader:#x}")
        if not forcing.has_successor(replica.replica):
            raise errors.JobConflictError(f"replica {replica.replica:#x} was forced too often")
        end = self._host.log_end(group)
        if end != (request.last_term, request.last_index):
            raise errors.JobConflictError(
                f"the log of shard {group} ends at {end[1]} now, not at {request.last_index}"
            )

    def _forced(
        self, request: recovery_service_pb2.ForceRequest
    ) -> Configuration | errors.MailraftError:
        """What is in force now, or why not: an exception here would be the runtime's."""
        known = self._host.configuration(request.group)
        if known is not None and _is_done(request, known):
            return known
        try:
            self._check(request)
        except errors.MailraftError as error:
            return error
        return self._hosting.force(request.group)


def _is_done(request: recovery_service_pb2.ForceRequest, known: Configuration) -> bool:
    return known.voters == (forcing.successor(request.replica_id),)

"""Groups that lost the majority of their voters for good: which replica goes on, what may be lost.

`plan` is pure. What a group has acknowledged is on a majority of its voters. Of the replicas that
are left, the one whose log ends highest (term, then index) holds all that any of them knows to be
committed (Raft section 5.4.1); what only the lost ones had, nobody can tell.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from mailraft.cluster.errors import ClusterError, ExitCode
from mailraft.cluster.operator import Operator
from mailraft.internal.v1 import recovery_service_pb2 as pb
from mailraft.internal.v1 import recovery_service_pb2_grpc
from mailraft.node import forcing
from mailraft.node.interfaces import META_GROUP, GroupId, ReplicaId, node_of
from mailraft.v1 import cluster_pb2, cluster_pb2_grpc
from mailraft.wire import errors
from mailraft.wire.credentials import AnyCredentials, open_channel

ASK_S_MAX = 5.0
FORCE_S_MAX = 20.0
# A group of one elects itself, and the controller writes it into the map, within this.
SETTLED_S_MAX = 60.0
LOOK_EVERY_S = 0.5

Told = Mapping[int, pb.SurveyResponse]


class NotRecoveredError(ClusterError):
    """A group was forced, and it does not serve yet."""

    exit_code = ExitCode.UNAVAILABLE
    reason = "NOT_RECOVERED"


@dataclass(frozen=True, slots=True)
class Lost:
    """A group that cannot elect anybody. survivor None: nothing of it is left."""

    group: GroupId
    voters: tuple[ReplicaId, ...]
    able: int  # voters that could still vote
    survivor: pb.SurveyedReplica | None
    # The other replicas that answered, by how much less they have than the survivor.
    others: Mapping[ReplicaId, int]
    committed: int  # up to where anybody that is left knows that the log is committed

    @property
    def given_up(self) -> list[int]:
        """Nodes whose replicas never count again, though some of them may answer."""
        kept = node_of(self.survivor.replica_id) if self.survivor is not None else 0
        members = {node_of(each) for each in (*self.voters, *self.others)}
        return sorted(members - {kept})


@dataclass(frozen=True, slots=True)
class Plan:
    """The meta group first: without it nobody can be told of the others."""

    map: cluster_pb2.ClusterMap
    lost: Sequence[Lost]
    silent: Sequence[int]  # nodes that do not answer

    @property
    def recoverable(self) -> list[Lost]:
        return [each for each in self.lost if each.survivor is not None]

    @property
    def given_up(self) -> list[int]:
        """Nodes whose replicas are given up by this plan."""
        return sorted({node for each in self.recoverable for node in each.given_up})

    def name(self, node: int) -> str:
        found = (each.name for each in self.map.nodes if each.id == node)
        return next(found, f"node {node}")


def plan(cluster_map: cluster_pb2.ClusterMap, told: Told) -> Plan:
    """What to do, from the newest map that is left and from what the nodes told."""
    there = [each for each in cluster_map.nodes if each.state != cluster_pb2.NODE_STATE_REMOVED]
    groups = [cluster_map.meta, *cluster_map.shards]
    found = [_judged(shard, told) for shard in groups]
    return Plan(
        cluster_map,
        [each for each in found if each is not None],
        [node.id for node in there if node.id not in told],
    )


def _judged(shard: cluster_pb2.Shard, told: Told) -> Lost | None:
    """None: it has a leader, or can elect one."""
    replicas = [
        each for node in sorted(told) for each in told[node].replicas if each.group == shard.id
    ]
    running = [each for each in replicas if not each.stopped]
    if any(each.leader for each in running):
        return None
    newest = max(running, key=lambda each: each.configuration.version, default=None)
    version, voters = shard.configuration_version, [each.replica_id for each in shard.replicas]
    if newest is not None and newest.configuration.version >= version:
        version, voters = newest.configuration.version, list(newest.configuration.voters)
    able = [each for each in running if each.replica_id in voters and not each.amnesic]
    if len(able) > len(voters) // 2:
        return None
    # Who missed that the group was forced before has a history that was given up then.
    line = forcing.times_forced(version)
    left = [e for e in running if forcing.times_forced(e.configuration.version) == line]
    best = max(left, key=_log_end, default=None)
    if best is not None and not best.last_term:
        best = None  # nothing was ever in it: an empty disk
    behind = {
        each.replica_id: best.last_index - each.last_index if best is not None else 0
        for each in replicas
        if best is None or each.replica_id != best.replica_id
    }
    committed = max((each.commit_index for each in left), default=0)
    return Lost(shard.id, tuple(voters), len(able), best, behind, committed)


def _log_end(replica: pb.SurveyedReplica) -> tuple[int, int, int]:
    return replica.last_term, replica.last_index, -replica.replica_id


# ---- asking and doing ----------------------------------------------------------------------------


class Recovery:
    """Keeps a channel to every node of a map. Made by `opened`."""

    def __init__(self, cluster_map: cluster_pb2.ClusterMap, channels: Mapping[int, Any]) -> None:
        self._map, self._channels = cluster_map, channels

    async def look(self) -> Plan:
        """Ask every node, and plan by the newest map among them."""
        told = await self._survey()
        newest = max(told.values(), key=lambda each: each.epoch, default=None)
        if newest is None:
            raise errors.QuorumUnavailableError("no node answers")
        if newest.epoch > self._map.epoch:
            self._map = await self._map_of(newest.node_id)
        return plan(self._map, told)

    async def force(self, lost: Lost) -> None:
        """Let its survivor go on alone, and wait until that is in the map and serves.

        Raises JobConflictError if anything is no more as it was planned, NotRecoveredError.
        """
        assert lost.survivor is not None
        node = node_of(lost.survivor.replica_id)
        request = pb.ForceRequest(
            cluster_id=self._map.cluster_id,
            group=lost.group,
            replica_id=lost.survivor.replica_id,
            last_index=lost.survivor.last_index,
            last_term=lost.survivor.last_term,
        )
        stub = recovery_service_pb2_grpc.RecoveryServiceStub(self._channels[node])
        try:
            answer = await stub.Force(request, timeout=FORCE_S_MAX)
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc_error(error) from None
        until_s = time.monotonic() + SETTLED_S_MAX
        while not await self._settled(node, lost.group, answer.replica_id):
            if time.monotonic() > until_s:
                raise NotRecoveredError(
                    f"shard {lost.group} was forced, and is not in the map after "
                    f"{SETTLED_S_MAX:.0f} s",
                    "see the log of its node, and run the command again",
                )
            await asyncio.sleep(LOOK_EVERY_S)

    async def _settled(self, node: int, group: GroupId, replica: ReplicaId) -> bool:
        """Whether a node leads a group alone, and its map says so."""
        try:
            shards = (current := await self._map_of(node)).shards
        except grpc.aio.AioRpcError:
            return False
        shard = current.meta if group == META_GROUP else _shard(shards, group)
        leads = shard.leader.replica_id == replica
        return leads and replica in {each.replica_id for each in shard.replicas}

    async def _map_of(self, node: int) -> cluster_pb2.ClusterMap:
        stub = cluster_pb2_grpc.ClusterServiceStub(self._channels[node])
        answer = await stub.GetClusterMap(cluster_pb2.GetClusterMapRequest(), timeout=ASK_S_MAX)
        told: cluster_pb2.ClusterMap = answer.map
        return told

    async def _survey(self) -> Told:
        request = pb.SurveyRequest(cluster_id=self._map.cluster_id)

        async def one(node: int) -> pb.SurveyResponse | None:
            stub = recovery_service_pb2_grpc.RecoveryServiceStub(self._channels[node])
            try:
                answer: pb.SurveyResponse = await stub.Survey(request, timeout=ASK_S_MAX)
            except grpc.aio.AioRpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return None
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    raise ClusterError(
                        f"node {node} runs a version that cannot tell what it has",
                        "bring it to this version first",
                    ) from None
                # It is there. Taken for dead it would be given up.
                raise errors.from_rpc_error(error) from None
            return answer

        answers = await asyncio.gather(*map(one, self._channels))
        return {each.node_id: each for each in answers if each is not None}


@asynccontextmanager
async def opened(operator: Operator, credentials: AnyCredentials) -> AsyncIterator[Recovery]:
    """For the cluster that the operator's process is of; that one's map names the nodes."""
    current = await operator.map()
    channels = {
        node.id: open_channel(node.address, credentials)
        for node in current.nodes
        if node.state != cluster_pb2.NODE_STATE_REMOVED
    }
    try:
        yield Recovery(current, channels)
    finally:
        await asyncio.gather(*(channel.close(None) for channel in channels.values()))


def _shard(shards: Sequence[cluster_pb2.Shard], number: GroupId) -> cluster_pb2.Shard:
    return next(each for each in shards if each.id == number)

"""AdminService: asks the meta group to decide, and leaves the doing to the controller."""

from __future__ import annotations

import contextlib

import grpc
from google.protobuf.message import Message

from mailraft.cluster.control import node_jobs
from mailraft.cluster.control.driver import Controller
from mailraft.cluster.control.jobs import Jobs
from mailraft.cluster.control.metagroup import MetaGroup, fingerprint
from mailraft.cluster.control.observed import Observed
from mailraft.cluster.control.overview import overview
from mailraft.cluster.control.upgrades import enabled, level_to_enable
from mailraft.cluster.meta import settings, state
from mailraft.cluster.topology import Node, PlacementError, Topology
from mailraft.internal.v1 import control_pb2, meta_pb2
from mailraft.node.interfaces import node_of
from mailraft.node.services.base import Call, Service
from mailraft.v1 import admin_pb2, cluster_pb2, job_pb2
from mailraft.wire import errors

MOVES_TOLD_MAX = 1_000
FINALIZE_TRIES = 3
HAND_OVER_DEADLINE_S = 2.5  # less than a try of an operator takes: it is not asked for twice


class Admin:
    def __init__(self, meta: MetaGroup, controller: Controller, jobs: Jobs) -> None:
        self._meta, self._controller, self._jobs = meta, controller, jobs

    def service(self) -> Service:
        return Service(
            admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
            unary={
                "GetClusterStatus": self.GetClusterStatus,
                "AddNode": self.AddNode,
                "DrainNode": self.DrainNode,
                "UndrainNode": self.UndrainNode,
                "DecommissionNode": self.DecommissionNode,
                "RemoveNode": self.RemoveNode,
                "TransferLeadership": self.TransferLeadership,
                "MoveShard": self.MoveShard,
                "Rebalance": self.Rebalance,
                "GetSettings": self.GetSettings,
                "UpdateSettings": self.UpdateSettings,
                "FinalizeUpgrade": self.FinalizeUpgrade,
            },
        )

    async def GetClusterStatus(
        self, request: admin_pb2.GetClusterStatusRequest, call: Call
    ) -> admin_pb2.GetClusterStatusResponse:
        return overview(self._seen())

    # ---- nodes

    async def AddNode(
        self, request: admin_pb2.AddNodeRequest, call: Call
    ) -> admin_pb2.AddNodeResponse:
        command = meta_pb2.MetaCommand(admit_node=meta_pb2.AdmitNode(node=request.node))
        reply = await self._decide(request, command, call)
        return admin_pb2.AddNodeResponse(node=reply.node, epoch=reply.epoch)

    async def DrainNode(
        self, request: admin_pb2.DrainNodeRequest, call: Call
    ) -> admin_pb2.DrainNodeResponse:
        spec = job_pb2.JobSpec(drain=job_pb2.DrainSpec(node_id=request.node_id))
        reply = await self._begin(request, spec, call)
        return admin_pb2.DrainNodeResponse(job=reply.job.job, epoch=reply.epoch)

    async def UndrainNode(
        self, request: admin_pb2.UndrainNodeRequest, call: Call
    ) -> admin_pb2.UndrainNodeResponse:
        view = await self._meta.read(deadline_s=call.deadline_s)
        found = state.node(view, request.node_id)
        if found is not None and found.state == cluster_pb2.NODE_STATE_DECOMMISSIONING:
            raise errors.JobConflictError(
                f"node {found.id} is being decommissioned: cancel that job instead"
            )
        set_state = meta_pb2.SetNodeState(
            node_id=request.node_id, state=cluster_pb2.NODE_STATE_ACTIVE
        )
        reply = await self._decide(request, meta_pb2.MetaCommand(set_node_state=set_state), call)
        return admin_pb2.UndrainNodeResponse(node=reply.node, epoch=reply.epoch)

    async def DecommissionNode(
        self, request: admin_pb2.DecommissionNodeRequest, call: Call
    ) -> admin_pb2.DecommissionNodeResponse:
        await self._check_enough_without(request.node_id, call)
        spec = job_pb2.JobSpec(decommission=job_pb2.DecommissionSpec(node_id=request.node_id))
        reply = await self._begin(request, spec, call)
        return admin_pb2.DecommissionNodeResponse(job=reply.job.job, epoch=reply.epoch)

    async def RemoveNode(
        self, request: admin_pb2.RemoveNodeRequest, call: Call
    ) -> admin_pb2.RemoveNodeResponse:
        seen = self._seen()
        if seen.node(request.node_id) is None:
            raise errors.NodeNotFoundError(f"there is no node {request.node_id}")
        if seen.heard(request.node_id):
            raise errors.NodeReachableError(
                f"node {request.node_id} was heard {seen.silent_s[request.node_id]:.1f} s ago: "
                "decommission it instead"
            )
        for group in seen.groups:
            _check_majority_without(seen, group, request.node_id)
        await self._check_enough_without(request.node_id, call)
        spec = job_pb2.JobSpec(decommission=job_pb2.DecommissionSpec(node_id=request.node_id))
        reply = await self._begin(request, spec, call)
        view = await self._meta.read(deadline_s=call.deadline_s)
        return admin_pb2.RemoveNodeResponse(
            node=state.node(view, request.node_id), epoch=reply.epoch
        )

    # ---- shards

    async def TransferLeadership(
        self, request: admin_pb2.TransferLeadershipRequest, call: Call
    ) -> admin_pb2.TransferLeadershipResponse:
        seen = self._seen()
        group = seen.group(request.shard)
        if group is None:
            raise errors.ShardNotFoundError(f"there is no shard {request.shard}")
        leader = seen.leader(request.shard)
        if leader is None:
            raise errors.NoLeaderError(f"shard {request.shard} has no leader now")
        to = request.to_replica_id
        if to and to not in leader.configuration.voters:
            raise errors.ReplicaNotFoundError(f"shard {request.shard} has no voter {to}")
        if not request.validate_only and to != leader.replica_id:
            hand_over = control_pb2.HandOverRequest(group=request.shard, replica_id=to)
            try:
                await self._controller.stub(node_of(leader.replica_id)).HandOver(
                    hand_over, timeout=HAND_OVER_DEADLINE_S
                )
            except grpc.aio.AioRpcError as error:
                raise errors.from_rpc_error(error) from None
        hint = cluster_pb2.LeaderHint(shard=request.shard, replica_id=to, node_id=node_of(to))
        return admin_pb2.TransferLeadershipResponse(leader=hint)

    async def MoveShard(
        self, request: admin_pb2.MoveShardRequest, call: Call
    ) -> admin_pb2.MoveShardResponse:
        spec = job_pb2.JobSpec(move=self._jobs.placed(request.move))
        reply = await self._begin(request, spec, call)
        return admin_pb2.MoveShardResponse(job=reply.job.job, epoch=reply.epoch)

    async def Rebalance(
        self, request: admin_pb2.RebalanceRequest, call: Call
    ) -> admin_pb2.RebalanceResponse:
        spec = job_pb2.JobSpec(rebalance=request.rebalance)
        seen = await self._look(call)
        planned = [] if request.rebalance.leaders_only else node_jobs.wanted_moves(seen)
        reply = await self._begin(request, spec, call)
        told = [node_jobs.spec_of(each).move for each in planned[:MOVES_TOLD_MAX]]
        return admin_pb2.RebalanceResponse(job=reply.job.job, moves=told, epoch=reply.epoch)

    # ---- settings

    async def GetSettings(
        self, request: admin_pb2.GetSettingsRequest, call: Call
    ) -> admin_pb2.GetSettingsResponse:
        view = await self._meta.read(deadline_s=call.deadline_s)
        head = state.head(view)
        if head is None:
            raise errors.NoLeaderError("the cluster is not bootstrapped yet")
        return admin_pb2.GetSettingsResponse(settings=settings.told(head), epoch=head.epoch)

    async def UpdateSettings(
        self, request: admin_pb2.UpdateSettingsRequest, call: Call
    ) -> admin_pb2.UpdateSettingsResponse:
        change = meta_pb2.ChangeSettings(
            settings=request.settings, fields=request.update_mask.paths
        )
        reply = await self._decide(request, meta_pb2.MetaCommand(change_settings=change), call)
        return admin_pb2.UpdateSettingsResponse(settings=reply.settings)

    # ---- versions

    async def FinalizeUpgrade(
        self, request: admin_pb2.FinalizeUpgradeRequest, call: Call
    ) -> admin_pb2.FinalizeUpgradeResponse:
        for _ in range(FINALIZE_TRIES):
            seen = await self._look(call)
            level = level_to_enable(seen, request.feature_level)
            if level == enabled(seen):
                break
            # Of the nodes that were asked: none was admitted, or told another version, since then.
            enable = meta_pb2.EnableLevel(feature_level=level)
            command = meta_pb2.MetaCommand(enable_level=enable, if_epoch=seen.map.epoch)
            with contextlib.suppress(errors.EpochMismatchError):
                await self._decide(request, command, call)
                await self._look(call)  # so that a status asked from now on shows it
                break
        else:
            raise errors.NoLeaderError("the map changes all the time: ask again")
        return admin_pb2.FinalizeUpgradeResponse(feature_level=level)

    # ---- inside

    async def _begin(
        self, request: Message, spec: job_pb2.JobSpec, call: Call
    ) -> meta_pb2.MetaReply:
        begin = meta_pb2.BeginJob(spec=spec)
        return await self._decide(request, meta_pb2.MetaCommand(begin_job=begin), call)

    async def _decide(
        self, request: Message, command: meta_pb2.MetaCommand, call: Call
    ) -> meta_pb2.MetaReply:
        """Propose it, or only look what it would do (validate_only)."""
        command.request_id = request.request_id  # type: ignore[attr-defined]  # each has it
        command.fingerprint = fingerprint(request)
        command.if_epoch = command.if_epoch or getattr(request, "if_epoch", 0)
        if request.validate_only:  # type: ignore[attr-defined]
            return await self._meta.preview(command, deadline_s=call.deadline_s)
        return await self._meta.propose(command, deadline_s=call.deadline_s)

    def _seen(self) -> Observed:
        self._meta.check_leads()
        return _known(self._controller.seen)

    async def _look(self, call: Call) -> Observed:
        """As `_seen`, and no older than the call."""
        self._meta.check_leads()
        return _known(await self._controller.look(deadline_s=call.deadline_s))

    async def _check_enough_without(self, number: int, call: Call) -> None:
        view = await self._meta.read(deadline_s=call.deadline_s)
        head = state.head(view)
        rest = [Node.of(each) for each in state.nodes(view) if each.id != number]
        hosts = {node.host_key for node in rest if node.holds}
        held = max((len(each.replicas) for each in state.shards(view)), default=1)
        needed = min(held, head.settings.replicas_per_shard if head is not None else held)
        try:
            if len(hosts) < needed:
                raise PlacementError(f"{len(hosts)} hosts")
            Topology(rest, needed)
        except PlacementError as error:
            raise errors.NotEnoughNodesError(
                f"without node {number} the others cannot hold {needed} replicas apart: {error}"
            ) from None


def _known(seen: Observed | None) -> Observed:
    if seen is None:
        raise errors.NoLeaderError("the controller does not know the nodes yet: ask again")
    return seen


def _check_majority_without(seen: Observed, group: cluster_pb2.Shard, gone: int) -> None:
    voters = [
        each.node_id for each in group.replicas if each.role == cluster_pb2.REPLICA_ROLE_VOTER
    ]
    left = [node for node in voters if node != gone and seen.heard(node)]
    if gone in voters and len(left) <= len(voters) // 2:
        raise errors.QuorumUnavailableError(
            f"shard {group.id} has {len(left)} of {len(voters)} voters without node {gone}: "
            "it could not agree to replace it"
        )

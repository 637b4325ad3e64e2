"""What an operator does to a cluster, as calls: for the CLI, the local cluster and rehearsals.

Talks to a router, which finds who leads the meta group. Every call is safe to try again, and is,
until its deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from mailraft.client.ids import RequestIds
from mailraft.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    cluster_pb2,
    cluster_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
)
from mailraft.wire import errors
from mailraft.wire.channels import Channels
from mailraft.wire.credentials import AnyCredentials

DEADLINE_S = 10.0
TRY_S = 3.0
PAUSE_S = 0.2
FINISHED = (job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)
_PAGE = 1_000


class Operator:
    """async with Operator(address, credentials) as operator: ...

    Methods raise MailraftError, with the reasons that admin.proto and job.proto name.
    validate: check and tell what would be, and change nothing.
    """

    def __init__(
        self, address: str, credentials: AnyCredentials, *, deadline_s: float = DEADLINE_S
    ) -> None:
        self._deadline_s = deadline_s
        self._address, self._channels = address, Channels(credentials)
        self._ids = RequestIds()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._channels.close()

    # ---- what there is

    async def map(self) -> cluster_pb2.ClusterMap:
        """The map with the leaders that are known."""
        call = cluster_pb2_grpc.ClusterServiceStub, "GetClusterMap"
        answer = await self._call(*call, cluster_pb2.GetClusterMapRequest())
        told: cluster_pb2.ClusterMap = answer.map
        return told

    async def status(self) -> admin_pb2.GetClusterStatusResponse:
        """How everything does, as the meta group's leader hears it."""
        call = admin_pb2_grpc.AdminServiceStub, "GetClusterStatus"
        told: admin_pb2.GetClusterStatusResponse = await self._call(
            *call, admin_pb2.GetClusterStatusRequest()
        )
        return told

    async def newest_map(self, *, deadline_s: float = DEADLINE_S) -> cluster_pb2.ClusterMap:
        """The map with all that the meta group had decided when this was called."""
        call = admin_pb2_grpc.AdminServiceStub, "GetSettings"
        epoch = (await self._call(*call, admin_pb2.GetSettingsRequest())).epoch
        until_s = time.monotonic() + deadline_s
        while (told := await self.map()).epoch < epoch:
            if time.monotonic() > until_s:
                raise errors.DeadlineExceededError(f"the map is at {told.epoch}, not {epoch}")
            await asyncio.sleep(PAUSE_S)
        return told

    # ---- nodes

    async def add_node(self, node: cluster_pb2.Node, *, validate: bool = False) -> cluster_pb2.Node:
        """The node with its number; the same name and address are the same node."""
        answer = await self._admin("AddNode", admin_pb2.AddNodeRequest(node=node), validate)
        told: cluster_pb2.Node = answer.node
        return told

    async def drain(self, node: int, *, validate: bool = False) -> job_pb2.Job:
        answer = await self._admin("DrainNode", admin_pb2.DrainNodeRequest(node_id=node), validate)
        return _job(answer)

    async def undrain(self, node: int, *, validate: bool = False) -> cluster_pb2.Node:
        request = admin_pb2.UndrainNodeRequest(node_id=node)
        told: cluster_pb2.Node = (await self._admin("UndrainNode", request, validate)).node
        return told

    async def decommission(self, node: int, *, validate: bool = False) -> job_pb2.Job:
        request = admin_pb2.DecommissionNodeRequest(node_id=node)
        return _job(await self._admin("DecommissionNode", request, validate))

    async def remove(self, node: int, *, validate: bool = False) -> cluster_pb2.Node:
        """Of a node that is lost for good."""
        request = admin_pb2.RemoveNodeRequest(node_id=node)
        told: cluster_pb2.Node = (await self._admin("RemoveNode", request, validate)).node
        return told

    # ---- shards

    async def move(self, shard: int, source: int, to: int = 0, *, validate: bool = False) -> Any:
        """The job; to: 0 lets placement choose."""
        spec = job_pb2.MoveSpec(shard=shard, from_node_id=source, to_node_id=to)
        return _job(await self._admin("MoveShard", admin_pb2.MoveShardRequest(move=spec), validate))

    async def transfer(self, shard: int, replica: int = 0, *, validate: bool = False) -> None:
        """Hand leadership over; replica 0: to whoever is furthest ahead."""
        request = admin_pb2.TransferLeadershipRequest(shard=shard, to_replica_id=replica)
        await self._admin("TransferLeadership", request, validate)

    async def rebalance(
        self, *, concurrent: int = 0, leaders_only: bool = False, validate: bool = False
    ) -> admin_pb2.RebalanceResponse:
        spec = job_pb2.RebalanceSpec(concurrent_moves=concurrent, leaders_only=leaders_only)
        told: admin_pb2.RebalanceResponse = await self._admin(
            "Rebalance", admin_pb2.RebalanceRequest(rebalance=spec), validate
        )
        return told

    # ---- versions

    async def finalize(self, feature_level: int = 0, *, validate: bool = False) -> int:
        """Enable a feature level, 0: the highest that all nodes understand; that in force then."""
        request = admin_pb2.FinalizeUpgradeRequest(feature_level=feature_level)
        told: int = (await self._admin("FinalizeUpgrade", request, validate)).feature_level
        return told

    # ---- settings

    async def settings(self) -> admin_pb2.Settings:
        call = admin_pb2_grpc.AdminServiceStub, "GetSettings"
        told: admin_pb2.Settings = (
            await self._call(*call, admin_pb2.GetSettingsRequest())
        ).settings
        return told

    async def change_settings(
        self, wanted: admin_pb2.Settings, fields: list[str], *, validate: bool = False
    ) -> admin_pb2.Settings:
        request = admin_pb2.UpdateSettingsRequest(
            settings=wanted, update_mask=FieldMask(paths=fields)
        )
        told: admin_pb2.Settings = (await self._admin("UpdateSettings", request, validate)).settings
        return told

    # ---- jobs

    async def job(self, job_id: str) -> job_pb2.Job:
        request = job_pb2.GetJobRequest(job_id=job_id)
        return _job(await self._call(job_pb2_grpc.JobServiceStub, "GetJob", request))

    async def jobs(self, *, open_only: bool = False, parent: str = "") -> list[job_pb2.Job]:
        """Newest first."""
        states = [each for each in job_pb2.JobState.values() if each and each not in FINISHED]
        request = job_pb2.ListJobsRequest(
            page_size=_PAGE, states=states if open_only else [], parent_job_id=parent
        )
        call = job_pb2_grpc.JobServiceStub, "ListJobs"
        return [each async for page in self._pages(*call, request) for each in page.jobs]

    async def cancel(self, job_id: str) -> job_pb2.Job:
        request = job_pb2.CancelJobRequest(job_id=job_id, request_id=self._ids.next())
        return _job(await self._call(job_pb2_grpc.JobServiceStub, "CancelJob", request))

    async def watch(self, job_id: str, *, deadline_s: float) -> AsyncIterator[job_pb2.Job]:
        """The job as it is and as it changes, until it is finished; goes on at the next leader.

        Raises DeadlineExceededError.
        """
        until_s, told = time.monotonic() + deadline_s, -1
        while True:
            job = await self.job(job_id)
            if job.version > told:
                told = job.version
                yield job
            if job.state in FINISHED:
                return
            if time.monotonic() > until_s:
                raise errors.DeadlineExceededError(f"job {job_id} goes on: {job.activity}")
            await asyncio.sleep(PAUSE_S)

    async def finished(self, job_id: str, *, deadline_s: float) -> job_pb2.Job:
        """Wait for the end of a job; how it ended. Raises DeadlineExceededError."""
        return [job async for job in self.watch(job_id, deadline_s=deadline_s)][-1]

    # ---- inside

    async def _admin(self, name: str, request: Any, validate: bool) -> Any:
        request.request_id, request.validate_only = self._ids.next(), validate
        return await self._call(admin_pb2_grpc.AdminServiceStub, name, request)

    async def _pages(self, kind: Any, name: str, request: Any) -> AsyncIterator[Any]:
        while True:
            page = await self._call(kind, name, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def _call(self, kind: Any, name: str, request: Message) -> Any:
        """One call, tried again as its error allows."""
        until_s = time.monotonic() + self._deadline_s
        while True:
            stub = kind(self._channels.to(self._address))
            left_s = until_s - time.monotonic()
            try:
                return await getattr(stub, name)(request, timeout=max(0.1, min(left_s, TRY_S)))
            except grpc.aio.AioRpcError as error:
                failed = errors.from_rpc_error(error)
            if not _passes(failed):
                raise failed
            if time.monotonic() + PAUSE_S > until_s:
                raise _late(failed, self._deadline_s)
            await asyncio.sleep(PAUSE_S)


def _passes(error: errors.MailraftError) -> bool:
    """Whether the same call may do better later: every mutation has its request_id."""
    return error.retryable or isinstance(
        error, errors.UnavailableError | errors.DeadlineExceededError
    )


def _late(error: errors.MailraftError, deadline_s: float) -> errors.MailraftError:
    """A server that was too slow tells nothing itself: gRPC's own words are no help."""
    if isinstance(error, errors.TimedOutError) and not error.reason:
        return errors.DeadlineExceededError(f"no answer within {deadline_s:.0f} s")
    return error


def _job(answer: Any) -> job_pb2.Job:
    job: job_pb2.Job = answer.job
    return job

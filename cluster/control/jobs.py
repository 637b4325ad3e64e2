"""JobService: begin, look at, cancel and watch what outlasts a call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from mailraft.cluster.control import node_jobs
from mailraft.cluster.control.driver import Controller
from mailraft.cluster.control.metagroup import MetaGroup, fingerprint
from mailraft.cluster.meta import state
from mailraft.internal.v1 import meta_pb2
from mailraft.node.services import validate
from mailraft.node.services.base import Call, Service
from mailraft.v1 import job_pb2
from mailraft.wire import errors, tokens

HEARTBEAT_S = 15.0


class Jobs:
    def __init__(
        self, meta: MetaGroup, controller: Controller, *, now_s: Callable[[], float]
    ) -> None:
        self._meta, self._controller, self._now_s = meta, controller, now_s

    def service(self) -> Service:
        return Service(
            job_pb2.DESCRIPTOR.services_by_name["JobService"],
            unary={
                "StartJob": self.StartJob,
                "GetJob": self.GetJob,
                "ListJobs": self.ListJobs,
                "CancelJob": self.CancelJob,
            },
            streams={"WatchJob": self.WatchJob},
        )

    async def StartJob(
        self, request: job_pb2.StartJobRequest, call: Call
    ) -> job_pb2.StartJobResponse:
        spec = job_pb2.JobSpec()
        spec.CopyFrom(request.spec)
        if spec.HasField("move"):
            spec.move.CopyFrom(self.placed(spec.move))
        command = meta_pb2.MetaCommand(
            begin_job=meta_pb2.BeginJob(spec=spec),
            request_id=request.request_id,
            fingerprint=fingerprint(request),
        )
        decide = self._meta.preview if request.validate_only else self._meta.propose
        reply = await decide(command, deadline_s=call.deadline_s)
        return job_pb2.StartJobResponse(job=reply.job.job)

    async def GetJob(self, request: job_pb2.GetJobRequest, call: Call) -> job_pb2.GetJobResponse:
        return job_pb2.GetJobResponse(job=await self._job(request.job_id, call))

    async def ListJobs(
        self, request: job_pb2.ListJobsRequest, call: Call
    ) -> job_pb2.ListJobsResponse:
        size = validate.page_size(request.page_size)
        bound = (
            "ListJobs",
            ",".join(str(each) for each in sorted(request.states)) + "/" + request.parent_job_id,
        )
        token = request.page_token
        before = int.from_bytes(tokens.open_page_token(token, bound)) if token else 0
        view = await self._meta.read(deadline_s=call.deadline_s)
        found = []
        for record in state.jobs(view, newest_first=True):
            job = record.job
            if before and state.job_number(job.id) >= before:
                continue
            if request.states and job.state not in request.states:
                continue
            if request.parent_job_id and job.parent_job_id != request.parent_job_id:
                continue
            found.append(job)
            if len(found) > size:
                break
        response = job_pb2.ListJobsResponse(jobs=found[:size])
        if len(found) > size:
            last = state.job_number(found[size - 1].id)
            response.next_page_token = tokens.page_token(bound, last.to_bytes(8))
        return response

    async def CancelJob(
        self, request: job_pb2.CancelJobRequest, call: Call
    ) -> job_pb2.CancelJobResponse:
        job = await self._job(request.job_id, call)
        job.state = job_pb2.JOB_STATE_CANCELLING
        command = meta_pb2.MetaCommand(
            advance_job=meta_pb2.AdvanceJob(job_id=job.id, expected_version=job.version, job=job),
            request_id=request.request_id,
            fingerprint=fingerprint(request),
        )
        reply = await self._meta.propose(command, deadline_s=call.deadline_s)
        return job_pb2.CancelJobResponse(job=reply.job.job)

    async def WatchJob(
        self, request: job_pb2.WatchJobRequest, call: Call
    ) -> AsyncIterator[job_pb2.WatchJobResponse]:
        job = await self._job(request.job_id, call)
        told, said_s = request.known_version, self._now_s()
        if job.version <= told:
            yield job_pb2.WatchJobResponse()  # it was heard: news may be long in coming
        while True:
            if job.version > told:
                told, said_s = job.version, self._now_s()
                yield job_pb2.WatchJobResponse(job=job)
            if job.state in state.FINISHED:
                return
            await self._meta.wait_applied(deadline_s=self._now_s() + 1.0)
            view = self._meta.local()
            record = state.job(view, request.job_id) if view is not None else None
            if not self._meta.leads or record is None:
                raise errors.NoLeaderError("the meta group's leader has changed: watch it there")
            job = record.job
            if self._now_s() - said_s > HEARTBEAT_S:
                said_s = self._now_s()
                yield job_pb2.WatchJobResponse()

    def placed(self, move: job_pb2.MoveSpec) -> job_pb2.MoveSpec:
        """The move with a target: that of placement, where none is named."""
        told = job_pb2.MoveSpec()
        told.CopyFrom(move)
        if told.to_node_id or not told.from_node_id:
            return told
        self._meta.check_leads()
        seen = self._controller.seen
        if seen is None:
            raise errors.NoLeaderError("the controller does not know the nodes yet: ask again")
        for wanted in node_jobs.wanted_moves(seen, without={told.from_node_id}):
            if (wanted.shard, wanted.remove) == (told.shard, told.from_node_id) and wanted.add:
                told.to_node_id = wanted.add
                return told
        raise errors.NotEnoughNodesError(
            f"no other node can take the replica of shard {told.shard} on node {told.from_node_id}"
        )

    async def _job(self, job_id: str, call: Call) -> job_pb2.Job:
        view = await self._meta.read(deadline_s=call.deadline_s)
        record = state.job(view, job_id)
        if record is None:
            raise errors.JobNotFoundError(f"there is no job {job_id!r}")
        return record.job

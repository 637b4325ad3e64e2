"""How a job is told to be: for all kinds of jobs, and only when there is news."""

from __future__ import annotations

from mailraft.cluster.control.observed import Advance
from mailraft.v1 import job_pb2


def advanced(job: job_pb2.Job, done: int, total: int, activity: str) -> Advance | None:
    """That a job runs and stands there; None where it says so already."""
    at = job.progress
    says = (at.steps_done, at.steps_total, job.activity)
    if job.state != job_pb2.JOB_STATE_PENDING and says == (done, total, activity):
        return None
    told = job_pb2.Job()
    told.CopyFrom(job)
    if told.state == job_pb2.JOB_STATE_PENDING:
        told.state = job_pb2.JOB_STATE_RUNNING
    told.progress.steps_done, told.progress.steps_total = done, total
    told.activity = activity
    return Advance(told, job.version)


def finished(
    job: job_pb2.Job, state: job_pb2.JobState.ValueType, activity: str = "", *, total: int = 0
) -> Advance:
    """How a job has ended. total: its steps, where it may end before it told them."""
    told = job_pb2.Job()
    told.CopyFrom(job)
    told.state, told.activity = state, activity
    if state == job_pb2.JOB_STATE_SUCCEEDED:
        steps = total or told.progress.steps_total
        told.progress.steps_done = told.progress.steps_total = steps
    return Advance(told, job.version)

"""mailraft job: work on the cluster that outlasts a command."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli.operating import (
    JOB_DEADLINE_S,
    DryRunOption,
    Session,
    TimeoutOption,
    operating,
)

if TYPE_CHECKING:
    from mailraft.cluster.picture import Picture
    from mailraft.v1 import job_pb2

app = typer.Typer(help="Jobs: list, show, cancel.", no_args_is_help=True, rich_markup_mode=None)

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Its id, as job list shows.")]
_HEADERS = ("JOB", "STATE", "STEPS", "TOOK", "WHAT")


@app.command("list")
@operating
async def list_(
    it: Session,
    open_only: Annotated[bool, typer.Option("--open", help="Only those that go on.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
) -> None:
    """List jobs, newest first. Finished ones are kept for 30 days.

    Example: mailraft job list --open
    """
    from mailraft.cluster.cli import describe

    picture = await it.picture()
    found = await it.operator.jobs(open_only=open_only)
    going_on = sum(describe.job_is_open(each) for each in found)
    line = f"jobs={len(found)} open={going_on}"
    line += f" shown={limit}" if len(found) > limit else ""
    it.tell(line, [describe.job(picture, each) for each in found[:limit]])
    it.table(_HEADERS, [_row(picture, each) for each in found[:limit]])


@app.command()
@operating
async def show(
    it: Session,
    job: JobArgument,
    wait: Annotated[bool, typer.Option("--wait", help="Show how it goes, until its end.")] = False,
    timeout: TimeoutOption = JOB_DEADLINE_S,
) -> None:
    """Show one job, what it found, and the jobs that it started.

    Example: mailraft job show j42 --wait
    """
    from mailraft.cluster.cli import describe

    picture = await it.picture()
    found = await it.operator.job(job)
    if wait and describe.job_is_open(found):
        found = await it.ended(found, describe.job_what(picture, found.spec), timeout)
    children = await it.operator.jobs(parent=job)
    described = describe.job(picture, found)
    told = [describe.job(picture, each) for each in children]
    it.tell(_line(picture, found), {**described, "jobs": told})
    it.table(("FINDING",), [(each.message,) for each in found.findings])
    it.table(_HEADERS, [_row(picture, each) for each in children])


@app.command()
@operating
async def cancel(it: Session, job: JobArgument, dry_run: DryRunOption = False) -> None:
    """Stop a job at the next point where nothing is left half done.

    Example: mailraft job cancel j42
    """
    from mailraft.cluster.cli import describe
    from mailraft.wire import errors

    picture = await it.picture()
    found = await it.operator.job(job)
    if not describe.job_is_open(found):
        raise errors.JobFinishedError(f"job {job} is finished: {describe.job_state(found)}")
    if not dry_run:
        found = await it.operator.cancel(job)
    what = describe.job_what(picture, found.spec)
    it.tell(f"{job} ({what}) stops", describe.job(picture, found), dry=dry_run)


def _line(picture: Picture, job: job_pb2.Job) -> str:
    from mailraft.cluster.cli import describe

    at = job.progress
    parts = [job.id, describe.job_state(job)]
    if at.steps_total:
        parts.append(f"steps={at.steps_done}/{at.steps_total}")
    if job.finished_time_ms:
        parts.append(f"took={describe.took_s(job):.1f}s")
    line = f"{' '.join(parts)}: {describe.job_what(picture, job.spec)}"
    doing = job.error.message or job.activity
    return f"{line}: {doing}" if doing else line


def _row(picture: Picture, job: job_pb2.Job) -> tuple[object, ...]:
    from mailraft.cluster.cli import describe

    at = job.progress
    steps = f"{at.steps_done}/{at.steps_total}" if at.steps_total else "-"
    took_s = describe.took_s(job)
    if not job.finished_time_ms:
        took_s = max(0.0, time.time() - job.created_time_ms / 1000)
    what = describe.job_what(picture, job.spec)
    parent = f" (of {job.parent_job_id})" if job.parent_job_id else ""
    return job.id, describe.job_state(job), steps, f"{took_s:.1f} s", what + parent

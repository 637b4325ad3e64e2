"""mailraft unsafe recover: go on without a majority that is lost for good."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import typer

from mailraft.cluster.cli.operating import DryRunOption, Session, operating
from mailraft.cluster.cli.output import Output
from mailraft.cluster.errors import NotConfirmedError

if TYPE_CHECKING:
    from mailraft.cluster.recovery import Lost, Plan

app = typer.Typer(help="What can lose mail: recover.", no_args_is_help=True, rich_markup_mode=None)


_MEANING = """
What was acknowledged up to COMMITTED is kept, and what is in the log above it counts as written.
What was acknowledged after NEWEST CHANGE, and only the other voters had, is lost: how much that
is, nobody that is left knows."""
_MAKE_SURE = """Make sure that
these nodes are stopped, or cannot come back with what is in their folders now."""


@app.command()
@operating
async def recover(it: Session, dry_run: DryRunOption = False) -> None:
    """Let shards go on that have lost the majority of their replicas for good. Can lose mail.

    Asks every node what is left, and tells of each shard without a majority, and of the meta group,
    which replica would go on, up to where, and what that may lose. Then it asks which nodes you
    give up: their replicas never count again, and they must not come back with their folders. See
    docs/runbooks/quorum-lost.md. It can be run again.

    Example: mailraft unsafe recover --dry-run
    """
    from mailraft.cluster import recovery
    from mailraft.cluster.cli import describe

    async with recovery.opened(it.operator, it.connection.credentials) as asked:
        planned = await asked.look()
        described = _described(planned)
        if not planned.lost:
            silent = ", ".join(map(planned.name, planned.silent))
            line = "nothing to recover: every shard has a leader or can elect one"
            it.tell(line + (f"; silent: {silent}" if silent else ""), described)
            return
        _tell_plan(it, planned)
        if dry_run or not planned.recoverable:
            line = f"would be: recovered {_names(planned.recoverable)}"
            it.tell(line if planned.recoverable else "nothing can be recovered", described)
            return
        _confirm(planned)
        began_s = time.monotonic()
        recovered = planned.recoverable
        for lost in recovered:
            if lost.group:
                await _end_moves(it, lost.group)
            await asked.force(lost)
            if it.output is Output.TABLE:
                typer.echo(f"{describe.shard_name(lost.group)} goes on")
    job = await _healing(it)
    line = f"recovered {_names(recovered)} in {time.monotonic() - began_s:.1f} s"
    it.tell(f"{line}; job {job} places new replicas where it can", {**described, "job": job})
    if it.output is Output.TABLE:
        _tell_what_next(planned)


def _tell_plan(it: Session, planned: Plan) -> None:
    from mailraft.cluster.cli import describe
    from mailraft.cluster.cli.backup import when
    from mailraft.node.interfaces import node_of

    if it.output is not Output.TABLE:
        return
    silent = ", ".join(map(planned.name, planned.silent)) or "none"
    typer.echo(f"nodes that do not answer: {silent}")
    rows: list[tuple[object, ...]] = []
    for lost in planned.lost:
        best = lost.survivor
        head = (describe.shard_name(lost.group), f"{lost.able}/{len(lost.voters)}")
        if best is None:
            rows.append((*head, "nobody", "-", "-", "-", "all of it"))
            continue
        rows.append(
            (
                *head,
                planned.name(node_of(best.replica_id)),
                f"{best.last_index} (term {best.last_term})",
                lost.committed,
                when(best.clock_ms) if best.clock_ms else "-",
                f"entries above {best.last_index}",
            )
        )
    headers = ("SHARD", "CAN VOTE", "GOES ON", "LOG ENDS", "COMMITTED", "NEWEST CHANGE", "MAY LOSE")
    it.table(headers, rows)
    typer.echo(_MEANING)
    for lost in planned.lost:
        if lost.survivor is None:
            name = describe.shard_name(lost.group)
            typer.echo(f"{name} is lost: no replica is left. Restore its accounts from a backup.")


def _confirm(planned: Plan) -> None:
    wanted = f"give up {' '.join(map(planned.name, planned.given_up))}"
    told = f"\nTheir replicas of {_names(planned.recoverable)} never count again. {_MAKE_SURE}"
    typer.echo(told, err=True)
    typed = typer.prompt(f"Type `{wanted}` to go on", default="", show_default=False, err=True)
    if " ".join(str(typed).split()) != wanted:
        raise NotConfirmedError("nothing was done", f"type exactly: {wanted}")


async def _end_moves(it: Session, group: int) -> None:
    """A move that began before has chosen replicas of the old group."""
    from mailraft.wire import errors

    for job in await it.operator.jobs(open_only=True):
        if job.spec.HasField("move") and job.spec.move.shard == group:
            with suppress(errors.JobFinishedError):
                await it.operator.cancel(job.id)


async def _healing(it: Session) -> str:
    """The job that gives shards their replicas back, as far as there are nodes for them."""
    from mailraft.v1 import job_pb2

    async def begin() -> job_pb2.Job:
        return (await it.operator.rebalance()).job

    spec = job_pb2.JobSpec(rebalance=job_pb2.RebalanceSpec())
    return (await it.begun(begin(), spec)).id


def _tell_what_next(planned: Plan) -> None:
    steps = []
    if planned.silent:
        steps.append("if fewer than three nodes are left, add some: mailraft node add ...")
        steps += [f"mailraft node remove {planned.name(n)} --force" for n in planned.silent]
    steps.append("mailraft rebalance start, once there are enough nodes")
    steps.append("mailraft cluster status: until nothing is under-replicated")
    for at, step in enumerate(steps, 1):
        typer.echo(f"  {at}. {step}")


def _names(found: list[Lost]) -> str:
    from mailraft.cluster.cli import describe

    return " ".join(describe.shard_name(each.group) for each in found)


def _described(planned: Plan) -> dict[str, object]:
    from mailraft.node.interfaces import node_of

    shards: list[dict[str, object]] = []
    for lost in planned.lost:
        best = lost.survivor
        told: dict[str, object] = {
            "shard": lost.group,
            "voters": len(lost.voters),
            "able": lost.able,
            "committed": lost.committed,
            "survivor": None,
        }
        if best is not None:
            told["survivor"] = {
                "node": planned.name(node_of(best.replica_id)),
                "last_index": best.last_index,
                "last_term": best.last_term,
                "newest_change_ms": best.clock_ms,
                "leader_heard_ms": best.leader_heard_ms,
            }
            told["others_behind"] = {
                planned.name(node_of(replica)): count for replica, count in lost.others.items()
            }
        shards.append(told)
    return {
        "silent": [planned.name(each) for each in planned.silent],
        "given_up": [planned.name(each) for each in planned.given_up],
        "shards": shards,
    }

"""What commands that operate a cluster have in common: the connection, --dry-run, and jobs."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, cast, get_type_hints

import typer

from mailraft.cluster.cli.connect import (
    CertsOption,
    Connection,
    InsecureOption,
    ServerOption,
    find,
)
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, emit_table, fail, guarded
from mailraft.cluster.cli.progress import steps
from mailraft.cluster.errors import ExitCode

if TYPE_CHECKING:
    from mailraft.cluster.operator import Operator
    from mailraft.cluster.picture import Picture
    from mailraft.v1 import job_pb2

JOB_DEADLINE_S = 3600.0


def shard_number(text: str) -> int:
    """As tables have it (s17, meta), or the number alone."""
    digits = "0" if text == "meta" else text.removeprefix("s")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 10):
        raise typer.BadParameter(f"{text!r} is no shard: give s17, 17 or meta")
    return int(digits)


NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="Its name or number.")]
ShardArgument = Annotated[
    int,
    typer.Argument(metavar="SHARD", parser=shard_number, help="For example s17; or meta."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Check, tell what would be, and change nothing.")
]
NoWaitOption = Annotated[
    bool, typer.Option("--no-wait", help="Print the job's id, and do not wait for its end.")
]
TimeoutOption = Annotated[
    float,
    typer.Option("--timeout", min=1, metavar="SECONDS", help="How long to wait for the job."),
]

P = ParamSpec("P")


class Session:
    """One command at work on a cluster."""

    def __init__(self, operator: Operator, connection: Connection, output: Output) -> None:
        self.operator, self.connection, self.output = operator, connection, output

    async def picture(self) -> Picture:
        from mailraft.cluster.picture import look

        return await look(self.operator)

    def tell(self, line: str, described: object, *, dry: bool = False) -> None:
        """The answer: one line, or one JSON document."""
        if self.output is Output.JSON:
            emit_json(described)
        else:
            typer.echo(f"would be: {line}" if dry else line)

    def table(self, headers: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
        """Below the line, for people only."""
        if self.output is Output.TABLE and rows:
            typer.echo()
            emit_table(headers, rows)

    async def begun(self, begin: Awaitable[job_pb2.Job], spec: job_pb2.JobSpec) -> job_pb2.Job:
        """The job that `begin` begins; the one that does the same already, if there is one."""
        from mailraft.wire import errors

        try:
            return await begin
        except errors.JobConflictError:
            for job in await self.operator.jobs(open_only=True):
                if job.spec == spec:
                    return job
            raise

    async def ended(self, job: job_pb2.Job, what: str, timeout_s: float) -> job_pb2.Job:
        """Wait for a job to succeed, showing how it goes. Leaves with an error if it does not."""
        from mailraft.v1 import job_pb2

        now = job
        try:
            with steps(what) as shown:
                async for now in self.operator.watch(job.id, deadline_s=timeout_s):
                    at = now.progress
                    shown.at(at.steps_done, at.steps_total, now.activity)
        except asyncio.CancelledError:
            typer.echo(
                f"\njob {job.id} goes on: `mailraft job show {job.id}` tells how it does, "
                f"`mailraft job cancel {job.id}` stops it",
                err=True,
            )
            raise
        if now.state != job_pb2.JOB_STATE_SUCCEEDED:
            how = job_pb2.JobState.Name(now.state).removeprefix("JOB_STATE_").lower()
            why = now.error.message or now.activity
            message = f"job {job.id} ({what}) was {how}" + (f": {why}" if why else "")
            hint = f"see: mailraft job show {job.id}"
            fail(self.output, f"JOB_{how.upper()}", message, hint, ExitCode.FAILED)
        return now


def operating(work: Callable[Concatenate[Session, P], Awaitable[None]]) -> Callable[..., None]:
    """A command of `work`, which gets a Session first: with the options of every such command."""

    def command(
        *, server: str | None, certs: Path | None, insecure: bool, output: Output, **own: Any
    ) -> None:
        async def run() -> None:
            from mailraft.cluster.operator import Operator

            async with Operator(connection.target, connection.credentials) as operator:
                await cast("Any", work)(Session(operator, connection, output), **own)

        with guarded(output):
            connection = find(server, certs, insecure, "admin")
            try:
                asyncio.run(run())
            except KeyboardInterrupt:
                raise typer.Exit(ExitCode.INTERRUPTED) from None

    session, *own = inspect.signature(work).parameters.values()
    common = {
        "server": (ServerOption, None),
        "certs": (CertsOption, None),
        "insecure": (InsecureOption, False),
        "output": (OutputOption, Output.TABLE),
    }
    # What typer makes options of.
    command.__name__, command.__doc__ = work.__name__, work.__doc__
    command.__annotations__ = get_type_hints(work, include_extras=True)
    del command.__annotations__[session.name]
    command.__annotations__ |= {name: kind for name, (kind, _) in common.items()}
    told = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in common.items()
    ]
    own = [
        each.replace(
            kind=inspect.Parameter.KEYWORD_ONLY, annotation=command.__annotations__[each.name]
        )
        for each in own
    ]
    command.__signature__ = inspect.Signature([*own, *told])  # type: ignore[attr-defined]
    return command

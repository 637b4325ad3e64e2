"""mailraft alarm list, mailraft check health: what is wrong now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import typer

from mailraft.cluster.cli.connect import CertsOption, InsecureOption, ServerOption, find
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, emit_table, guarded
from mailraft.cluster.errors import ExitCode

if TYPE_CHECKING:
    from mailraft.cluster.picture import Picture

app = typer.Typer(help="Alarms: list.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_(
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List what is wrong now. Exit status 1: there is something.

    An alarm keeps its id for as long as its cause lasts, and ends with it.

    Example: mailraft alarm list
    """
    from mailraft.cluster.cli import describe

    picture = picture_of(server, certs, insecure, output)
    alarms = picture.told.alarms
    if output is Output.JSON:
        emit_json([describe.alarm(each) for each in alarms])
    else:
        typer.echo(f"alarms={len(alarms)}")
        show_alarms(picture)
    raise typer.Exit(ExitCode.FAILED if alarms else ExitCode.OK)


def check_health(
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell whether all is well. Exit status 1: less to spare, 3: some mail cannot be reached.

    Example: mailraft check health
    """
    from mailraft.cluster.cli import describe

    picture = picture_of(server, certs, insecure, output)
    if output is Output.JSON:
        alarms = [describe.alarm(each) for each in picture.told.alarms]
        emit_json({"status": picture.word, "epoch": picture.told.epoch, "alarms": alarms})
    else:
        typer.echo(picture.summary)
        show_alarms(picture)
    raise typer.Exit(picture.exit_code)


def picture_of(server: str | None, certs: object, insecure: bool, output: Output) -> Picture:
    """How the cluster does, also while nobody leads the meta group."""
    from mailraft.cluster.picture import look_around

    with guarded(output):
        connection = find(server, certs, insecure, "admin")  # type: ignore[arg-type]
        return asyncio.run(look_around(connection.target, connection.credentials))
    raise AssertionError("guarded() leaves by an exception")


def show_alarms(picture: Picture) -> None:
    from mailraft.cluster.cli import describe

    if picture.told.alarms:
        typer.echo()
        rows = [(each.id, describe.severity(each), each.message) for each in picture.told.alarms]
        emit_table(("ALARM", "SEVERITY", "WHAT"), rows)

"""mailraft check perf: is it as fast as it should be?"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli.connect import (
    CertsOption,
    Connection,
    InsecureOption,
    ServerOption,
    find,
)
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, guarded
from mailraft.cluster.errors import ExitCode, SettingsError

if TYPE_CHECKING:
    from mailraft.cluster.perf import Finding

SECONDS_MAX = 60.0


def check_perf(
    folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            metavar="FOLDER",
            help="Only look at the disk that this is on, without a cluster.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1, max=SECONDS_MAX, help="How long to deliver.")
    ] = 5.0,
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Time synced writes, calls between nodes, and deliveries. Exit status 1: something is slow.

    Safe while the cluster serves: some dozen small writes on each node, and for a few seconds mail
    from 16 callers into an account of its own, which is deleted again. Each line says what is
    expected.

    Example: mailraft check perf --seconds 5

    Example: mailraft check perf --folder /var/lib/mailraft
    """
    with guarded(output):
        if folder is not None:
            found = _of_folder(folder)
        else:
            found = asyncio.run(_of_cluster(find(server, certs, insecure, "admin"), seconds))
    slow = [each for each in found if not each.good]
    word = "SLOW" if slow else "OK"
    if output is Output.JSON:
        emit_json({"status": word, "findings": [_described(each) for each in found]})
    else:
        for each in found:
            typer.echo(str(each))
        typer.echo(f"{word}: {len(found) - len(slow)} of {len(found)} as expected")
    raise typer.Exit(ExitCode.FAILED if slow else ExitCode.OK)


def _of_folder(folder: Path) -> list[Finding]:
    from mailraft.cluster import perf

    try:
        return perf.check_folder(folder)
    except OSError as error:
        raise SettingsError(f"cannot write into {folder}: {error.strerror}") from error


async def _of_cluster(connection: Connection, seconds: float) -> list[Finding]:
    from mailraft.cluster import perf

    async with connection.client() as client:
        cluster_map = await client.cluster_map()
        found = await perf.check_nodes(cluster_map, connection.credentials)
        return [*found, *await perf.check_deliveries(client, seconds)]


def _described(found: Finding) -> dict[str, object]:
    return {
        "what": found.what,
        "figures": found.figures,
        "expected": found.expected,
        "good": found.good,
    }

"""mailraft top: a live view of the cluster."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster import runfile
from mailraft.cluster.cli.connect import (
    LOCAL_FOLDER,
    CertsOption,
    Connection,
    InsecureOption,
    ServerOption,
    find,
)
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, guarded

if TYPE_CHECKING:
    from rich.console import Console

    from mailraft.cluster.cli.top_view import Moment
    from mailraft.cluster.scrape import Scrape

INTERVAL_MIN_S = 0.5
PICTURE_COLUMNS = 96


def top(
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            metavar="NAME=HOST:PORT",
            help="Where a node (or `router`) serves /metrics; again for each. "
            "Default: those of the cluster in ./.mailraft.",
            show_default=False,
        ),
    ] = None,
    interval_s: Annotated[
        float, typer.Option("--interval", min=INTERVAL_MIN_S, help="Seconds between two looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and leave.")] = False,
    picture: Annotated[
        str, typer.Option("--svg", metavar="FILE", help="Draw one look into a file and leave.")
    ] = "",
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Watch the cluster: nodes, shards by leader, load, latency, jobs, alarms. Ctrl-C leaves.

    What a process does a second is read from its /metrics, and left out where that is not told.
    With -o json, or into a pipe, it looks once.

    Example: mailraft top

    Example: mailraft top --once --metrics n1=127.0.0.1:7501
    """
    from rich.console import Console

    console = Console(record=bool(picture), width=PICTURE_COLUMNS if picture else None)
    once = once or bool(picture) or output is Output.JSON or not console.is_terminal
    with guarded(output):
        connection = find(server, certs, insecure, "admin")
        told = _metrics_addresses(metrics or (), local=server is None)
        asyncio.run(_watch(connection, told, console, interval_s, output, once=once))
    if picture:
        svg = console.export_svg(title="mailraft top")
        # Without the fonts that it would fetch from elsewhere: any monospaced one does.
        Path(picture).write_text(
            re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), "utf-8"
        )


async def _watch(
    connection: Connection,
    metrics: dict[str, str],
    console: Console,
    interval_s: float,
    output: Output,
    *,
    once: bool,
) -> None:
    from rich.live import Live

    from mailraft.cluster.cli import top_view
    from mailraft.cluster.scrape import scrape_all

    before = await scrape_all(metrics.values())
    if once:
        await asyncio.sleep(min(interval_s, 1.0))
        moment, _ = await _look(connection, metrics, before)
        if output is Output.JSON:
            emit_json(top_view.described(moment))
        else:
            console.print(top_view.drawn(moment))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            moment, before = await _look(connection, metrics, before)
            live.update(top_view.drawn(moment), refresh=True)
            await asyncio.sleep(interval_s)


async def _look(
    connection: Connection, metrics: dict[str, str], before: dict[str, Scrape]
) -> tuple[Moment, dict[str, Scrape]]:
    from mailraft.cluster.cli.top_view import Moment
    from mailraft.cluster.operator import Operator
    from mailraft.cluster.picture import look_around
    from mailraft.cluster.scrape import Between, Scrape, scrape_all
    from mailraft.wire import errors

    picture, after = await asyncio.gather(
        look_around(connection.target, connection.credentials), scrape_all(metrics.values())
    )
    async with Operator(connection.target, connection.credentials, deadline_s=2.0) as operator:
        try:
            jobs = await operator.jobs(open_only=True)
        except errors.MailraftError:
            jobs = []  # nobody leads the meta group: the alarms say so
    load = {
        name: Between(before.get(address, Scrape()), after[address])
        for name, address in metrics.items()
    }
    return Moment(picture, tuple(jobs), load), after


def _metrics_addresses(told: list[str] | tuple[str, ...], *, local: bool) -> dict[str, str]:
    running = runfile.read(LOCAL_FOLDER) if local and not told else None
    if running is not None:
        processes = (running.router, *running.nodes)
        return {each.name: each.metrics for each in processes if each.metrics}
    from mailraft.cluster.addresses import split_address
    from mailraft.cluster.errors import SettingsError

    found = {}
    for each in told:
        name, _, address = each.partition("=")
        try:
            split_address(address)
        except ValueError as error:
            raise SettingsError(f"bad --metrics {each!r}: {error}") from None
        found[name] = address
    return found

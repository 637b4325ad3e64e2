"""mailraft up: a cluster on this machine until Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli.connect import LOCAL_FOLDER
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, guarded
from mailraft.cluster.errors import NotReadyError
from mailraft.cluster.levels import LogLevel

if TYPE_CHECKING:
    from mailraft.cluster.child import Child
    from mailraft.cluster.local import LocalCluster, LocalOptions

DEFAULT_PORT = 7400
WATCH_S = 0.5
# A process that ended is started again, unless it does so all the time.
RESTART_DELAY_S = 2.0
RESTARTS_MAX = 5
RESTARTS_WINDOW_S = 60.0


def up(
    nodes: Annotated[
        int | None, typer.Option(min=1, help="How many nodes; new folders only.  [default: 3]")
    ] = None,
    shards: Annotated[
        int | None, typer.Option(min=1, help="How many shards; new folders only.  [default: 8]")
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", help="Data, certificates, logs.")] = LOCAL_FOLDER,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Of the router, 0: any; the nodes' follow it.")
    ] = DEFAULT_PORT,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain text, no certificates.")
    ] = False,
    log_level: Annotated[LogLevel, typer.Option(help="Of the logs in --dir.")] = LogLevel.INFO,
    output: OutputOption = Output.TABLE,
) -> None:
    """Start nodes and a router on this machine; Ctrl-C stops them. Their data stays in --dir.

    Example: mailraft up --nodes 3 --shards 8 --port 7400
    """
    from mailraft.cluster.local import LocalOptions

    with guarded(output):
        options = LocalOptions(
            nodes=nodes,
            shards=shards,
            port=port,
            insecure=insecure,
            log_level=log_level,
        )
        asyncio.run(_run(folder, options, output))


async def _run(folder: Path, options: LocalOptions, output: Output) -> None:
    from mailraft.cluster.local import LocalCluster

    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, told.set)
    began = time.monotonic()
    async with LocalCluster(folder, options) as cluster:
        waiting = asyncio.ensure_future(told.wait())
        ready = asyncio.ensure_future(cluster.wait_ready())
        await asyncio.wait({waiting, ready}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            ready.result()
            _tell(cluster, folder, time.monotonic() - began, output)
            await _watch(cluster, told)
        for task in (waiting, ready):
            task.cancel()
        await asyncio.gather(waiting, ready, return_exceptions=True)
        if output is Output.TABLE:
            typer.echo("stopping", err=True)
    if output is Output.TABLE:
        typer.echo("stopped; the data stays in " + str(folder), err=True)


def _tell(cluster: LocalCluster, folder: Path, took_s: float, output: Output) -> None:
    address = cluster.router_address
    if output is Output.JSON:
        emit_json(
            {
                "router": address,
                "certs": str(cluster.certs_folder or ""),
                "nodes": {
                    each.name: each.address
                    for each in cluster.map.nodes
                    if each.id in cluster.nodes
                },
                "shards": len(cluster.map.shards),
                "folder": str(cluster.folder),
            }
        )
        return
    here = "" if folder == LOCAL_FOLDER else _connection_options(cluster)
    counts = f"{len(cluster.nodes)} nodes, {len(cluster.map.shards)} shards"
    certs = f'certs="{cluster.certs_folder}"' if cluster.certs_folder else "insecure=True"
    typer.echo(
        f"ready after {took_s:.1f} s: {counts}, router at {address}\n"
        f"  data and logs   {folder}\n"
        f'  Python          AsyncClient("{address}", {certs})\n'
        f"  try             mailraft cluster status{here}\n"
        f"                  mailraft account create alice{here}\n"
        f"                  mailraft mail deliver message.eml --to alice{here}\n"
        f"                  mailraft mail list alice{here}\n"
        "Ctrl-C stops it."
    )


def _connection_options(cluster: LocalCluster) -> str:
    how = f"--certs {cluster.certs_folder}" if cluster.certs_folder else "--insecure"
    return f" --server {cluster.router_address} {how}"


async def _watch(cluster: LocalCluster, told: asyncio.Event) -> None:
    """Start processes that end again, until told to stop."""
    from mailraft.cluster.child import describe_exit

    restarts: deque[float] = deque(maxlen=RESTARTS_MAX)
    while not await _told_within(told, WATCH_S):
        for child in cluster.ended():
            how = f"{child.name} {describe_exit(child.exit_status)}"
            typer.echo(f"{how} (log: {child.log_path}); starting it again", err=True)
            _count(restarts, child)
            if await _told_within(told, RESTART_DELAY_S):
                return
            cluster.start_again(child)


async def _told_within(told: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await told.wait()
    except TimeoutError:
        return False
    return True


def _count(restarts: deque[float], child: Child) -> None:
    now = time.monotonic()
    if len(restarts) == RESTARTS_MAX and now - restarts[0] < RESTARTS_WINDOW_S:
        raise NotReadyError(
            f"{child.name} and others ended {RESTARTS_MAX} times within a minute:"
            f" {child.log_tail()}",
            f"its whole log is {child.log_path}",
        )
    restarts.append(now)

"""mailraft check hash, blobs, repair: look for what is wrong, on a cluster that goes on serving."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mailraft.cluster.cli.connect import (
    CertsOption,
    Connection,
    InsecureOption,
    ServerOption,
    find,
)
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, guarded
from mailraft.cluster.errors import ExitCode

if TYPE_CHECKING:
    from mailraft.cluster.checks import BodiesFound, Checks, ShardCompared
    from mailraft.cluster.scrubs import NodeScrubbed

app = typer.Typer(
    help="Look for what is wrong: health, hash, blobs, repair.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("hash")
def check_hash(
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Compare the state of each shard's replicas. Exit status 1: one differs, 3: one is missing.

    Example: mailraft check hash --server 10.0.0.5:7400 --certs certs
    """
    found: list[ShardCompared] = _run(server, certs, insecure, output, lambda it: it.compare())
    differ = any(each.differing for each in found)
    missing = any(each.missing for each in found)
    if output is Output.JSON:
        word = "DIFFERENT" if differ else "INCOMPLETE" if missing else "OK"
        emit_json({"status": word, "shards": [_compared(each) for each in found]})
    for each in found if output is Output.TABLE else ():
        typer.echo(str(each))
    raise typer.Exit(_exit_code(wrong=differ, missing=missing))


@app.command("blobs")
def check_blobs(
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Compare stored bodies with what refers to them, on every replica. Reads all of them, slowly.
    Exit status 1: a body is missing or an orphan, 3: a replica could not be looked at.

    Example: mailraft check blobs --server 10.0.0.5:7400 --certs certs
    """
    found: list[BodiesFound] = _run(server, certs, insecure, output, lambda it: it.audit())
    wrong = any(each.wrong for each in found)
    missing = any(each.error for each in found)
    totals = {
        name: sum(getattr(each, name) for each in found)
        for name in ("stored", "referenced", "waiting", "missing", "orphans")
    }
    if output is Output.JSON:
        word = "DAMAGED" if wrong else "INCOMPLETE" if missing else "OK"
        replicas = [_audited(each) for each in found]
        emit_json({"status": word, "totals": totals, "replicas": replicas})
    else:
        for each in found:
            typer.echo(str(each))
        typer.echo("total: " + " ".join(f"{name}={count}" for name, count in totals.items()))
    raise typer.Exit(_exit_code(wrong=wrong, missing=missing))


@app.command("repair")
def check_repair(
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait for all of it.")
    ] = 3600.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell how the nodes stand.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Read all that is stored, and fetch what is damaged again from peers.

    Exit status 1: something is not repaired, 3: a node does not answer, or had not the time.

    Example: mailraft check repair --server 10.0.0.5:7400 --certs certs
    """
    with guarded(output):
        connection = find(server, certs, insecure, "admin")
        found = asyncio.run(_scrubbed(connection, 0.0 if dry_run else timeout))
    damaged = any(each.damaged for each in found)
    missing = any(each.told is None or not (each.done or dry_run) for each in found)
    if output is Output.JSON:
        word = "DAMAGED" if damaged else "INCOMPLETE" if missing else "OK"
        emit_json({"status": word, "nodes": [_stands(each) for each in found]})
    else:
        for each in found:
            told = each.told
            read = "" if told is None else f", read {told.completed_bytes >> 20} MiB last"
            errors = f", {told.errors} errors so far" if told is not None else ""
            typer.echo(f"{each.node}: {each.state}{read}{errors}, {each.found} found now")
    raise typer.Exit(_exit_code(wrong=damaged, missing=missing))


async def _scrubbed(connection: Connection, timeout_s: float) -> list[NodeScrubbed]:
    """timeout_s: 0: only look."""
    from mailraft.cluster.scrubs import Scrubs

    async with connection.client() as client:
        cluster_map = await client.cluster_map()
    async with Scrubs(cluster_map, connection.credentials) as scrubs:
        return await (scrubs.run(timeout_s=timeout_s) if timeout_s else scrubs.look())


def _stands(node: NodeScrubbed) -> dict[str, object]:
    told = node.told
    if told is None:
        return {"node": node.node, "state": node.state, "found": node.found}
    return {
        "node": node.node,
        "state": node.state,
        "found": node.found,
        "passes": told.passes,
        "completed_time_ms": told.completed_ms,
        "completed_bytes": told.completed_bytes,
        "errors": told.errors,
        "waiting": list(told.waiting),
        "fetching": list(told.fetching),
        "repairs_completed": told.repairs_completed,
    }


def _run(
    server: Any, certs: Any, insecure: bool, output: Output, ask: Callable[[Checks], Awaitable[Any]]
) -> Any:
    with guarded(output):
        return asyncio.run(_asked(find(server, certs, insecure, "admin"), ask))


async def _asked(connection: Connection, ask: Callable[[Checks], Awaitable[Any]]) -> Any:
    from mailraft.cluster.checks import Checks

    async with connection.client() as client:
        cluster_map = await client.cluster_map()
    async with Checks(cluster_map, connection.credentials) as checks:
        return await ask(checks)


def _exit_code(*, wrong: bool, missing: bool) -> ExitCode:
    if wrong:
        return ExitCode.FAILED
    return ExitCode.UNAVAILABLE if missing else ExitCode.OK


def _compared(shard: ShardCompared) -> dict[str, object]:
    return {
        "shard": shard.shard,
        "applied_index": shard.index,
        "replicas": shard.replicas,
        "matching": shard.matching,
        "differing": shard.differing,
        "missing": shard.missing,
    }


def _audited(found: BodiesFound) -> dict[str, object]:
    return {
        "shard": found.shard,
        "node": found.node,
        "applied_index": found.index,
        "stored": found.stored,
        "stored_bytes": found.stored_bytes,
        "referenced": found.referenced,
        "references": found.references,
        "waiting": found.waiting,
        "missing": found.missing,
        "orphans": found.orphans,
        "first_missing": found.first_missing,
        "first_orphans": found.first_orphans,
        "error": found.error,
    }

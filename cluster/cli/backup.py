"""mailraft backup: take backups, archive the log, and look after what there is."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli.operating import DryRunOption, Session, operating
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, emit_table, fail, guarded
from mailraft.cluster.cli.progress import progress
from mailraft.cluster.errors import ExitCode

if TYPE_CHECKING:
    from mailraft.cluster.backup.manifest import Manifest
    from mailraft.cluster.backup.nodes import Nodes
    from mailraft.cluster.backup.store import BackupStore, Folder
    from mailraft.cluster.backup.stream import Put

app = typer.Typer(
    help="Back up a cluster: create, stream, list, verify, prune.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

StoreOption = Annotated[
    Path,
    typer.Option(
        "--store", envvar="MAILRAFT_BACKUP_STORE", metavar="FOLDER", help="Where backups lie."
    ),
]
OfOption = Annotated[
    str,
    typer.Option("--of", metavar="CLUSTER", help="Whose, where a store holds several clusters'."),
]
RateOption = Annotated[
    int, typer.Option("--rate", min=0, metavar="MIB", help="MiB/s of a node; 0: what it allows.")
]


@app.command()
@operating
async def create(
    it: Session,
    store: StoreOption,
    full: Annotated[
        bool, typer.Option("--full", help="Read all bodies, not only those that are new.")
    ] = False,
    rate: RateOption = 0,
    dry_run: DryRunOption = False,
) -> None:
    """Back up every shard at an index, while all is served. Unchanged bodies are not read again.

    Example: mailraft backup create --store /srv/backup
    """
    from mailraft.cluster.backup.manifest import backups
    from mailraft.cluster.backup.nodes import Nodes
    from mailraft.cluster.backup.store import Folder

    async with Nodes(await it.operator.map(), it.connection.credentials) as nodes:
        if dry_run:
            known = backups(Folder(store), nodes.map.cluster_id) if store.is_dir() else []
            parent = known[-1].id if known and not full else ""
            line = f"a backup of {len(nodes.groups)} shards, " + (
                f"bodies that are not in {parent}" if parent else "all bodies"
            )
            it.tell(line, {"shards": len(nodes.groups), "parent": parent}, dry=True)
            return
        manifest = await _take(it, nodes, Folder(store, create=True), full, rate)
    it.tell(_line(manifest, len(nodes.groups)), _told(manifest))


@app.command()
@operating
async def stream(
    it: Session,
    store: StoreOption,
    base_every: Annotated[
        float, typer.Option(min=0, metavar="HOURS", help="Take a backup so often; 0: never.")
    ] = 24.0,
    keep: Annotated[
        int, typer.Option(min=0, help="Prune to so many backups after each; 0: do not.")
    ] = 0,
    for_: Annotated[
        float, typer.Option("--for", min=0, metavar="SECONDS", help="End by itself; 0: never.")
    ] = 0.0,
    rate: RateOption = 0,
) -> None:
    """Archive the log of all shards as it grows, so that any time can be restored. Ctrl-C ends it;
    started again it goes on. Takes a backup to begin with, and where the log has a gap.

    Example: mailraft backup stream --store /srv/backup --keep 14
    """
    from mailraft.cluster.backup.nodes import Nodes
    from mailraft.cluster.backup.store import Folder
    from mailraft.cluster.backup.stream import Schedule, Stream

    folder = Folder(store, create=True)
    async with Nodes(await it.operator.map(), it.connection.credentials) as nodes:

        def took(manifest: Manifest, why: str) -> None:
            line = f"{_line(manifest, len(nodes.groups))}: {why}"
            it.tell(line, {**_told(manifest), "why": why})

        streaming = Stream(
            nodes,
            folder,
            lambda: _take(it, nodes, folder, False, rate),
            told=lambda put: _tell_put(it, put),
            took=took,
            schedule=Schedule(base_every * 3600, keep),
            bytes_per_s=rate << 20,
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(for_ or None):
                await streaming.run()


@app.command("list")
def list_(
    store: StoreOption,
    of: OfOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """List backups, and how far the archived log goes.

    Example: mailraft backup list --store /srv/backup
    """
    from mailraft.cluster.backup.archive import read_head
    from mailraft.cluster.backup.manifest import backups
    from mailraft.cluster.cli.describe import size

    with guarded(output):
        folder, cluster_id = opened(store, of)
        found = backups(folder, cluster_id)
        reach = read_head(folder, cluster_id)
    until_ms = min((each.time_ms for each in reach.values()), default=0)
    if output is Output.JSON:
        emit_json(
            {
                "cluster": cluster_id,
                "archived_until_ms": until_ms,
                "backups": [_told(each) for each in found],
            }
        )
        return
    emit_table(
        ("BACKUP", "BEGAN", "SHARDS", "ACCOUNTS", "MESSAGES", "BYTES", "NEW", "PARENT"),
        [
            (
                each.id,
                when(each.began_ms),
                len(each.shards),
                sum(shard.accounts for shard in each.shards),
                sum(shard.messages for shard in each.shards),
                size(each.size_bytes),
                size(each.new_bytes),
                each.parent or "-",
            )
            for each in found
        ],
    )
    typer.echo(f"archived until {when(until_ms) if until_ms else '-'}")


@app.command()
def verify(
    store: StoreOption,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[BACKUP]...", help="Default: all of them.")
    ] = None,
    of: OfOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Read everything, compare checksums, and count again. Exit status 1: something is wrong.

    Example: mailraft backup verify --store /srv/backup
    """
    from mailraft.cluster.backup.manifest import BackupNotFoundError
    from mailraft.cluster.backup.verify import verify as verified
    from mailraft.cluster.cli.describe import size

    began_s = time.monotonic()
    with guarded(output):
        folder, cluster_id = opened(store, of)
        total = sum(size_bytes for _, size_bytes in folder.list(""))
        with progress("verifying", total) as bar:
            found = verified(folder, cluster_id, tuple(ids or ()), bar.advance)
        if ids and found.backups < len(set(ids)) and not found.problems:
            raise BackupNotFoundError("there is no such backup", "see: mailraft backup list")
    if output is Output.JSON:
        emit_json(asdict(found))
    else:
        for problem in found.problems:
            typer.echo(problem, err=True)
        word = "DAMAGED" if found.problems else "OK"
        typer.echo(
            f"{word} backups={found.backups} shards={found.shards} rows={found.rows} "
            f"bodies={found.bodies} segments={found.segments} entries={found.entries} "
            f"bytes={size(found.size_bytes)} in {time.monotonic() - began_s:.1f} s"
        )
    if found.problems:
        message = f"{len(found.problems)} problems were found"
        fail(output, "BACKUP_DAMAGED", message, "they are listed above", ExitCode.FAILED)


@app.command()
def prune(
    store: StoreOption,
    keep: Annotated[int, typer.Option(min=1, help="The newest so many stay.")],
    of: OfOption = "",
    dry_run: DryRunOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Remove older backups, and nothing that a kept one needs.

    Example: mailraft backup prune --store /srv/backup --keep 14
    """
    from mailraft.cluster.backup.prune import prune as pruned
    from mailraft.cluster.cli.describe import size

    with guarded(output):
        folder, cluster_id = opened(store, of)
        done = pruned(folder, cluster_id, keep, dry_run=dry_run)
    if output is Output.JSON:
        emit_json({**asdict(done), "dry_run": dry_run})
        return
    line = f"removed backups={len(done.backups)} chunks={done.chunks} segments={done.segments}"
    line += f" freed={size(done.freed_bytes)} kept={done.kept}"
    typer.echo(f"would be: {line}" if dry_run else line)


# ---- shared with `mailraft restore` --------------------------------------------------------------


def opened(store: Path, of: str) -> tuple[Folder, str]:
    """The store and whose backups are meant. Raises NoStoreError, BackupNotFoundError."""
    from mailraft.cluster.backup.manifest import only_cluster
    from mailraft.cluster.backup.store import Folder

    folder = Folder(store)
    return folder, of or only_cluster(folder)


def when(time_ms: int) -> str:
    """A time in UTC, as --at takes it."""
    at = dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC)
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


# ---- inside --------------------------------------------------------------------------------------


async def _take(it: Session, nodes: Nodes, store: BackupStore, full: bool, rate: int) -> Manifest:
    from mailraft.cluster.backup.create import create as take
    from mailraft.cluster.backup.manifest import backups

    known = backups(store, nodes.map.cluster_id)
    settings = await it.operator.settings()
    with progress("backing up", known[-1].size_bytes if known else 0) as bar:
        return await take(
            nodes,
            store,
            settings=settings,
            full=full,
            bytes_per_s=rate << 20,
            tell=bar.advance,
        )


def _tell_put(it: Session, put: Put) -> None:
    from mailraft.cluster.cli.describe import size

    line = f"archived entries={put.entries} bytes={size(put.stored_bytes)}"
    line += f" behind={put.behind_s:.1f} s"
    if put.failed:
        line += f" failed={len(put.failed)}: {next(iter(put.failed.values()))}"
    behind_s = None if math.isinf(put.behind_s) else round(put.behind_s, 3)
    failed = {str(group): why for group, why in put.failed.items()}
    it.tell(line, {**asdict(put), "behind_s": behind_s, "failed": failed})


def _line(manifest: Manifest, shards: int) -> str:
    from mailraft.cluster.cli.describe import size

    took_s = (manifest.ended_ms - manifest.began_ms) / 1000
    return (
        f"backup {manifest.id} shards={len(manifest.shards)}/{shards}"
        f" bytes={size(manifest.size_bytes)} new={size(manifest.new_bytes)} in {took_s:.1f} s"
    )


def _told(manifest: Manifest) -> dict[str, object]:
    return {
        "id": manifest.id,
        "began_ms": manifest.began_ms,
        "ended_ms": manifest.ended_ms,
        "parent": manifest.parent,
        "size_bytes": manifest.size_bytes,
        "new_bytes": manifest.new_bytes,
        "shards": [
            {
                "shard": each.group,
                "index": each.index,
                "accounts": each.accounts,
                "messages": each.messages,
                "bodies": each.bodies,
            }
            for each in manifest.shards
        ],
    }

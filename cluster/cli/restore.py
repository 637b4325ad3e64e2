"""mailraft restore: bring back an account, or a cluster into another one."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli.account import AccountArgument
from mailraft.cluster.cli.backup import OfOption, StoreOption, opened, when
from mailraft.cluster.cli.operating import DryRunOption, Session, operating
from mailraft.cluster.cli.progress import progress

if TYPE_CHECKING:
    from mailraft.cluster.backup.restore import Target
    from mailraft.v1 import admin_pb2

app = typer.Typer(
    help="Restore from a backup: account, cluster.", no_args_is_help=True, rich_markup_mode=None
)


def time_ms(text: str) -> int:
    """An ISO 8601 time; without a zone it is UTC."""
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time: give 2026-11-24T12:00:00Z") from None
    return round((at if at.tzinfo else at.replace(tzinfo=dt.UTC)).timestamp() * 1000)


AtOption = Annotated[
    int | None,
    typer.Option(
        "--at",
        parser=time_ms,
        metavar="TIME",
        help="As it was then, for example 2026-11-24T12:00:00Z. Default: the newest archived.",
        show_default=False,
    ),
]
ScratchOption = Annotated[
    Path | None,
    typer.Option(
        "--scratch", metavar="FOLDER", help="Room for one shard at a time. Default: of the system."
    ),
]


@app.command("account")
@operating
async def restore_account(
    it: Session,
    account: AccountArgument,
    store: StoreOption,
    at: AtOption = None,
    into: Annotated[
        str, typer.Option("--into", metavar="ACCOUNT", help="Another account; default: in place.")
    ] = "",
    keep_new: Annotated[
        bool, typer.Option("--keep-new", help="Leave mail and mailboxes that came later.")
    ] = False,
    of: OfOption = "",
    scratch: ScratchOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Bring an account back to a time, in place or into another account.

    In place, what did not change since keeps its ids and UIDs; the rest is written again under new
    ones. What came later is expunged, and can be undeleted.

    Example: mailraft restore account alice --store /srv/backup
    """
    from mailraft.cluster.backup import restore

    began_s = time.monotonic()
    folder, cluster_id = opened(store, of)
    async with _target(it) as target:
        with progress("restoring", 0) as bar:
            written = await restore.restore_account(
                folder,
                cluster_id,
                target,
                account,
                at_ms=at,
                into=into,
                keep_new=keep_new,
                dry_run=dry_run,
                folder=scratch,
                tell=bar.advance,
            )
    line = (
        f"restored {written.account_id} messages={written.messages} appended={written.appended}"
        f" changed={written.changed} expunged={written.expunged} mailboxes={written.mailboxes}"
    )
    if written.left:
        line += f" left={len(written.left)} (mail came into mailboxes that were not there then)"
    line += f" in {time.monotonic() - began_s:.1f} s"
    it.tell(line, asdict(written), dry=dry_run)


@app.command("cluster")
@operating
async def restore_cluster(
    it: Session,
    store: StoreOption,
    at: AtOption = None,
    backup: Annotated[
        str, typer.Option("--backup", metavar="ID", help="Begin with this one.")
    ] = "",
    of: OfOption = "",
    scratch: ScratchOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Bring every account of a backup into this cluster, another one of any size.

    The settings of the cluster are brought along (`mailraft settings get`). Run it again after an
    interruption: it goes on.

    Example: mailraft restore cluster --store /srv/backup
    """
    from mailraft.cluster.backup import restore
    from mailraft.cluster.backup.manifest import backups
    from mailraft.cluster.cli.describe import size

    began_s = time.monotonic()
    folder, cluster_id = opened(store, of)
    known = backups(folder, cluster_id)
    async with _target(it) as target:
        restore.check_other(target, cluster_id)
        settings = restore.settings_at(folder, cluster_id, at_ms=at, backup=backup)
        changed = await _bring(it, settings, dry_run=dry_run)
        with progress("restoring", 2 * known[-1].size_bytes if known else 0) as bar:
            done = await restore.restore_cluster(
                folder,
                cluster_id,
                target,
                at_ms=at,
                backup=backup,
                dry_run=dry_run,
                folder=scratch,
                tell=bar.advance,
            )
    line = (
        f"restored shards={done.shards} accounts={done.accounts} messages={done.messages}"
        f" appended={done.appended} bytes={size(done.new_bytes)}"
        f" newest={when(done.clock_ms)} settings={','.join(changed) or 'as they were'}"
        f" in {time.monotonic() - began_s:.1f} s"
    )
    it.tell(line, {**asdict(done), "settings": changed}, dry=dry_run)


async def _bring(it: Session, wanted: admin_pb2.Settings | None, *, dry_run: bool) -> list[str]:
    """Make the settings of the cluster what they were; the names of those that differed."""
    if wanted is None:
        return []
    now = await it.operator.settings()
    names = [each.name for each in wanted.DESCRIPTOR.fields if each.name != "etag"]
    changed = [name for name in names if getattr(now, name) != getattr(wanted, name)]
    if changed:
        await it.operator.change_settings(wanted, changed, validate=dry_run)
    return [name.removesuffix("_ms") for name in changed]


@asynccontextmanager
async def _target(it: Session) -> AsyncIterator[Target]:
    from mailraft.cluster.backup.nodes import Nodes
    from mailraft.cluster.backup.restore import Target

    async with (
        Nodes(await it.operator.map(), it.connection.credentials) as nodes,
        it.connection.client() as client,
    ):
        yield Target(client, nodes)

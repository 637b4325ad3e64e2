"""mailraft upgrade, downgrade: versions and the feature level (docs/upgrade.md)."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mailraft.cluster.cli.operating import DryRunOption, Session, operating
from mailraft.cluster.errors import ClusterError, ExitCode, NotConfirmedError

app = typer.Typer(
    help="The version of the cluster: status, finalize.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
downgrade = typer.Typer(
    help="Whether there is a way back: validate.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
@operating
async def status(it: Session) -> None:
    """Show what each node runs, what is enabled, and what comes next.

    Example: mailraft upgrade status
    """
    from mailraft.cluster import versions

    picture = await it.picture()
    enabled, coming = versions.enabled(picture), versions.next_step(picture)
    line = f"feature_level={enabled} versions: {versions.versions(picture)}"
    described = {
        "feature_level": enabled,
        "next": coming,
        "nodes": [
            {
                "node": each.node.id,
                "name": each.node.name,
                "version": each.node.version,
                "feature_level": versions.understood(each) or 0,
                "reachable": each.reachable,
            }
            for each in picture.nodes
        ],
    }
    it.tell(f"{line}; next: {coming}" if coming else f"{line}; nothing to do", described)
    rows: list[tuple[object, ...]] = [
        (
            each.node.name,
            each.node.version or "-",
            versions.understood(each) or "-",
            "yes" if each.reachable else "SILENT",
        )
        for each in picture.nodes
    ]
    it.table(("NODE", "VERSION", "UNDERSTANDS", "REACHABLE"), rows)


@app.command()
@operating
async def finalize(
    it: Session,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask back.")] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Enable what all nodes understand. There is no way back to the version before.

    Refused while a node is too old, or cannot be asked; the error names it.

    Example: mailraft upgrade finalize --yes
    """
    from mailraft.cluster import versions
    from mailraft.wire import errors

    before = versions.enabled(await it.picture())
    try:
        after = await it.operator.finalize(validate=True)
        if not dry_run and after > before:
            if not yes and not _asked_back(after):
                raise NotConfirmedError("nothing was done", "add --yes to go on without a question")
            after = await it.operator.finalize(after)
    except errors.UnimplementedError:
        raise ClusterError(
            "the meta group is led by a version that has no feature levels",
            "go on with the nodes: mailraft upgrade status",
        ) from None
    it.tell(f"feature level {before}→{after}", {"feature_level": after}, dry=dry_run)


def _asked_back(level: int) -> bool:
    """Without a terminal there is nobody to ask: no."""
    if not sys.stdin.isatty():
        return False
    question = f"Enable feature level {level}? No node can go back to a version before it."
    return typer.confirm(question, err=True)


@downgrade.command()
@operating
async def validate(it: Session) -> None:
    """Tell whether nodes can be brought back to the version before. Exit status 1: no.

    Example: mailraft downgrade validate
    """
    from mailraft.cluster import versions
    from mailraft.wire import feature_levels

    picture = await it.picture()
    reasons = versions.obstacles(picture)
    level = versions.enabled(picture)
    oldest = feature_levels.version_of(level)
    described = {"possible": not reasons, "to": "" if reasons else oldest, "reasons": list(reasons)}
    if reasons:
        it.tell(f"not possible: {'; '.join(reasons)}", described)
        raise typer.Exit(ExitCode.FAILED)
    it.tell(f"possible, node by node, to {oldest} or newer: feature level {level}", described)

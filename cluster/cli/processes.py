"""mailraft node, mailraft router: one process in the foreground."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from mailraft.cluster.cli.output import Output, guarded

if TYPE_CHECKING:
    from mailraft.cluster.settings import NodeSettings, ProcessSettings, RouterSettings

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Settings (TOML); MAILRAFT_* in the environment override them.",
        show_default=False,
    ),
]
ParentOption = Annotated[bool, typer.Option("--with-parent", hidden=True)]

S = TypeVar("S", bound="ProcessSettings")


def node(config: ConfigOption = None, with_parent: ParentOption = False) -> None:
    """Run one storage node until SIGTERM or Ctrl-C.

    Example: mailraft node --config /etc/mailraft/node-1.toml
    """
    from mailraft.cluster import settings

    def run(loaded: NodeSettings) -> int:
        from mailraft.cluster import compose

        return compose.run_node(loaded)

    _run(settings.NodeSettings, config, with_parent, run)


def router(config: ConfigOption = None, with_parent: ParentOption = False) -> None:
    """Run one router until SIGTERM or Ctrl-C.

    Example: mailraft router --config /etc/mailraft/router.toml
    """
    from mailraft.cluster import settings

    def run(loaded: RouterSettings) -> int:
        from mailraft.cluster import compose

        return compose.run_router(loaded)

    _run(settings.RouterSettings, config, with_parent, run)


def _run(kind: type[S], config: Path | None, with_parent: bool, run: Callable[[S], int]) -> None:
    from mailraft.cluster import child, settings

    if with_parent:
        child.stop_with_parent()
    with guarded(Output.TABLE):
        status = run(settings.load(kind, config))
    raise typer.Exit(status)

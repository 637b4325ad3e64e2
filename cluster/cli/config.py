"""mailraft config: what processes start with. Makes the first map, and checks settings."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli.output import Output, OutputOption, emit_json, emit_table, guarded

if TYPE_CHECKING:
    from mailraft.cluster.settings import NodeSettings, ProcessSettings, RouterSettings
    from mailraft.v1 import cluster_pb2

app = typer.Typer(
    help="What processes start with: check, map.", no_args_is_help=True, rich_markup_mode=None
)


class Kind(enum.StrEnum):
    """Which process the settings are for."""

    NODE = "node"
    ROUTER = "router"


@app.command()
def check(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Settings (TOML). Default: the environment alone."),
    ] = None,
    kind: Annotated[
        Kind | None, typer.Option(help="Whose settings.  [default: what they look like]")
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Print each value, and where it came from.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check settings, and what a start with them would need, without a start.

    Reads FILE and the environment (MAILRAFT_*) as the process would, and is best asked as the user
    that it runs as. Tells the first error with its setting. Exit status 0: good, 2: not.

    Example: mailraft config check /etc/mailraft/node-1.toml --show
    """
    from mailraft.cluster import preflight, settings

    with guarded(output):
        loaded = settings.load(_class(kind) if kind else settings.kind_of(file), file)
        values = settings.effective(loaded, file) if show else []
        if values and output is Output.TABLE:
            emit_table(
                ("SETTING", "FROM", "VALUE"),
                [(each.name, each.origin, _shown(each.value)) for each in values],
            )
            typer.echo()
        preflight.check(loaded)
        doubts = preflight.doubts(loaded)
    if output is Output.TABLE:
        for doubt in doubts:
            typer.echo(f"note: {doubt}", err=True)
        typer.echo(f"OK {_summary(loaded)}")
    else:
        told = {each.name: {"value": each.value, "from": each.origin} for each in values}
        emit_json({"status": "OK", "notes": doubts, "settings": told})


@app.command("map")
def make_map(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; must not be there.")],
    node: Annotated[
        list[str],
        typer.Option(
            "--node", metavar="NUMBER=HOST:PORT[@ZONE]", help="A node; once for each of them."
        ),
    ],
    shards: Annotated[
        int, typer.Option(min=1, max=4096, help="How many: cannot be changed later.")
    ] = 64,
    output: OutputOption = Output.TABLE,
) -> None:
    """Write the map that a new cluster begins with. Give the same file to all its processes.

    Replicas of a shard go to nodes of different zones, and never to one host (by HOST).

    Example: mailraft config map map.json --node 1=h1:7400@a --node 2=h2:7400@b
    """
    from mailraft.cluster import mapfile
    from mailraft.cluster.errors import SettingsError

    with guarded(output):
        cluster_map = mapfile.make([_node(each) for each in node], shards)
        if file.exists():
            hint = "a running cluster's must stay; name another file for a new one"
            raise SettingsError(f"{file} is there already", hint)
        try:
            mapfile.save(file, cluster_map)
        except OSError as error:
            raise SettingsError(f"cannot write {file}: {error.strerror}") from error
    told = {"cluster_id": cluster_map.cluster_id, "nodes": len(node), "shards": shards}
    if output is Output.JSON:
        emit_json(told)
    else:
        typer.echo(f"{file}: " + " ".join(f"{name}={value}" for name, value in told.items()))


def _node(text: str) -> cluster_pb2.Node:
    """A node of NUMBER=HOST:PORT[@ZONE]. On loopback each counts as a host of its own."""
    from mailraft.cluster.addresses import is_loopback, split_address
    from mailraft.cluster.errors import SettingsError
    from mailraft.v1 import cluster_pb2

    number, _, rest = text.partition("=")
    address, _, zone = rest.partition("@")
    try:
        host, _ = split_address(address)
        if not 0 < int(number) < 2**32:
            raise ValueError("the number must be from 1 on")
    except ValueError as error:
        raise SettingsError(f"bad --node {text!r}: {error}") from None
    return cluster_pb2.Node(
        id=int(number),
        name=f"n{number}",
        address=address,
        zone=zone,
        host="" if is_loopback(address) else host,
        state=cluster_pb2.NODE_STATE_ACTIVE,
        weight_milli=1000,
    )


def _class(kind: Kind) -> type[NodeSettings | RouterSettings]:
    from mailraft.cluster.settings import NodeSettings, RouterSettings

    return NodeSettings if kind is Kind.NODE else RouterSettings


def _summary(loaded: ProcessSettings) -> str:
    from mailraft.cluster.settings import NodeSettings

    if isinstance(loaded, NodeSettings):
        return f"node n={loaded.node} listens {loaded.listen_address} data {loaded.data_dir}"
    return f"router listens {loaded.listen_address} map {loaded.map_file}"


def _shown(value: str | int | float | bool | None) -> str:
    if value is None or value == "":
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)

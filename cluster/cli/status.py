"""mailraft cluster status, locate, version: look at a cluster, change nothing."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

import typer

from mailraft.cluster.cli.account import AccountArgument
from mailraft.cluster.cli.connect import (
    CertsOption,
    InsecureOption,
    ServerOption,
    with_client,
)
from mailraft.cluster.cli.health import picture_of, show_alarms
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, emit_table

if TYPE_CHECKING:
    from mailraft.client import AsyncClient
    from mailraft.cluster.picture import Picture
    from mailraft.v1 import cluster_pb2

cluster = typer.Typer(help="The cluster: status.", no_args_is_help=True, rich_markup_mode=None)


@cluster.command("status")
def cluster_status(
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show how the cluster does. Exit status 0: OK, 1: DEGRADED, 3: UNAVAILABLE.

    DEGRADED: a node is silent, or something else is wrong, and all mail is served.
    UNAVAILABLE: a shard has no leader.

    Example: mailraft cluster status --server 10.0.0.5:7400 --certs certs
    """
    from mailraft.cluster.cli import describe

    picture = picture_of(server, certs, insecure, output)
    if output is Output.JSON:
        emit_json(_described(picture))
    else:
        typer.echo(picture.summary)
        show_alarms(picture)
        typer.echo()
        emit_table(describe.NODE_HEADERS, [describe.node_row(each) for each in picture.nodes])
    raise typer.Exit(picture.exit_code)


def locate(
    account: AccountArgument,
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show where an account is or would be: slot, shard, nodes. It need not exist.

    Example: mailraft locate alice
    """

    async def work(client: AsyncClient) -> cluster_pb2.LocateResponse:
        return await client.locate(account)

    found = with_client(server, certs, insecure, output, work)
    leader = found.shard.leader.node_id
    replicas = {replica.node_id: replica.replica_id for replica in found.shard.replicas}
    if output is Output.JSON:
        nodes = [
            {
                "node": node.id,
                "name": node.name,
                "address": node.address,
                "replica_id": replicas.get(node.id, 0),
                "leader": node.id == leader,
            }
            for node in found.nodes
        ]
        emit_json({"account": account, "slot": found.slot, "shard": found.shard.id, "nodes": nodes})
        return
    typer.echo(f"account={account} slot={found.slot} shard={found.shard.id} epoch={found.epoch}")
    rows = [
        (node.name, node.address, replicas.get(node.id, 0), "leader" if node.id == leader else "")
        for node in found.nodes
    ]
    emit_table(("NODE", "ADDRESS", "REPLICA", ""), rows)


def version(
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the version of this command.

    Example: mailraft version
    """
    number = metadata.version("mailraft")
    if output is Output.JSON:
        emit_json({"version": number})
    else:
        typer.echo(f"mailraft {number}")


def _described(picture: Picture) -> dict[str, object]:
    from mailraft.cluster.cli import describe

    return {
        "status": picture.word,
        "cluster_id": picture.told.cluster_id,
        "epoch": picture.told.epoch,
        "alarms": [describe.alarm(each) for each in picture.told.alarms],
        "nodes": [describe.node(each) for each in picture.nodes],
        "shards": [
            {
                "shard": each.shard.id,
                "leader": each.shard.leader.node_id,
                "term": each.shard.leader.term,
                "under_replicated": each.under_replicated,
                "replicas": [replica.node_id for replica in each.shard.replicas],
            }
            for each in picture.shards
        ],
    }

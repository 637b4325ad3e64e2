"""mailraft cluster status, locate, version: look at a cluster, change nothing."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Annotated

import typer

from mailraft.cluster.cli.account import AccountArgument
from mailraft.cluster.cli.connect import (
    CertsOption,
    Connection,
    InsecureOption,
    ServerOption,
    find,
    with_client,
)
from mailraft.cluster.cli.output import Output, OutputOption, emit_json, emit_table, guarded
from mailraft.cluster.errors import ExitCode

if TYPE_CHECKING:
    from mailraft.client import AsyncClient
    from mailraft.v1 import cluster_pb2

cluster = typer.Typer(help="The cluster: status.", no_args_is_help=True, rich_markup_mode=None)


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The map as the server tells it, and what each node says of itself."""

    map: cluster_pb2.ClusterMap
    reachable: frozenset[int]
    leaders: dict[int, cluster_pb2.LeaderHint]

    @property
    def headless(self) -> list[int]:
        return [shard.id for shard in self.map.shards if shard.id not in self.leaders]

    @property
    def word(self) -> str:
        if self.headless:
            return "UNAVAILABLE"
        return "OK" if len(self.reachable) == len(self.map.nodes) else "DEGRADED"

    @property
    def summary(self) -> str:
        nodes = f"{len(self.reachable)}/{len(self.map.nodes)}"
        shards = f"shards={len(self.map.shards)} no_leader={len(self.headless)}"
        return f"{self.word} epoch={self.map.epoch} nodes={nodes} {shards}"

    @property
    def exit_code(self) -> ExitCode:
        codes = {"OK": ExitCode.OK, "DEGRADED": ExitCode.FAILED}
        return codes.get(self.word, ExitCode.UNAVAILABLE)

    def led_by(self, node: int) -> int:
        return sum(hint.node_id == node for hint in self.leaders.values())

    def placed_on(self, node: int) -> int:
        replicas = (replica for shard in self.map.shards for replica in shard.replicas)
        return sum(replica.node_id == node for replica in replicas)


@cluster.command("status")
def cluster_status(
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show nodes and shards. Exit status 0: OK, 1: a node is down, 3: a shard has no leader."""
    with guarded(output):
        state = asyncio.run(_state(find(server, certs, insecure, "admin")))
    if output is Output.JSON:
        emit_json(_described(state))
    else:
        _show(state)
    raise typer.Exit(state.exit_code)


def locate(
    account: AccountArgument,
    server: ServerOption = None,
    certs: CertsOption = None,
    insecure: InsecureOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show where an account is or would be: slot, shard, nodes. It need not exist."""

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
    output: Annotated[Output, typer.Option("-o", "--output")] = Output.TABLE,
) -> None:
    """Show the version of this command."""
    number = metadata.version("mailraft")
    if output is Output.JSON:
        emit_json({"version": number})
    else:
        typer.echo(f"mailraft {number}")


async def _state(connection: Connection) -> ClusterState:
    from mailraft.cluster.observer import Observer

    async with connection.client() as client:
        cluster_map = await client.cluster_map()
    observer = Observer(cluster_map, connection.target, connection.credentials)
    try:
        maps = await observer.maps([node.id for node in cluster_map.nodes])
        reachable = frozenset(node for node, told in maps.items() if told is not None)
        return ClusterState(cluster_map, reachable, observer.newest(maps))
    finally:
        await observer.close()


def _show(state: ClusterState) -> None:
    typer.echo(state.summary)
    typer.echo()
    rows = [
        (
            node.name,
            node.address,
            "up" if node.id in state.reachable else "DOWN",
            state.placed_on(node.id),
            state.led_by(node.id),
        )
        for node in state.map.nodes
    ]
    emit_table(("NODE", "ADDRESS", "STATE", "REPLICAS", "LEADS"), rows)
    typer.echo()
    names = {node.id: node.name for node in state.map.nodes}
    shards = []
    for shard in state.map.shards:
        hint = state.leaders.get(shard.id)
        leader, term = (names.get(hint.node_id, "?"), hint.term) if hint else ("NONE", 0)
        on = ",".join(names.get(replica.node_id, "?") for replica in shard.replicas)
        shards.append((shard.id, leader, term, on))
    emit_table(("SHARD", "LEADER", "TERM", "REPLICAS"), shards)


def _described(state: ClusterState) -> dict[str, object]:
    return {
        "status": state.word,
        "cluster_id": state.map.cluster_id,
        "epoch": state.map.epoch,
        "nodes": [
            {
                "node": node.id,
                "name": node.name,
                "address": node.address,
                "reachable": node.id in state.reachable,
                "replicas": state.placed_on(node.id),
                "leads": state.led_by(node.id),
            }
            for node in state.map.nodes
        ],
        "shards": [
            {
                "shard": shard.id,
                "leader": leader.node_id if (leader := state.leaders.get(shard.id)) else 0,
                "term": leader.term if leader else 0,
                "replicas": [replica.node_id for replica in shard.replicas],
            }
            for shard in state.map.shards
        ],
    }

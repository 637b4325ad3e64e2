"""ClusterService from the map that is held here, without asking a node."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from google.protobuf.message import Message

from mailraft.router.table import RoutingTable
from mailraft.v1 import cluster_pb2
from mailraft.wire.slots import slot_of

HEARTBEAT_S = 15.0


def answer(
    table: RoutingTable,
    request: Message,
    capabilities: cluster_pb2.GetCapabilitiesResponse | None,
) -> Message | None:
    """The response, or None when a node knows better."""
    if isinstance(request, cluster_pb2.GetClusterMapRequest):
        return cluster_pb2.GetClusterMapResponse(map=map_since(table, request.known_epoch))
    if isinstance(request, cluster_pb2.LocateRequest):
        return _locate(table, request.account_id)
    if isinstance(request, cluster_pb2.GetCapabilitiesRequest) and capabilities is not None:
        response = cluster_pb2.GetCapabilitiesResponse()
        response.CopyFrom(capabilities)
        response.time_ms = time.time_ns() // 1_000_000
        return response
    return None


async def watch(
    table: RoutingTable, request: cluster_pb2.WatchClusterMapRequest
) -> AsyncIterator[cluster_pb2.WatchClusterMapResponse]:
    """The map now and with each new epoch, leaders as they change, else a heartbeat. Never ends."""
    told: dict[int, tuple[int, int]] = {}
    epoch = request.known_epoch
    while True:
        version = table.version
        update = cluster_pb2.WatchClusterMapResponse(epoch=table.epoch)
        if table.epoch != epoch:
            epoch = table.epoch
            update.map.CopyFrom(map_since(table, 0))
        for hint in table.leaders():
            news = (hint.node_id, hint.term)
            if told.get(hint.shard) != news:
                told[hint.shard] = news
                update.leaders.append(hint)
        yield update
        await table.wait_change(version, HEARTBEAT_S)


def map_since(table: RoutingTable, known_epoch: int) -> cluster_pb2.ClusterMap:
    """The map with the newest leader hints; only these for who has the epoch already."""
    topology = table.topology
    current = cluster_pb2.ClusterMap(cluster_id=topology.cluster_id, epoch=topology.epoch)
    hints = {hint.shard: hint for hint in table.leaders()}
    if known_epoch == topology.epoch:
        for shard, hint in sorted(hints.items()):
            current.shards.add(id=shard, leader=hint)
        return current
    current.CopyFrom(topology.map)
    for shard_now in current.shards:
        _set_leader(shard_now, hints)
    return current


def _locate(table: RoutingTable, account_id: str) -> cluster_pb2.LocateResponse:
    topology = table.topology
    slot = slot_of(account_id)
    shard = cluster_pb2.Shard()
    shard.CopyFrom(topology.shards[topology.shard_of_slot(slot)])
    _set_leader(shard, {hint.shard: hint for hint in table.leaders()})
    nodes = [
        topology.nodes[replica.node_id]
        for replica in shard.replicas
        if replica.node_id in topology.nodes
    ]
    return cluster_pb2.LocateResponse(slot=slot, shard=shard, nodes=nodes, epoch=topology.epoch)


def _set_leader(shard: cluster_pb2.Shard, hints: dict[int, cluster_pb2.LeaderHint]) -> None:
    shard.ClearField("leader")
    if shard.id in hints:
        shard.leader.CopyFrom(hints[shard.id])

"""The cluster map as a file: what a cluster begins with, and what a node saw last.

The file is the protobuf JSON of mailraft.v1.ClusterMap. Every process of a new cluster is given the
same; from then on the meta group keeps the map (cluster/meta), and each node a copy of it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from google.protobuf import json_format

from mailraft.cluster import mapseal
from mailraft.cluster.addresses import split_address
from mailraft.cluster.errors import MapFileError, TooOldError
from mailraft.cluster.placement import place
from mailraft.cluster.topology import Node, PlacementError
from mailraft.node.engine.watermark import sync_path
from mailraft.node.interfaces import META_GROUP, node_of, replica_id
from mailraft.router.ring import slot_ranges
from mailraft.v1 import cluster_pb2
from mailraft.wire import feature_levels
from mailraft.wire.slots import SLOTS

REPLICATION = 3
SHARDS_MAX = 4_096
NODES_MAX = 4_096
META_REPLICATION = 3
FIRST_INCARNATION = 1
FIRST_EPOCH = 1
_VOTER = cluster_pb2.REPLICA_ROLE_VOTER


def make(
    nodes: Sequence[cluster_pb2.Node], shards: int, *, cluster_id: str = ""
) -> cluster_pb2.ClusterMap:
    """The first map of a cluster: shards placed on the nodes by the ring, slots in equal ranges.

    With fewer than three hosts each holds a replica of every shard. Every node of a new cluster
    has this version, or a newer one: what it understands is enabled. Raises MapFileError.
    """
    if not 1 <= shards <= SHARDS_MAX:
        raise MapFileError(f"{shards} shards: from 1 to {SHARDS_MAX} are possible")
    numbers = range(1, shards + 1)
    placement = _placed(nodes, numbers, REPLICATION)
    cluster_map = cluster_pb2.ClusterMap(
        cluster_id=cluster_id or str(uuid.uuid4()),
        epoch=FIRST_EPOCH,
        slot_count=SLOTS,
        nodes=sorted(nodes, key=lambda node: node.id),
    )
    for shard, (first, last) in zip(numbers, slot_ranges(shards), strict=True):
        cluster_map.slots.add(first_slot=first, last_slot=last, shard=shard)
        cluster_map.shards.add(id=shard, replicas=placement[shard], configuration_version=1)
    add_meta(cluster_map)
    cluster_map.feature_level = feature_levels.LEVEL
    check(cluster_map)
    return cluster_map


def add_meta(cluster_map: cluster_pb2.ClusterMap) -> None:
    """Place the meta group, in a map that says nothing of it (from before 0.2.0, or new).

    From the map alone, so that every process that reads the file finds the same.
    """
    if cluster_map.HasField("meta"):
        return
    [replicas] = _placed(cluster_map.nodes, [META_GROUP], META_REPLICATION).values()
    cluster_map.meta.configuration_version = 1
    cluster_map.meta.replicas.extend(replicas)


def _placed(
    nodes: Iterable[cluster_pb2.Node], groups: Iterable[int], replication: int
) -> dict[int, list[cluster_pb2.Replica]]:
    """First replicas of groups, the preferred leader first: fewer if there are fewer hosts."""
    able = [Node.of(node) for node in nodes]
    hosts = {node.host_key for node in able if node.holds}
    try:
        placement = place(able, groups, max(1, min(replication, len(hosts))))
    except PlacementError as error:
        raise MapFileError(str(error)) from error
    return {
        group: [
            cluster_pb2.Replica(
                replica_id=replica_id(node, FIRST_INCARNATION), node_id=node, role=_VOTER
            )
            for node in chosen
        ]
        for group, chosen in placement.items()
    }


def save(path: Path, cluster_map: cluster_pb2.ClusterMap, *, sealed: bool = False) -> None:
    """Replace the file at once, on disk when this returns: a reader sees the old map or the new.
    sealed: with a checksum behind it, for a file that nobody writes by hand.
    """
    text = json_format.MessageToJson(cluster_map, preserving_proto_field_name=True, indent=1)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(mapseal.sealed(text) if sealed else text + "\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_path(path.parent)


def load(path: Path, *, sealed: bool = False) -> cluster_pb2.ClusterMap:
    """Read and check a map file. Raises MapFileError that says what is wrong."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise MapFileError(f"cannot read the cluster map {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MapFileError(f"the cluster map {path} is not text: {error}") from error
    try:
        if sealed:
            mapseal.check(text)
        cluster_map = json_format.Parse(text, cluster_pb2.ClusterMap())
        check(cluster_map)
        add_meta(cluster_map)
    except TooOldError:
        raise
    except (json_format.ParseError, MapFileError) as error:
        raise MapFileError(f"the cluster map {path} is not valid: {error}") from error
    return cluster_map


def check(cluster_map: cluster_pb2.ClusterMap) -> None:
    """Raise MapFileError unless each slot has a shard and each shard replicas on known nodes."""
    if not cluster_map.cluster_id:
        raise MapFileError("it has no cluster_id")
    if not cluster_map.epoch:
        raise MapFileError("its epoch is 0")
    if cluster_map.slot_count != SLOTS:
        raise MapFileError(f"it has {cluster_map.slot_count} slots, not {SLOTS}")
    if cluster_map.feature_level > feature_levels.LEVEL:
        raise TooOldError(cluster_map.feature_level)
    _check_nodes(cluster_map)
    shards = [shard.id for shard in cluster_map.shards]
    if not shards or shards != sorted(set(shards)):
        raise MapFileError("its shards are not numbered in ascending order, each once")
    _check_slots(cluster_map, set(shards))
    nodes = {node.id for node in cluster_map.nodes}
    if cluster_map.HasField("meta"):
        _check_replicas(cluster_map.meta, nodes)
    for shard in cluster_map.shards:
        _check_replicas(shard, nodes)


def _check_nodes(cluster_map: cluster_pb2.ClusterMap) -> None:
    numbers = [node.id for node in cluster_map.nodes]
    if not numbers or len(numbers) > NODES_MAX:
        raise MapFileError(f"it has {len(numbers)} nodes: from 1 to {NODES_MAX} are possible")
    if numbers != sorted(set(numbers)) or 0 in numbers:
        raise MapFileError("its nodes are not numbered from 1 in ascending order, each once")
    there = [node for node in cluster_map.nodes if node.state != cluster_pb2.NODE_STATE_REMOVED]
    for name in ("name", "address"):
        values = [getattr(node, name) for node in there]
        if len(set(values)) != len(values):
            raise MapFileError(f"two of its nodes have the same {name}")
    for node in there:
        try:
            split_address(node.address)
        except ValueError as error:
            raise MapFileError(f"address {node.address!r} of node {node.id}: {error}") from None


def _check_slots(cluster_map: cluster_pb2.ClusterMap, shards: set[int]) -> None:
    expected = 0
    for part in cluster_map.slots:
        if part.first_slot != expected or part.last_slot < part.first_slot:
            raise MapFileError(f"its slots do not go on at {expected}")
        if part.shard not in shards:
            raise MapFileError(f"slots {part.first_slot} to {part.last_slot} are in no shard")
        expected = part.last_slot + 1
    if expected != SLOTS:
        raise MapFileError(f"its slots end at {expected - 1}, not at {SLOTS - 1}")


def _check_replicas(shard: cluster_pb2.Shard, nodes: set[int]) -> None:
    on_nodes = [replica.node_id for replica in shard.replicas]
    if not on_nodes:
        raise MapFileError(f"shard {shard.id} has no replicas")
    if len(set(on_nodes)) != len(on_nodes):
        raise MapFileError(f"two replicas of shard {shard.id} are on one node")
    for replica in shard.replicas:
        if replica.node_id not in nodes:
            raise MapFileError(f"shard {shard.id} has a replica on node {replica.node_id}, unknown")
        if node_of(replica.replica_id) != replica.node_id:
            raise MapFileError(
                f"replica {replica.replica_id} of shard {shard.id} is not of node {replica.node_id}"
            )

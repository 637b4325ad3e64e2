"""The cluster map as a file: where every shard is, until the meta group keeps it.

The file is the protobuf JSON of mailraft.v1.ClusterMap. Every process of a cluster reads the same.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import json_format

from mailraft.cluster.addresses import split_address
from mailraft.cluster.errors import MapFileError
from mailraft.node.interfaces import Configuration, GroupId, Peer, node_of, replica_id
from mailraft.router import ring
from mailraft.v1 import cluster_pb2
from mailraft.wire.slots import SLOTS

REPLICATION = 3
SHARDS_MAX = 4_096
NODES_MAX = 4_096
# Nobody counts the lives of replicas before there is a meta group: all are in their first.
FIRST_INCARNATION = 1
FIRST_EPOCH = 1
_VOTER = cluster_pb2.REPLICA_ROLE_VOTER


def make(
    nodes: Sequence[cluster_pb2.Node], shards: int, *, cluster_id: str = ""
) -> cluster_pb2.ClusterMap:
    """The first map of a cluster: shards placed on the nodes by the ring, slots in equal ranges.

    With fewer than three nodes each holds a replica of every shard. Raises MapFileError.
    """
    if not 1 <= shards <= SHARDS_MAX:
        raise MapFileError(f"{shards} shards: from 1 to {SHARDS_MAX} are possible")
    numbers = range(1, shards + 1)
    on_ring = [ring.RingNode(each.id, each.zone, each.host, each.weight_milli) for each in nodes]
    placement = ring.place(on_ring, numbers, REPLICATION)
    cluster_map = cluster_pb2.ClusterMap(
        cluster_id=cluster_id or str(uuid.uuid4()),
        epoch=FIRST_EPOCH,
        slot_count=SLOTS,
        nodes=sorted(nodes, key=lambda node: node.id),
    )
    for shard, (first, last) in zip(numbers, ring.slot_ranges(shards), strict=True):
        cluster_map.slots.add(first_slot=first, last_slot=last, shard=shard)
        replicas = [
            cluster_pb2.Replica(
                replica_id=replica_id(node, FIRST_INCARNATION), node_id=node, role=_VOTER
            )
            for node in sorted(placement[shard])
        ]
        cluster_map.shards.add(id=shard, replicas=replicas, configuration_version=1)
    check(cluster_map)
    return cluster_map


def save(path: Path, cluster_map: cluster_pb2.ClusterMap) -> None:
    """Replace the file at once: a reader sees the old map or the new one."""
    text = json_format.MessageToJson(cluster_map, preserving_proto_field_name=True, indent=1)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text + "\n", "utf-8")
    fresh.replace(path)


def load(path: Path) -> cluster_pb2.ClusterMap:
    """Read and check a map file. Raises MapFileError that says what is wrong."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise MapFileError(f"cannot read the cluster map {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MapFileError(f"the cluster map {path} is not text: {error}") from error
    try:
        cluster_map = json_format.Parse(text, cluster_pb2.ClusterMap())
        check(cluster_map)
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
    _check_nodes(cluster_map)
    shards = [shard.id for shard in cluster_map.shards]
    if not shards or shards != sorted(set(shards)):
        raise MapFileError("its shards are not numbered in ascending order, each once")
    _check_slots(cluster_map, set(shards))
    nodes = {node.id for node in cluster_map.nodes}
    for shard in cluster_map.shards:
        _check_replicas(shard, nodes)


def _check_nodes(cluster_map: cluster_pb2.ClusterMap) -> None:
    numbers = [node.id for node in cluster_map.nodes]
    if not numbers or len(numbers) > NODES_MAX:
        raise MapFileError(f"it has {len(numbers)} nodes: from 1 to {NODES_MAX} are possible")
    if numbers != sorted(set(numbers)) or 0 in numbers:
        raise MapFileError("its nodes are not numbered from 1 in ascending order, each once")
    for name in ("name", "address"):
        values = [getattr(node, name) for node in cluster_map.nodes]
        if len(set(values)) != len(values):
            raise MapFileError(f"two of its nodes have the same {name}")
    for node in cluster_map.nodes:
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


class StaticMaps:
    """The map as a node's services ask for it (node.services.Maps): one that stays."""

    def __init__(self, cluster_map: cluster_pb2.ClusterMap) -> None:
        self._map = cluster_map

    def current(self) -> cluster_pb2.ClusterMap:
        return self._map

    async def wait_newer(self, epoch: int, timeout_s: float) -> None:
        if self._map.epoch <= epoch:
            await asyncio.sleep(timeout_s)


class StaticClusterView:
    """What a node sees of its cluster (node.interfaces.ClusterView), from a map that stays."""

    def __init__(self, cluster_map: cluster_pb2.ClusterMap, node: int) -> None:
        """Raises MapFileError if the map does not know the node."""
        self._map = cluster_map
        self._node = node
        if node not in {each.id for each in cluster_map.nodes}:
            raise MapFileError(f"the cluster map has no node {node}")
        self._shard_of_slot = [0] * SLOTS
        for part in cluster_map.slots:
            size = part.last_slot - part.first_slot + 1
            self._shard_of_slot[part.first_slot : part.last_slot + 1] = [part.shard] * size
        self._peers = tuple(
            Peer(each.id, each.name, each.address, each.zone, each.host)
            for each in cluster_map.nodes
        )
        self._groups = tuple(
            (shard.id, _configuration(shard))
            for shard in cluster_map.shards
            if any(replica.node_id == node for replica in shard.replicas)
        )

    @property
    def cluster_id(self) -> str:
        return self._map.cluster_id

    @property
    def node(self) -> int:
        return self._node

    @property
    def epoch(self) -> int:
        return self._map.epoch

    def peers(self) -> Sequence[Peer]:
        return self._peers

    def groups(self) -> Sequence[tuple[GroupId, Configuration]]:
        return self._groups

    def shard_of_slot(self, slot: int) -> GroupId:
        return self._shard_of_slot[slot]


def _configuration(shard: cluster_pb2.Shard) -> Configuration:
    voters = sorted(each.replica_id for each in shard.replicas if each.role == _VOTER)
    learners = sorted(each.replica_id for each in shard.replicas if each.role != _VOTER)
    return Configuration(shard.configuration_version, tuple(voters), tuple(learners))

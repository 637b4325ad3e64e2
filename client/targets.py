"""The cluster as a client sees it that sends everything through its targets."""

from __future__ import annotations

from collections.abc import Sequence

from mailraft.v1 import cluster_pb2
from mailraft.wire.slots import SLOTS


def stand_in_map(targets: Sequence[str]) -> cluster_pb2.ClusterMap:
    """One shard that each target holds and the first leads. Epoch 0: older than any real one."""
    nodes = [
        cluster_pb2.Node(id=number, name=f"target-{number}", address=address)
        for number, address in enumerate(targets, start=1)
    ]
    replicas = [
        cluster_pb2.Replica(
            replica_id=node.id, node_id=node.id, role=cluster_pb2.REPLICA_ROLE_VOTER
        )
        for node in nodes
    ]
    leader = cluster_pb2.LeaderHint(node_id=1, replica_id=1)
    return cluster_pb2.ClusterMap(
        slot_count=SLOTS,
        slots=[cluster_pb2.SlotRange(first_slot=0, last_slot=SLOTS - 1)],
        shards=[cluster_pb2.Shard(replicas=replicas, leader=leader)],
        nodes=nodes,
    )

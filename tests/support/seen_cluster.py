"""A cluster as its controller sees it, made up: three nodes that are well, or not."""

from __future__ import annotations

from dataclasses import replace

from mailraft.cluster import mapfile
from mailraft.cluster.control.observed import Observed
from mailraft.cluster.meta.settings import DEFAULTS
from mailraft.internal.v1 import control_pb2
from mailraft.v1 import cluster_pb2

GIB = 1 << 30
SHARDS = 2


def seen(nodes: int = 3) -> Observed:
    """A cluster without anything wrong: n1 leads all, and everybody was heard just now."""
    made = mapfile.make(
        [
            cluster_pb2.Node(
                id=number,
                name=f"n{number}",
                address=f"h{number}:7400",
                state=cluster_pb2.NODE_STATE_ACTIVE,
                weight_milli=1000,
            )
            for number in range(1, nodes + 1)
        ],
        SHARDS,
    )
    reports = {}
    for node in made.nodes:
        report = reports[node.id] = control_pb2.ReportResponse(
            node_id=node.id,
            version="0.3.0",
            feature_level=made.feature_level,
            disk_used_bytes=GIB,
            disk_free_bytes=90 * GIB,
            disk_total_bytes=100 * GIB,
        )
        for group in (made.meta, *made.shards):
            for replica in group.replicas:
                if replica.node_id == node.id:
                    told = report.replicas.add(
                        group=group.id,
                        replica_id=replica.replica_id,
                        leading=node.id == 1,
                        term=1,
                        applied_index=10 + group.id,
                        last_index=10 + group.id,
                    )
                    if told.leading:
                        for other in group.replicas:
                            if other.node_id != 1:
                                told.progress.add(
                                    replica_id=other.replica_id, match_index=8 + group.id
                                )
    return Observed(
        map=made,
        settings=DEFAULTS,
        jobs=(),
        reports=reports,
        silent_s=dict.fromkeys(reports, 0.1),
    )


def silent(before: Observed, node: int) -> Observed:
    """The same once a node was not heard for a while."""
    return replace(before, silent_s={**before.silent_s, node: 12.0})

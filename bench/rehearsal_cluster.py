"""What the rehearsal (bench/rehearse.py) asks a cluster: is every replica where the map says?"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc

from mailraft.cluster.local import LocalCluster
from mailraft.cluster.operator import Operator
from mailraft.internal.v1 import control_pb2, control_pb2_grpc
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import META_GROUP
from mailraft.v1 import cluster_pb2, job_pb2
from mailraft.wire.credentials import open_channel

ASK_S_MAX = 2.0
HEARD_DEADLINE_S = 20.0
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Look:
    """One look at everything: by the meta group, its jobs, and each node's own report."""

    under_replicated: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)  # jobs that are open, nodes that do not answer
    reports: Mapping[int, control_pb2.ReportResponse] = field(default_factory=dict)

    def complaints(self) -> list[str]:
        """Empty when all is well."""
        return [*self.under_replicated, *self.left_over, *self.other]


def present(cluster_map: cluster_pb2.ClusterMap) -> list[cluster_pb2.Node]:
    """The nodes that have not left."""
    return [each for each in cluster_map.nodes if each.state != cluster_pb2.NODE_STATE_REMOVED]


def groups(cluster_map: cluster_pb2.ClusterMap) -> list[cluster_pb2.Shard]:
    """The meta group, then the shards."""
    return [cluster_map.meta, *cluster_map.shards]


class Watcher:
    """Looks at a cluster from outside, and at the folders of nodes that have ended."""

    def __init__(self, cluster: LocalCluster, operator: Operator) -> None:
        self._cluster, self._operator = cluster, operator

    async def look(self) -> Look:
        """Raises MailraftError when the meta group does not answer in time."""
        status = await self._operator.status()
        under = [
            f"s{each.shard.id} is {'under-replicated' if each.available else 'not available'}"
            for each in status.shards
            if each.under_replicated or not each.available
        ]
        other = [
            f"job {each.id} is open: {each.activity}"
            for each in await self._operator.jobs(open_only=True)
        ]
        cluster_map = await self._operator.newest_map()
        reports = await self._reports(cluster_map)
        wanted = {replica.replica_id for group in groups(cluster_map) for replica in group.replicas}
        left = [
            f"n{node} has replica {replica.replica_id:#x} of s{replica.group}, the map has not"
            for node, report in reports.items()
            for replica in report.replicas
            if replica.replica_id not in wanted
        ]
        silent = {each.id for each in present(cluster_map)} - reports.keys()
        other += [f"n{node} does not answer" for node in sorted(silent)]
        return Look(under, left, other, reports)

    async def wait_heard(self, node: int) -> None:
        """Wait until the controller has heard of a node."""
        async with asyncio.timeout(HEARD_DEADLINE_S):
            while True:
                told = (await self._operator.status()).nodes
                if any(each.node.id == node and each.reachable for each in told):
                    return
                await asyncio.sleep(POLL_S)

    async def meta_leader(self) -> int:
        """The node where the controller runs."""
        reports = (await self.look()).reports
        [number] = [
            node
            for node, report in reports.items()
            if any(each.group == META_GROUP and each.leading for each in report.replicas)
        ]
        return number

    async def finished_moves(self) -> dict[str, job_pb2.MoveSpec]:
        """By job id."""
        return {
            each.id: each.spec.move
            for each in await self._operator.jobs()
            if each.spec.HasField("move") and each.state == job_pb2.JOB_STATE_SUCCEEDED
        }

    def on_disk(self, node: int) -> list[str]:
        """The replicas in the folder of a node that has ended."""
        cluster_id = self._cluster.map.cluster_id
        store = Store.open(self._cluster.data_folder(node), cluster_id=cluster_id, node=node)
        try:
            return [f"s{group}" for group, _ in store.groups()]
        finally:
            store.close()

    async def _reports(
        self, cluster_map: cluster_pb2.ClusterMap
    ) -> dict[int, control_pb2.ReportResponse]:
        nodes = present(cluster_map)
        told = await asyncio.gather(*(self._report(cluster_map.cluster_id, each) for each in nodes))
        return {
            node.id: report for node, report in zip(nodes, told, strict=True) if report is not None
        }

    async def _report(
        self, cluster_id: str, node: cluster_pb2.Node
    ) -> control_pb2.ReportResponse | None:
        # Only nodes may ask, so each is asked under its own name.
        channel = open_channel(node.address, self._cluster.credentials(f"node-{node.id}"))
        try:
            request = control_pb2.ReportRequest(cluster_id=cluster_id)
            told: control_pb2.ReportResponse = await control_pb2_grpc.ControlServiceStub(
                channel
            ).Report(request, timeout=ASK_S_MAX)
        except grpc.aio.AioRpcError:
            return None
        finally:
            await channel.close(None)
        return told

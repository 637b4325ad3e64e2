"""Asking the processes of a cluster how they do: each for itself, with short deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import grpc

from mailraft.v1 import cluster_pb2, cluster_pb2_grpc
from mailraft.wire.channels import Channels
from mailraft.wire.credentials import AnyCredentials

ASK_DEADLINE_S = 2.0
# A process that has just started is tried again soon, not after the backoff of a client.
CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 200),
)

# Node to its own cluster map; None: it does not answer.
Maps = Mapping[int, cluster_pb2.ClusterMap | None]


class Observer:
    """Keeps a channel to the router and to every node of a cluster map."""

    def __init__(
        self, cluster_map: cluster_pb2.ClusterMap, router: str, credentials: AnyCredentials
    ) -> None:
        self._shards = [shard.id for shard in cluster_map.shards]
        self._channels = Channels(credentials, CHANNEL_OPTIONS)
        self._router = router
        self._nodes = {node.id: node.address for node in cluster_map.nodes}

    async def close(self) -> None:
        await self._channels.close()

    async def maps(self, nodes: Iterable[int]) -> Maps:
        """What each of these nodes tells."""
        asked = list(nodes)
        told = await asyncio.gather(*(self._map(self._nodes[node]) for node in asked))
        return dict(zip(asked, told, strict=True))

    async def not_ready(self, nodes: Iterable[int]) -> str:
        """What is still missing until every call would be served; empty: nothing."""
        routed, maps = await asyncio.gather(self._map(self._router), self.maps(nodes))
        if routed is None:
            return "the router does not answer"
        silent = [str(node) for node, told in maps.items() if told is None]
        if silent:
            return f"no answer from node {', '.join(silent)}"
        leaders = self.newest(maps)
        headless = [str(shard) for shard in self._shards if shard not in leaders]
        return f"no leader in shard {', '.join(headless)}" if headless else ""

    @staticmethod
    def newest(maps: Maps) -> dict[int, cluster_pb2.LeaderHint]:
        """Shard to the leader of the highest term that anybody tells of, if it answers itself."""
        newest: dict[int, cluster_pb2.LeaderHint] = {}
        for told in maps.values():
            for shard in told.shards if told is not None else ():
                known, hint = newest.get(shard.id), shard.leader
                if hint.node_id and (known is None or hint.term > known.term):
                    newest[shard.id] = hint
        return {shard: hint for shard, hint in newest.items() if maps.get(hint.node_id) is not None}

    async def _map(self, address: str) -> cluster_pb2.ClusterMap | None:
        stub = cluster_pb2_grpc.ClusterServiceStub(self._channels.to(address))
        request = cluster_pb2.GetClusterMapRequest()
        try:
            reply = await stub.GetClusterMap(request, timeout=ASK_DEADLINE_S)
        except grpc.aio.AioRpcError:
            return None
        return reply.map

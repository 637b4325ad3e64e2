"""Keeps a node's map the newest: from its own replica of the meta group, else from another node."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import grpc

from mailraft.cluster.control.metagroup import MetaGroup
from mailraft.cluster.errors import MapFileError, TooOldError
from mailraft.cluster.maps import ClusterMaps
from mailraft.cluster.meta import state
from mailraft.node.interfaces import Peer
from mailraft.v1 import cluster_pb2, cluster_pb2_grpc
from mailraft.wire.credentials import AnyCredentials, open_channel

log = logging.getLogger(__name__)

APPLIED_WAIT_S = 1.0
HEARTBEAT_MAX_S = 30.0  # twice what WatchClusterMap promises
RETRY_S = 0.5
CATCH_UP_S = 1.0  # a start waits so long for nodes that do not answer


class MapFollower:
    """`run` until cancelled. ended: called once the map says that this node has left (None), or is
    too old for the cluster.
    """

    def __init__(
        self,
        maps: ClusterMaps,
        meta: MetaGroup,
        credentials: AnyCredentials,
        *,
        now_s: Callable[[], float],
        ended: Callable[[TooOldError | None], None],
    ) -> None:
        self._maps, self._meta, self._credentials = maps, meta, credentials
        self._now_s, self._ended = now_s, ended

    async def run(self) -> None:
        async with asyncio.TaskGroup() as both:
            both.create_task(self._own())
            both.create_task(self._others())

    async def catch_up(self) -> None:
        """Once, before anything of this node serves: take the newest map that another node has.

        This node may have been away for long: given up, with its replicas forced elsewhere. Who
        does not answer at once is not waited for.
        """
        others = [peer for peer in self._maps.peers() if peer.node != self._maps.node]
        told = await asyncio.gather(*(self._map_of(peer) for peer in others))
        known = [each for each in told if each is not None]
        if known:
            self._install(max(known, key=lambda each: each.epoch))

    async def _map_of(self, peer: Peer) -> cluster_pb2.ClusterMap | None:
        request = cluster_pb2.GetClusterMapRequest(known_epoch=self._maps.epoch)
        async with open_channel(peer.address, self._credentials) as channel:
            stub = cluster_pb2_grpc.ClusterServiceStub(channel)
            try:
                answer = await stub.GetClusterMap(request, timeout=CATCH_UP_S)
            except grpc.aio.AioRpcError:
                return None
        told: cluster_pb2.ClusterMap = answer.map
        return told

    async def _own(self) -> None:
        while True:
            view = self._meta.local()
            head = state.head(view) if view is not None else None
            if view is not None and head is not None and head.epoch > self._maps.epoch:
                newest = state.cluster_map(view)
                assert newest is not None
                self._install(newest)
            applied = await self._meta.wait_applied(deadline_s=self._now_s() + APPLIED_WAIT_S)
            if not applied and self._meta.local() is None:
                await asyncio.sleep(APPLIED_WAIT_S)

    async def _others(self) -> None:
        """Also with a replica of its own, which may be cut off from the rest of its group."""
        while True:
            try:
                await self._watch_one()
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else "silence"
                log.debug("watching the map of another node ends: %s", reason)
            await asyncio.sleep(RETRY_S)

    async def _watch_one(self) -> None:
        current = self._maps.current()
        members = {each.node_id for each in current.meta.replicas}
        others = [peer for peer in self._maps.peers() if peer.node != self._maps.node]
        if not others:
            await asyncio.sleep(HEARTBEAT_MAX_S)
            return
        peer = random.choice([each for each in others if each.node in members] or others)
        async with open_channel(peer.address, self._credentials) as channel:
            stub = cluster_pb2_grpc.ClusterServiceStub(channel)
            request = cluster_pb2.WatchClusterMapRequest(known_epoch=self._maps.epoch)
            updates = stub.WatchClusterMap(request).__aiter__()
            while True:
                # Not wait_for, which may swallow a cancellation in Python 3.11.
                async with asyncio.timeout(HEARTBEAT_MAX_S):
                    update = await anext(updates, None)
                if update is None:
                    return
                if update.HasField("map"):
                    self._install(update.map)

    def _install(self, cluster_map: cluster_pb2.ClusterMap) -> None:
        """A map that tells leaders too is taken without: they are hints of that moment."""
        bare = cluster_pb2.ClusterMap()
        bare.CopyFrom(cluster_map)
        for shard in bare.shards:
            shard.ClearField("leader")
        mine = next((each for each in bare.nodes if each.id == self._maps.node), None)
        if (
            bare.epoch > self._maps.epoch
            and bare.cluster_id == self._maps.cluster_id
            and mine is not None
            and mine.state == cluster_pb2.NODE_STATE_REMOVED
        ):
            log.warning("node %d has left the cluster", self._maps.node)
            self._ended(None)
            return
        try:
            if self._maps.install(bare):
                log.info("cluster map of epoch %d", bare.epoch)
        except TooOldError as error:
            self._ended(error)
        except MapFileError as error:
            log.error("a map of another node is not taken: %s", error)  # noqa: TRY400 - no bug of ours

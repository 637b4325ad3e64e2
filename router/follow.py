"""Follows the cluster map at one node at a time, so that a router knows before a call fails."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

from mailraft.router.fleet import Fleet
from mailraft.router.methods import METHODS
from mailraft.v1 import cluster_pb2
from mailraft.wire import errors

HEARTBEAT_MAX_S = 30.0  # twice what WatchClusterMap promises
RETRY_S = 0.5

_WATCH = METHODS["/mailraft.v1.ClusterService/WatchClusterMap"]


async def follow(fleet: Fleet) -> None:
    """Install newer maps and leader hints as some node tells them. Until cancelled."""
    while True:
        # The next node may do better; calls go on with the map there is.
        with suppress(errors.MailraftError, TimeoutError, ValueError):
            await _watch_one(fleet)
        await asyncio.sleep(RETRY_S)


async def _watch_one(fleet: Fleet) -> None:
    places = fleet.table.topology.cluster_places
    node = fleet.node(random.choice(places))
    request = cluster_pb2.WatchClusterMapRequest(known_epoch=fleet.table.epoch)
    updates = node.stream(_WATCH, request, None, ())
    try:
        while True:
            # Not wait_for, which may swallow a cancellation in Python 3.11.
            async with asyncio.timeout(HEARTBEAT_MAX_S):
                update = await anext(updates, None)
            if update is None:
                return
            assert isinstance(update, cluster_pb2.WatchClusterMapResponse)
            await fleet.install(_told(fleet, update))
    finally:
        await updates.aclose()


def _told(fleet: Fleet, update: cluster_pb2.WatchClusterMapResponse) -> cluster_pb2.ClusterMap:
    """The new map, or the leaders alone, as a map that says no more."""
    if update.HasField("map"):
        return update.map
    return cluster_pb2.ClusterMap(
        cluster_id=fleet.table.topology.cluster_id,
        shards=[cluster_pb2.Shard(id=each.shard, leader=each) for each in update.leaders],
    )

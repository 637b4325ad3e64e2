"""A node that starts asks the others for the newest map before it serves anything."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from mailraft.cluster.control.following import CATCH_UP_S, MapFollower
from mailraft.cluster.control.member import Member
from mailraft.cluster.control.metagroup import MetaGroup
from mailraft.cluster.errors import TooOldError
from mailraft.cluster.maps import ClusterMaps
from mailraft.node.server import NodeOptions
from mailraft.v1 import cluster_pb2, cluster_pb2_grpc
from mailraft.wire.credentials import Insecure
from meta_driver import REMOVED, first_map


class Peer(cluster_pb2_grpc.ClusterServiceServicer):
    """Another node, with a map of its own."""

    def __init__(self, told: cluster_pb2.ClusterMap) -> None:
        self.told = told

    async def GetClusterMap(
        self, request: cluster_pb2.GetClusterMapRequest, context: Any
    ) -> cluster_pb2.GetClusterMapResponse:
        return cluster_pb2.GetClusterMapResponse(map=self.told)


@asynccontextmanager
async def serving(told: cluster_pb2.ClusterMap) -> AsyncIterator[str]:
    """Its address."""
    server = grpc.aio.server()
    cluster_pb2_grpc.add_ClusterServiceServicer_to_server(
        Peer(told),  # type: ignore[abstract]  # nobody calls anything else
        server,
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def copy_of(cluster_map: cluster_pb2.ClusterMap, epoch: int) -> cluster_pb2.ClusterMap:
    """The same, at another epoch."""
    told = cluster_pb2.ClusterMap()
    told.CopyFrom(cluster_map)
    told.epoch = epoch
    return told


async def caught_up(maps: ClusterMaps) -> list[TooOldError | None]:
    """Have node 1 ask; what it ended with, if it did."""
    ended: list[TooOldError | None] = []
    meta = MetaGroup(maps, lambda: None, wall_ms=lambda: 0)
    follower = MapFollower(maps, meta, Insecure(), now_s=time.monotonic, ended=ended.append)
    await follower.catch_up()
    return ended


async def test_the_newest_map_of_all_that_answer_is_taken() -> None:
    """Who does not answer keeps nobody waiting."""
    first = first_map(count=4)
    async with serving(copy_of(first, 7)) as one, serving(copy_of(first, 9)) as other:
        for node, address in zip(first.nodes[1:], (one, other, "127.0.0.1:1"), strict=True):
            node.address = address
        maps = ClusterMaps(first, 1)
        began_s = time.monotonic()
        assert not await caught_up(maps)
        assert maps.epoch == 9
        assert time.monotonic() - began_s < 3 * CATCH_UP_S


async def test_a_node_that_was_given_up_meanwhile_does_not_begin() -> None:
    """It has left the cluster: nothing of its folder is served."""
    first = first_map(count=2)
    newer = copy_of(first, 8)
    newer.nodes[0].state = REMOVED
    async with serving(newer) as other:
        first.nodes[1].address = other
        assert await caught_up(ClusterMaps(first, 1)) == [None]


async def test_alone_it_begins_with_what_it_has() -> None:
    """As when all nodes are started at once."""
    first = first_map(count=2)
    first.nodes[1].address = "127.0.0.1:1"
    maps = ClusterMaps(first, 1)
    assert not await caught_up(maps)
    assert maps.epoch == first.epoch


async def test_a_process_of_such_a_node_ends_in_good_order(tmp_path: Path) -> None:
    """It opens no folder and no port, and its end is no error."""
    first = first_map(count=2)
    newer = copy_of(first, 8)
    newer.nodes[0].state = REMOVED
    async with serving(newer) as other:
        first.nodes[1].address = other
        options = NodeOptions(
            data_dir=tmp_path / "data",
            listen_address="127.0.0.1:0",
            credentials=Insecure(),
            registry=CollectorRegistry(),
        )
        member = Member(options, ClusterMaps(first, 1))
        await member.start()
        await member.failed  # without an error
        await member.stop(0.1)
    assert not (tmp_path / "data").exists()

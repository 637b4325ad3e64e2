"""What nodes and routers say of their readiness, and why not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mailraft.node import server as node_server
from mailraft.router import service
from mailraft.wire.credentials import Insecure
from three_nodes import SHARD, Nodes, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """All three are up, and everybody knows who leads."""
    found = Nodes(tmp_path)
    for number in (1, 2, 3):
        await found.start(number)
    await until(lambda: all(not wrong(found, number) for number in (1, 2, 3)))
    yield found
    for number in list(found.running):
        await found.stop(number)


def wrong(nodes: Nodes, number: int) -> dict[str, str]:
    """What does not hold at a node, and why."""
    return {name: why for name, why in nodes.running[number].checks().items() if why}


async def test_without_a_majority(nodes: Nodes) -> None:
    """The one that is left says of which shard it knows no leader, until there is one again."""
    left, *others = [*sorted({1, 2, 3} - {nodes.leader}), nodes.leader]
    for number in others:
        await nodes.stop(number)
    await until(lambda: wrong(nodes, left) == {"leaders": f"none known of shard {SHARD}"})
    await nodes.start(others[0])
    await until(lambda: not wrong(nodes, left))


async def test_a_stopped_replica(nodes: Nodes) -> None:
    """Serves nothing any more, whatever else holds."""
    next(iter(nodes.running[1].replicas())).stop("as if it were damaged")
    assert wrong(nodes, 1) == {"replicas": f"stopped: of shard {SHARD}"}


async def test_a_disk_that_hangs(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told while it hangs, and no longer."""
    monkeypatch.setattr(node_server, "FLUSH_HUNG_S", 0.1)
    store = nodes.store(nodes.leader)
    flush = store.flush

    def hang() -> int:
        monkeypatch.setattr(store, "flush", flush)
        time.sleep(0.5)
        return flush()

    leader = nodes.leader
    monkeypatch.setattr(store, "flush", hang)
    async with nodes.client() as mail:
        await mail.create_account("alice")
        await until(lambda: wrong(nodes, leader).get("disk", "").startswith("a flush takes 0."))
        await until(lambda: "disk" not in wrong(nodes, leader))


async def test_a_router(nodes: Nodes) -> None:
    """Is ready as long as it does not know that no node answers."""
    router = await service.serve(nodes.map, Insecure(), "127.0.0.1:0")
    try:
        assert router.checks() == {"serving": "", "nodes": ""}
        fleet = router.dispatcher.fleet
        for place in fleet.table.topology.cluster_places:
            fleet.node(place).mark_suspect()
        assert router.checks()["nodes"] == "none of them answers"
    finally:
        await router.stop(drain_s=0, grace_s=0.1)


async def test_grpc_health_of_a_node_that_stops(nodes: Nodes) -> None:
    """Whoever watches a service is told before its calls are ended."""
    stopping = next(number for number in (1, 2, 3) if number != nodes.leader)
    address = nodes.map.nodes[stopping - 1].address
    async with grpc.aio.insecure_channel(address) as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="mailraft.v1.MessageService")
        )
        assert (await watched.read()).status == SERVING
        await nodes.stop(stopping)
        assert (await watched.read()).status == NOT_SERVING

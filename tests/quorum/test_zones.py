"""EACH_ZONE, and the counts above a majority, on five voters in three zones of which two share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.quorum.cells import (
    ALICE,
    LINEARIZABLE,
    LOCAL,
    OF_MAJORITY,
    SESSION,
    committed,
    connected,
    leader_and_others,
    read,
    refused,
    short,
    until_met,
    write,
)

from mailraft.client import Ack, AsyncClient, Consistency, errors
from mailraft.cluster import mapfile, ports
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.node.interfaces import replica_id
from mailraft.router.ring import WEIGHT_SHARE_MILLI
from mailraft.v1 import cluster_pb2, error_pb2

pytestmark = pytest.mark.timeout(200)

ZONES = {1: "north", 2: "north", 3: "south", 4: "south", 5: "west"}
EACH_ZONE: Any = {"ack": Ack.EACH_ZONE}
ALL: Any = {"ack": Ack.ALL}


def replicas(number: int) -> Any:
    """REPLICAS(n)."""
    return {"ack": Ack.REPLICAS, "replicas": number}


def quorum(number: int) -> Any:
    """QUORUM(n) of a read."""
    return {"consistency": Consistency.QUORUM, "replicas": number}


def zoned_map() -> cluster_pb2.ClusterMap:
    """One shard with a voter on each node."""
    nodes = [
        cluster_pb2.Node(
            id=number,
            name=f"n{number}",
            address=f"{ports.LOOPBACK}:{port}",
            state=cluster_pb2.NODE_STATE_ACTIVE,
            weight_milli=WEIGHT_SHARE_MILLI,
            zone=ZONES[number],
        )
        for number, port in zip(ZONES, ports.choose(len(ZONES)), strict=True)
    ]
    made = mapfile.make(nodes, 1)
    del made.shards[0].replicas[:]
    for number in ZONES:
        made.shards[0].replicas.add(
            replica_id=replica_id(number, mapfile.FIRST_INCARNATION),
            node_id=number,
            role=cluster_pb2.REPLICA_ROLE_VOTER,
        )
    return made


@pytest.fixture
async def zoned(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Five nodes and a router, ready."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    mapfile.save(folder / "map.json", zoned_map())
    async with LocalCluster(folder, LocalOptions()) as running:
        await running.wait_ready()
        yield running


@pytest.fixture
async def mail(zoned: LocalCluster) -> AsyncIterator[AsyncClient]:
    """A client of `zoned`, with an account that has a message."""
    async with connected(zoned) as client:
        yield client


async def missing_zones(mail: AsyncClient) -> list[str]:
    """What EACH_ZONE is refused for; a delivery, whose answer has no details, says it in words."""
    unavailable = errors.QuorumUnavailableError
    delivery = await refused(write(mail, **short(EACH_ZONE)), unavailable)
    other = await refused(mail.create_mailbox(ALICE, "Sent", **short(EACH_ZONE)), unavailable)
    assert isinstance(other.detail, error_pb2.QuorumUnavailable)
    zones = list(other.detail.missing_zones)
    assert f"none in zone {', '.join(zones)}" in delivery.message
    return zones


async def test_zones_that_are_gone(zoned: LocalCluster, mail: AsyncClient) -> None:
    """A zone is there while one of its voters is; without it EACH_ZONE is refused and names it, and
    everything that can do with what is left goes on.
    """
    _, others = await leader_and_others(zoned)
    for args in (EACH_ZONE, ALL, replicas(4), replicas(5)):
        await committed(mail, args)

    shared = next(node for node in others if ZONES[node] != "west")
    zoned.kill(shared)
    assert (await committed(mail, EACH_ZONE)).replicas >= 3
    await committed(mail, replicas(4))
    for args in (ALL, replicas(5)):
        await refused(write(mail, **short(args)), errors.QuorumUnavailableError)
    await read(mail, quorum(4))
    await refused(read(mail, short(quorum(5))), errors.QuorumUnavailableError)

    neighbour = next(node for node in ZONES if ZONES[node] == ZONES[shared] and node != shared)
    zoned.kill(neighbour)  # it may lead: a whole zone is gone, three of five are left
    await committed(mail, replicas(3))
    assert await missing_zones(mail) == [ZONES[shared]]
    for args in (LINEARIZABLE, OF_MAJORITY, SESSION, LOCAL):
        await read(mail, args)
    await refused(write(mail, **short(replicas(4))), errors.QuorumUnavailableError)

    zoned.start(shared)
    await until_met(mail, EACH_ZONE)
    zoned.start(neighbour)
    await until_met(mail, ALL)


async def test_a_zone_of_one_that_is_gone(zoned: LocalCluster, mail: AsyncClient) -> None:
    """Four of five voters are up, and still it is refused."""
    [alone] = [node for node in ZONES if ZONES[node] == "west"]
    zoned.kill(alone)
    await committed(mail, replicas(4))
    assert await missing_zones(mail) == ["west"]
    zoned.start(alone)
    await until_met(mail, EACH_ZONE)

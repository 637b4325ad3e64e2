"""What a level promised is there after all nodes were killed: on the disks that it names, for the
sessions that saw it, and for a retry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.faults.network import ProxiedCluster, both_ways
from tests.quorum.cells import (
    ACCEPTED,
    ALICE,
    LOCAL,
    MAIL,
    QUORUM,
    SESSION,
    SHARD,
    STRONGER,
    at,
    connected,
    leader_and_others,
    write,
)
from tests.quorum.level_faults import mutated

from mailraft.client import AsyncClient, LevelNotMetError, errors
from mailraft.client.session import Session
from mailraft.cluster.local import LocalCluster
from mailraft.node.engine.store import Store
from mailraft.v1 import common_pb2

pytestmark = pytest.mark.timeout(120)

VOTERS = 3
CUT_OFF_S = 2.0


def on_disk(cluster: LocalCluster) -> dict[int, int]:
    """Node to the last index of its log, of a cluster whose nodes were killed."""
    found: dict[int, int] = {}
    for node in cluster.nodes:
        folder = cluster.data_folder(node)
        store = Store.open(folder, cluster_id=cluster.map.cluster_id, node=node)
        try:
            found[node] = store.load(SHARD).last_index
        finally:
            store.close()
    return found


async def highest_met(cluster: ProxiedCluster) -> Mapping[int, int]:
    """How many voters a level names, to the highest index that was said to be on so many disks,
    while a follower is cut off in the middle of it.
    """
    highest = {2: 0, VOTERS: 0}

    async def write_all(mail: AsyncClient) -> None:
        for args in (*QUORUM, *STRONGER):
            try:
                served = (await write(mail, **args, deadline_s=1.0)).served
            except (errors.QuorumUnavailableError, LevelNotMetError):
                continue
            assert served.level_met == common_pb2.LEVEL_MET_YES
            named = VOTERS if args in STRONGER else 2
            highest[named] = max(highest[named], served.index)

    async with connected(cluster) as mail:
        leader, others = await leader_and_others(cluster)
        await write_all(mail)
        await cluster.network.cut(both_ways(others[:1], [leader, others[1]]))
        end_s = asyncio.get_running_loop().time() + CUT_OFF_S
        while asyncio.get_running_loop().time() < end_s:
            await write_all(mail)
    assert all(highest.values())  # tidy: a plain dict
    return highest


def lacking(cluster: LocalCluster, highest: Mapping[int, int]) -> list[str]:
    """Levels that were said to be met and are not, on the disks of nodes that were killed."""
    cluster.kill_all_nodes()
    disks = on_disk(cluster)
    return [
        f"{index} is on {there} disks, not {named}: {disks}"
        for named, index in highest.items()  # tidy: a plain dict
        if (there := sum(last >= index for last in disks.values())) < named  # tidy: a plain dict
    ]


async def test_writes_are_on_the_disks_that_their_level_names(proxied: ProxiedCluster) -> None:
    """QUORUM on two of three, REPLICAS(3), EACH_ZONE and ALL on all, while one is cut off."""
    assert not lacking(proxied, await highest_met(proxied))


async def test_a_level_that_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is seen on the disks."""
    folder = tmp_path / "cluster"
    async with mutated("levels_met_at_once", folder, monkeypatch) as cluster:
        assert lacking(cluster, await highest_met(cluster))


async def test_a_session_and_its_writes_after_a_restart_of_all(
    cluster: LocalCluster, mail: AsyncClient
) -> None:
    """Another client with the session's string reads what it wrote, at each replica; and each write
    repeated under its request_id answers what it had answered.
    """
    written = [await mail.deliver(MAIL, to=[ALICE], **args) for args in (*QUORUM, *STRONGER)]
    accepted = await mail.deliver(MAIL, to=[ALICE], **ACCEPTED)
    assert await mail.wait_committed(ALICE, accepted.request_id)
    token, total = mail.session.token, len(written) + 2
    cluster.kill_all_nodes()
    for node in cluster.nodes:
        cluster.start(node)
    await cluster.wait_ready()
    session = Session.from_token(token)
    async with AsyncClient(
        cluster.router_address, certs=cluster.certs_folder, session=session
    ) as other:
        for node in cluster.nodes:
            assert await shown(other, at(node, SESSION)) == total
            assert await shown(other, at(node, LOCAL)) == total
        for receipt, args in zip(written, (*QUORUM, *STRONGER), strict=True):
            again = await other.deliver(MAIL, to=[ALICE], request_id=receipt.request_id, **args)
            assert again.recipients[0].message_id == receipt.recipients[0].message_id
            assert again.recipients[0].served.level_met == common_pb2.LEVEL_MET_YES
        assert await shown(other, SESSION) == total


async def shown(mail: AsyncClient, args: Any) -> int:
    """How many messages, once the replica has caught up."""
    async with asyncio.timeout(10):
        while True:
            try:
                return (await mail.list_messages(ALICE, "INBOX", **args)).total_messages
            except errors.ReplicaLaggingError:
                await asyncio.sleep(0.05)

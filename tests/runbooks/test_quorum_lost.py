"""docs/runbooks/quorum-lost.md: two of three nodes and their folders are gone."""

from __future__ import annotations

import shutil

import pytest
from tests.runbooks.conftest import Site

from mailraft.client import AsyncClient, Consistency
from mailraft.v1 import cluster_pb2

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(400)]

ACCOUNTS, MESSAGES = 8, 5
LOST = (2, 3)


async def delivered(client: AsyncClient) -> dict[str, set[str]]:
    """Message ids by account, acknowledged."""
    found: dict[str, set[str]] = {}
    for number in range(ACCOUNTS):
        account = f"user-{number}"
        await client.create_account(account)
        receipts = [
            await client.deliver(b"Subject: %d\r\n\r\n" % each, to=[account])
            for each in range(MESSAGES)
        ]
        found[account] = {receipt.recipients[0].message_id for receipt in receipts}
    return found


async def listed(client: AsyncClient, account: str) -> set[str]:
    """What is there, by a linearizable read."""
    consistency = Consistency.LINEARIZABLE
    return {each.id async for each in client.iter_messages(account, consistency=consistency)}


async def test_by_the_book(site: Site) -> None:
    """What the survivor had is there, mail goes on, and the cluster is whole again at the end; the
    lost nodes are no members, and cannot become any.
    """
    cluster = site.cluster
    async with cluster.client(deadline_s=30) as client:
        kept = await delivered(client)
    await site.settled()
    for node in LOST:
        cluster.kill_soon(node)
    for node in LOST:
        cluster.kill(node)
        shutil.rmtree(cluster.data_folder(node))
        cluster.forget(node)
    await site.until_lost(1)
    async for step in site.rehearsal().run("quorum-lost"):
        if step.typed:
            async with cluster.client(deadline_s=30) as client:
                for account, ids in kept.items():
                    assert await listed(client, account) == ids, "the survivor had it"
                receipt = await client.deliver(b"Subject: more\r\n\r\n", to=["user-0"])
                kept["user-0"].add(receipt.recipients[0].message_id)
            assert "goes on" in step.output
    assert "nothing to recover" in (await site.mailraft("unsafe", "recover"))
    told = await site.map()
    for shard in (told.meta, *told.shards):
        assert len(shard.replicas) == 3, shard
        assert not {each.node_id for each in shard.replicas} & set(LOST)
    states = {node.id: node.state for node in told.nodes}
    assert all(states[node] == cluster_pb2.NODE_STATE_REMOVED for node in LOST)
    async with cluster.client(deadline_s=30) as client:
        for account, ids in kept.items():
            assert await listed(client, account) == ids

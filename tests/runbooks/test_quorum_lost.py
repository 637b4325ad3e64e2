"""docs/runbooks/quorum-lost.md: two of three nodes and their folders are gone."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from tests.runbooks.conftest import Site
from tests.runbooks.mailing import check, delivered, more

from mailraft.node.interfaces import replica_id
from mailraft.v1 import cluster_pb2

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(400)]

LOST = (2, 3)


async def test_by_the_book(site: Site) -> None:
    """What the survivor had is there, mail goes on, and the cluster is whole again at the end; the
    lost nodes are no members, and cannot become any.
    """
    cluster = site.cluster
    async with cluster.client(deadline_s=30) as client:
        kept = await delivered(client)
    await site.mailraft("check", "hash")  # every replica has all of it
    for node in LOST:
        cluster.kill_soon(node)
    for node in LOST:
        cluster.kill(node)
        shutil.rmtree(cluster.data_folder(node))
        cluster.forget(node)
    await site.until_lost(1)
    async for step in site.rehearsal().run("quorum-lost"):
        if step.typed:
            assert "recovered meta s1 s2" in step.output
            async with cluster.client(deadline_s=30) as client:
                await check(client, kept)
                await more(client, kept)
    assert "nothing to recover" in await site.mailraft("unsafe", "recover")
    told = await site.map()
    for shard in (told.meta, *told.shards):
        assert len(shard.replicas) == 3, shard
        assert not {each.node_id for each in shard.replicas} & set(LOST)
    states = {node.id: node.state for node in told.nodes}
    assert all(states[node] == cluster_pb2.NODE_STATE_REMOVED for node in LOST)
    async with cluster.client(deadline_s=30) as client:
        await check(client, kept)


async def test_nothing_happens_unless_it_is_typed(site: Site) -> None:
    """Anything else than what is asked for leaves all as it was; so does a shard with a leader."""
    cluster = site.cluster
    assert "nothing to recover" in await site.mailraft("unsafe", "recover")
    for node in LOST:
        cluster.kill(node)
    await site.until_lost(1)
    refused = await site.mailraft("unsafe", "recover", typed="give up n2\n", expect=2)
    assert "would be" not in refused
    for node in LOST:
        cluster.start(node)
    await cluster.wait_ready()
    told = await site.map()
    assert all(each.configuration_version == 1 for each in (told.meta, *told.shards))


async def test_lost_nodes_that_come_back_are_out(site: Site) -> None:
    """With the very folders that they had, and both at once: they are a majority of what was. None
    of their replicas leads or votes again; what was taken without them stays, and they are filled
    anew, as other replicas.
    """
    cluster = site.cluster
    async with cluster.client(deadline_s=30) as client:
        kept = await delivered(client, accounts=2)
    for node in LOST:
        cluster.kill(node)
    await site.until_lost(1)
    print(await site.mailraft("unsafe", "recover", typed="give up n2 n3\n"))
    async with cluster.client(deadline_s=30) as client:
        await more(client, kept)
    before = {replica_id(node, 1) for node in cluster.nodes}
    for node in LOST:
        cluster.start(node)
    async with cluster.client(deadline_s=30) as client:
        for _ in range(20):
            await more(client, kept)
            leaders = {each.replica_id for each in (await cluster.hints()).values()}
            assert not leaders & before, "one of before leads"
            await asyncio.sleep(0.1)
        await check(client, kept)
    told = await site.map()
    for shard in (told.meta, *told.shards):
        assert not {each.replica_id for each in shard.replicas} & before, "one of before is back"

"""Moves of replicas under load, with processes that die: nothing lost, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from tests.faults.load import Load
from tests.faults.rows import judge

from mailraft.client import MailraftError
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.cluster.operator import Operator
from mailraft.node.engine.store import Store
from mailraft.v1 import admin_pb2, cluster_pb2, job_pb2

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

SHARDS = 2
JOB_DEADLINE_S = 120.0
SERVES_LIMIT_S = 60.0
# After a move was begun: as the learner is added, as it catches up, as it is promoted, later.
MOMENTS_S = (0.1, 0.6, 1.2, 2.0, 3.0)
REPLACE_AFTER_S = 5


@pytest.fixture
async def four(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Four nodes, so that there is always one to move to."""
    options = LocalOptions(nodes=4, shards=SHARDS)
    async with LocalCluster(tmp_path / "cluster", options) as running:
        await running.wait_ready()
        yield running


def operating(cluster: LocalCluster) -> Operator:
    """Patient with a meta group that has no leader."""
    return Operator(cluster.router_address, cluster.credentials(), deadline_s=60.0)


def holders(shard: cluster_pb2.Shard) -> list[int]:
    """The nodes with a replica of a shard."""
    return [each.node_id for each in shard.replicas]


async def until(holds: Callable[[], Awaitable[bool]], deadline_s: float = JOB_DEADLINE_S) -> None:
    """Wait for something to be so."""
    async with asyncio.timeout(deadline_s):
        while not await holds():  # noqa: ASYNC110 - what other processes do sets no event here
            await asyncio.sleep(0.2)


async def controller_of(cluster: LocalCluster) -> int:
    """The node that leads the meta group: only that answers."""
    while True:
        for node in cluster.nodes:
            address, credentials = cluster.address_of(node), cluster.credentials()
            async with Operator(address, credentials, deadline_s=0.5) as asked:
                with contextlib.suppress(MailraftError):
                    await asked.settings()
                    return node


async def leads(cluster: LocalCluster, node: int) -> bool:
    """Whether a node leads any shard."""
    return node in (await cluster.leaders()).values()


async def holds_nothing(operator: Operator, node: int) -> bool:
    """Whether a node has no replica, by the map."""
    told = await operator.newest_map()
    return not any(node in holders(each) for each in (told.meta, *told.shards))


async def idle(operator: Operator) -> bool:
    """Whether no job is open."""
    return not await operator.jobs(open_only=True)


async def ended_well(cluster: LocalCluster, node: int) -> bool:
    """Whether a node's process ended by itself."""
    return f"n{node}" not in {child.name for child in cluster.children()}


async def nothing_left_over(cluster: LocalCluster, operator: Operator) -> None:
    """Three voters a shard and no learner; on disk what the map says. Stops the nodes."""
    assert await operator.jobs(open_only=True) == []
    told = await operator.newest_map()
    for shard in told.shards:
        roles = {each.role for each in shard.replicas}
        assert len(shard.replicas) == 3, shard
        assert roles == {cluster_pb2.REPLICA_ROLE_VOTER}, shard
    for node in cluster.nodes:
        cluster.terminate(node)
    for node in cluster.nodes:
        await cluster.stopped(node)
        placed = {
            shard.id: each.replica_id
            for shard in (told.meta, *told.shards)
            for each in shard.replicas
            if each.node_id == node
        }
        store = Store.open(cluster.data_folder(node), cluster_id=told.cluster_id, node=node)
        held = dict(store.groups())
        store.close()
        assert held == placed, node


async def test_kill_the_controller_in_a_move(four: LocalCluster) -> None:
    """Kill -9 of the node that leads the meta group, at several moments: each move ends where it
    was to go, and leaves no replica over.
    """
    async with operating(four) as operator, Load(four, seed=21, workers=8) as load:
        await load.more(50)
        for moment_s in MOMENTS_S:
            [shard, *_] = (await operator.newest_map()).shards
            source = holders(shard)[0]
            [target] = set(four.nodes) - {*holders(shard)}
            job = await operator.move(shard.id, source, target)
            with load.history.fault():
                await asyncio.sleep(moment_s)
                killed = await controller_of(four)
                four.kill(killed)
                await asyncio.sleep(1.5)
                four.start(killed)
            ended = await operator.finished(job.id, deadline_s=JOB_DEADLINE_S)
            assert ended.state == job_pb2.JOB_STATE_SUCCEEDED, ended
            [shard, *_] = (await operator.newest_map()).shards
            assert target in holders(shard)
            assert source not in holders(shard)
            await four.wait_ready(SERVES_LIMIT_S)
        await judge("10 kill -9 of the controller in a move", four, load, void_below=False)
        await nothing_left_over(four, operator)


async def test_a_drained_node_leads_nothing_and_nobody_notices(tmp_path: Path) -> None:
    """Drain, then undrain, under load: no call fails, and its share of leaders comes back."""
    options = LocalOptions(nodes=3, shards=6)
    async with LocalCluster(tmp_path / "cluster", options) as three:
        await three.wait_ready()
        async with operating(three) as operator, Load(three, seed=22, workers=8) as load:
            await load.more(300)
            node = (await three.leaders())[1]
            with load.history.fault():
                job = await operator.drain(node)
                ended = await operator.finished(job.id, deadline_s=JOB_DEADLINE_S)
                assert ended.state == job_pb2.JOB_STATE_SUCCEEDED, ended
                assert node not in (await three.leaders()).values()
                await load.more(700)
                await operator.undrain(node)
                await until(lambda: leads(three, node))
            await judge("10 drain and undrain", three, load)
            failed = [each for each in load.history.operations if each.error and not each.replica]
            assert not failed, failed[:3]


async def test_a_dead_node_is_replaced_and_a_removed_one_stays_out(four: LocalCluster) -> None:
    """After replace_after_ms others have its replicas. When it is removed and started again, its
    peers refuse it and it ends by itself.
    """
    async with operating(four) as operator, Load(four, seed=23, workers=8) as load:
        await load.more(50)
        await operator.change_settings(
            admin_pb2.Settings(replace_after_ms=REPLACE_AFTER_S * 1000), ["replace_after_ms"]
        )
        dead = holders((await operator.newest_map()).shards[0])[0]
        with load.history.fault():
            four.kill(dead)
            await until(lambda: holds_nothing(operator, dead))
        await operator.remove(dead)
        await until(lambda: idle(operator))
        told = await operator.newest_map()
        [left] = [each for each in told.nodes if each.id == dead]
        assert left.state == cluster_pb2.NODE_STATE_REMOVED
        four.start(dead)
        await until(lambda: ended_well(four, dead), SERVES_LIMIT_S)
        await load.more(50)
        assert dead not in (await four.leaders()).values()
        assert {len(shard.replicas) for shard in (await operator.newest_map()).shards} == {3}
        await load.stop()

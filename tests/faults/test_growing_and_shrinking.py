"""Row 10 of the faults: add, rebalance, move, drain and decommission under load and kill -9s."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
from tests.faults.history import History
from tests.faults.load import Load
from tests.faults.rows import judge

from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.cluster.operator import Operator
from mailraft.v1 import cluster_pb2, job_pb2

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

SHARDS = 2
JOB_DEADLINE_S = 90.0
BEFORE = 400  # acknowledged operations that tell how fast it is without changes
KILL_AFTER_S, START_AFTER_S = 0.7, 1.5
SERVES_LIMIT_S = 60.0


def p99_ms(history: History, from_s: float, to_s: float) -> float:
    """Of what clients saw of operations that began in this time, at no given replica."""
    took_s = sorted(
        each.over_s - each.start_s
        for each in history.operations
        if from_s <= each.start_s < to_s and not each.replica and each.over_s < math.inf
    )
    assert len(took_s) >= 100
    return took_s[len(took_s) * 99 // 100] * 1000


async def succeeded(operator: Operator, job: job_pb2.Job) -> None:
    """Wait for a job to end well."""
    ended = await operator.finished(job.id, deadline_s=JOB_DEADLINE_S)
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED, ended


@contextlib.asynccontextmanager
async def killed_meanwhile(
    cluster: LocalCluster, load: Load, victims: itertools.cycle[int]
) -> AsyncIterator[None]:
    """Soon after the block began, a node dies by kill -9 and starts again; all serve at its end."""

    async def kill() -> None:
        await asyncio.sleep(KILL_AFTER_S)
        victim = next(victims)
        cluster.kill(victim)
        await asyncio.sleep(START_AFTER_S)
        cluster.start(victim)

    with load.history.fault():
        async with asyncio.TaskGroup() as group:
            group.create_task(kill())
            yield
        await cluster.wait_ready(SERVES_LIMIT_S)


async def test_changes_under_load_and_kills(tmp_path: Path) -> None:
    """Every change ends well although a node dies in the middle of it; nothing is lost or stale."""
    async with LocalCluster(tmp_path / "cluster", LocalOptions(nodes=3, shards=SHARDS)) as cluster:
        await cluster.wait_ready()
        async with (
            Operator(cluster.router_address, cluster.credentials(), deadline_s=60.0) as operator,
            Load(cluster, seed=10, workers=16) as load,
        ):
            began_s = time.monotonic()
            await load.more(BEFORE)
            changes_s = time.monotonic()
            # Neither the one that joins, drains or leaves: those are killed by other rows.
            victims = itertools.cycle(Random(10).sample([2, 3], 2))
            joined = await cluster.grow()
            await cluster.wait_ready()
            async with killed_meanwhile(cluster, load, victims):
                await succeeded(operator, (await operator.rebalance()).job)
            async with killed_meanwhile(cluster, load, victims):
                [shard, *_] = (await operator.newest_map()).shards
                held = [each.node_id for each in shard.replicas]
                [to] = {*cluster.nodes} - {*held}
                await succeeded(operator, await operator.move(shard.id, held[0], to))
            async with killed_meanwhile(cluster, load, victims):
                await succeeded(operator, await operator.drain(joined))
            await operator.undrain(joined)
            async with killed_meanwhile(cluster, load, victims):
                await succeeded(operator, await operator.decommission(1))
                await cluster.stopped(1)
                cluster.forget(1)
            ended_s = time.monotonic()
            await load.more(max(0, 1_100 - load.acknowledged))
            before = p99_ms(load.history, began_s, changes_s)
            during = p99_ms(load.history, changes_s, ended_s)
            remark = f"p99 before {before:.0f} ms, during {during:.0f} ms ({during / before:.1f}x)"
            await judge("10 add, rebalance, move, drain, decommission", cluster, load, remark)
            told = await operator.newest_map()
            assert await operator.jobs(open_only=True) == []
            for shard in (told.meta, *told.shards):
                assert [each.role for each in shard.replicas] == [
                    cluster_pb2.REPLICA_ROLE_VOTER
                ] * 3
                assert 1 not in {each.node_id for each in shard.replicas}

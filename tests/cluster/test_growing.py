"""A cluster that grows and shrinks while mail comes and goes: real processes, nothing lost."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.faults.load import Load
from tests.faults.rows import judge

from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.cluster.operator import Operator
from mailraft.v1 import cluster_pb2, job_pb2

SHARDS = 4
JOB_DEADLINE_S = 60.0


def holders(told: cluster_pb2.ClusterMap) -> Counter[int]:
    """How many replicas each node has, by the map."""
    return Counter(replica.node_id for shard in told.shards for replica in shard.replicas)


async def succeeded(operator: Operator, job: job_pb2.Job) -> None:
    """Wait for a job to end well."""
    ended = await operator.finished(job.id, deadline_s=JOB_DEADLINE_S)
    assert ended.state == job_pb2.JOB_STATE_SUCCEEDED, ended


@pytest.mark.timeout(240)
async def test_a_node_joins_takes_its_share_and_leaves_again(tmp_path: Path) -> None:
    """Add, rebalance, decommission, under load and with every answer checked; the data folder of
    the node that left holds no replica, and its process ends by itself.
    """
    async with LocalCluster(tmp_path, LocalOptions(nodes=3, shards=SHARDS)) as cluster:
        await cluster.wait_ready()
        async with (
            Operator(cluster.router_address, cluster.credentials()) as operator,
            Load(cluster, seed=5, workers=8) as load,
        ):
            await asyncio.sleep(1)
            joined = await cluster.grow()
            await cluster.wait_ready()
            planned = await operator.rebalance()
            await succeeded(operator, planned.job)
            shared = holders(await operator.newest_map())
            assert shared[joined] == len(planned.moves) == SHARDS * 3 // 4
            assert set(shared.values()) == {3}
            started_s = time.monotonic()
            await succeeded(operator, await operator.decommission(1))
            left = await operator.newest_map()
            assert 1 not in holders(left)
            assert 1 not in {replica.node_id for replica in left.meta.replicas}
            assert left.nodes[0].state == cluster_pb2.NODE_STATE_REMOVED
            print(f"decommissioned in {time.monotonic() - started_s:.1f} s")
            await cluster.stopped(1, deadline_s=20)
            assert await operator.jobs(open_only=True) == []
            await judge("10 join and leave", cluster, load, void_below=False)
            failed = [each for each in load.history.operations if each.error and not each.replica]
            assert not failed, failed[:3]

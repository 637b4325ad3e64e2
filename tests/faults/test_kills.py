"""Rows 1, 3 and 5: processes that die, restart and freeze."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.faults.armed import ArmedChild
from tests.faults.load import Load, serves
from tests.faults.rows import SERVES_AGAIN_S, judge

from mailraft.cluster.local import LocalCluster
from mailraft.node import failpoints
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import META_GROUP

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

DEAD_S = 1.5
# What counts under load on two cores, Python's own start included, before a run fails.
SERVES_LIMIT_S = 30.0


async def test_kill_each_node_in_turn(cluster: LocalCluster) -> None:
    """Kill -9 of one node after the other: nothing lost, each serves again soon."""
    served_s: list[float] = []
    async with Load(cluster, seed=1) as load:
        await load.more(300)
        for node in cluster.nodes:
            with load.history.fault():
                cluster.kill(node)
                await asyncio.sleep(DEAD_S)
                cluster.start(node)
                served_s.append(await serves(cluster, node, SERVES_LIMIT_S))
            await load.more(200)
        remark = f"serves again after {max(served_s):.1f} s"
        await judge("1 kill -9 of each node", cluster, load, remark)
    assert max(served_s) <= SERVES_AGAIN_S, served_s


def on_hit(point: str) -> int:
    """Not at once where every entry passes."""
    return 30 if point.startswith(("send.", "journal.", "apply.")) else 1


async def test_kill_at_failpoints(armed: LocalCluster) -> None:
    """A node that dies at each named point, while it catches up and takes part: nothing lost."""
    missed: list[str] = []
    served_s: list[float] = []
    async with Load(armed, seed=2) as load:
        await load.more(200)
        for position, point in enumerate(failpoints.NAMES):
            node = armed.nodes[position % len(armed.nodes)]
            child = next(each for each in armed.children() if each.name == f"n{node}")
            assert isinstance(child, ArmedChild)
            with load.history.fault():
                armed.kill(node)
                if point.startswith("snapshot."):
                    await load.more(500)  # more than the logs keep
                child.failpoints = f"{point}=kill@{on_hit(point)}"
                armed.start(node)
                if not await _dies(child, 30.0):
                    missed.append(point)
                    armed.kill(node)
                child.failpoints = ""
                armed.start(node)
                served_s.append(await serves(armed, node, SERVES_LIMIT_S))
        hit = len(failpoints.NAMES) - len(missed)
        remark = f"{hit} of {len(failpoints.NAMES)} points; serves again <= {max(served_s):.1f} s"
        await judge("1 kill -9 at failpoints", armed, load, remark)
    assert not missed, f"never reached: {missed}"


async def _dies(child: ArmedChild, deadline_s: float) -> bool:
    until_s = time.monotonic() + deadline_s
    while child.running:
        if time.monotonic() > until_s:
            return False
        await asyncio.sleep(0.02)
    assert child.exit_status == -signal.SIGKILL, child.log_tail()
    return True


ROUNDS = 6


async def test_all_nodes_restarted_together(cluster: LocalCluster) -> None:
    """All nodes killed at once, many times: same digests, terms never fall, nothing lost."""
    terms: dict[int, int] = {}
    async with Load(cluster, seed=3) as load:
        await load.more(300)
        for _ in range(ROUNDS):
            with load.history.fault():
                cluster.kill_all_nodes()
                for node in cluster.nodes:
                    cluster.start(node)
                await cluster.wait_ready()
                await load.more(30)
            for shard, hint in (await cluster.hints()).items():  # tidy: a plain dict
                assert hint.term >= terms.get(shard, 0), f"the term of shard {shard} fell"
                terms[shard] = hint.term
            await load.more(150)
        remark = f"{ROUNDS} rounds, highest term {max(terms.values())}"  # tidy: a plain dict
        await judge("3 all nodes restarted", cluster, load, remark)
    await _check_digests(cluster)


async def _check_digests(cluster: LocalCluster) -> None:
    """Kill an idle cluster and compare what its nodes applied, in their stores."""
    await asyncio.sleep(2.0)
    cluster.kill_all_nodes()
    applied: dict[int, set[tuple[int, int, bytes]]] = {}
    for node in cluster.nodes:
        store = Store.open(cluster.data_folder(node), cluster_id=cluster.map.cluster_id, node=node)
        try:
            for group, _ in store.groups():
                applied.setdefault(group, set()).add(store.applied(group))
        finally:
            store.close()
    assert sorted(applied) == [META_GROUP, *(shard.id for shard in cluster.map.shards)]
    for group, positions in applied.items():  # tidy: a plain dict
        assert len(positions) == 1, f"replicas of shard {group} differ: {positions}"


FROZEN_S = 5.0


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """SIGSTOP, and SIGCONT whatever happens."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_frozen_leader(cluster: LocalCluster) -> None:
    """SIGSTOP of a leader for 5 s, then on: no linearizable read is stale, also not at itself."""
    async with Load(cluster, seed=5) as load:
        await load.more(300)
        for _ in range(2):
            leader = await cluster.leader_of(1)
            child = next(each for each in cluster.children() if each.name == f"n{leader}")
            with load.history.fault():
                with frozen(child.pid):
                    await asyncio.sleep(FROZEN_S)
                await asyncio.sleep(1.0)
            await load.more(150)
        reads = [each for each in load.history.overlapping() if each.linearizable]
        pinned = sum(bool(each.replica) for each in reads)
        remark = f"twice; {len(reads)} linearizable reads meanwhile, {pinned} at a given replica"
        await judge("5 SIGSTOP of a leader, 5 s", cluster, load, remark)

"""Faults that could break a level, one after the other while the load goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest
from tests.faults.network import ProxiedCluster, both_ways
from tests.quorum.cells import leader_and_others
from tests.quorum.mutant_node import MutantChild

from mailraft.cluster.local import LocalOptions

FAULT_S = 3.0
REST_S = 0.5


@contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """SIGSTOP, and SIGCONT whatever happens."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def leader_frozen(cluster: ProxiedCluster) -> None:
    """And continued: it believes to lead until it hears otherwise."""
    leader, _ = await leader_and_others(cluster)
    with frozen(cluster.pid_of(leader)):
        await asyncio.sleep(FAULT_S)


async def leader_killed(cluster: ProxiedCluster) -> None:
    """And started again."""
    leader, _ = await leader_and_others(cluster)
    await _killed(cluster, leader)


async def follower_killed(cluster: ProxiedCluster) -> None:
    """And started again."""
    _, others = await leader_and_others(cluster)
    await _killed(cluster, others[0])


async def leader_cut_off(cluster: ProxiedCluster) -> None:
    """From its peers: clients reach it."""
    leader, others = await leader_and_others(cluster)
    await _cut(cluster, leader, others)


async def follower_cut_off(cluster: ProxiedCluster) -> None:
    """From its peers: clients reach it."""
    leader, others = await leader_and_others(cluster)
    await _cut(cluster, others[0], [leader, others[1]])


async def all_killed(cluster: ProxiedCluster) -> None:
    """At once, and started again."""
    cluster.kill_all_nodes()
    await asyncio.sleep(REST_S)
    for node in cluster.nodes:
        cluster.start(node)


FAULTS = (leader_frozen, leader_killed, follower_killed, leader_cut_off, follower_cut_off)
Fault = Callable[[ProxiedCluster], Awaitable[None]]


async def _killed(cluster: ProxiedCluster, node: int) -> None:
    cluster.kill(node)
    await asyncio.sleep(FAULT_S)
    cluster.start(node)


async def _cut(cluster: ProxiedCluster, node: int, others: list[int]) -> None:
    await cluster.network.cut(both_ways([node], others))
    await asyncio.sleep(FAULT_S)
    await cluster.network.heal()


@asynccontextmanager
async def mutated(
    mutant: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ProxiedCluster]:
    """A cluster whose nodes break a promise (tests/quorum/mutant_node.py)."""
    monkeypatch.setattr("mailraft.cluster.local.Child", partial(MutantChild, mutant))
    async with ProxiedCluster(folder, LocalOptions(shards=1)) as cluster:
        await cluster.wait_ready()
        yield cluster


async def repeat(
    fault: Fault, cluster: ProxiedCluster, until: Callable[[], bool], deadline_s: float
) -> int:
    """Inject a fault again and again; how often."""
    end_s, times = time.monotonic() + deadline_s, 0
    while not until():
        assert time.monotonic() < end_s, f"not reached in {deadline_s:.0f} s"
        await fault(cluster)
        times += 1
        await cluster.wait_ready()
        await asyncio.sleep(REST_S)
    return times

"""Row 16: a replica that is slow, and not dead."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.faults.rows import ROWS

from mailraft.client import AsyncClient, Consistency
from mailraft.cluster.local import LocalCluster, LocalOptions

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

ACCOUNT = "alice"
READERS, WRITERS = 8, 4
HEALTHY_S, SLOW_S = 6.0, 10.0
# Of each 0.3 s the slow node has 0.1: short of an election, and a hundred times a read's time.
STOPPED_S, RUNNING_S = 0.2, 0.1
READ_P99_MAX_S = 0.15
SHARE_MAX = 0.15


@pytest.fixture
async def one_shard(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Three nodes, of which one leads."""
    async with LocalCluster(tmp_path / "cluster", LocalOptions(shards=1)) as running:
        await running.wait_ready()
        yield running


@asynccontextmanager
async def slowed(pid: int) -> AsyncIterator[None]:
    """A process that is stopped two thirds of the time."""

    async def stop_and_go() -> None:
        while True:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(STOPPED_S)
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(RUNNING_S)

    task = asyncio.create_task(stop_and_go())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        os.kill(pid, signal.SIGCONT)


class Watched:
    """Reads and writes without pause, how long they took and who answered."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.forget()

    def forget(self) -> None:
        self.reads_s: list[float] = []
        self.writes_s: list[float] = []
        self.by_node: Counter[int] = Counter()

    async def read(self, level: Consistency) -> None:
        while True:
            began_s = time.monotonic()
            page = await self.client.list_messages(ACCOUNT, page_size=5, consistency=level)
            self.reads_s.append(time.monotonic() - began_s)
            self.by_node[page.served.replica_id >> 32] += 1

    async def write(self) -> None:
        while True:
            began_s = time.monotonic()
            await self.client.deliver(b"Subject: hello\r\n\r\nbody", to=[ACCOUNT])
            self.writes_s.append(time.monotonic() - began_s)
            await asyncio.sleep(0.02)


def p99_s(times_s: list[float]) -> float:
    """Of at least a hundred times."""
    return statistics.quantiles(times_s, n=100)[98]


async def test_a_slow_follower_slows_nobody(one_shard: LocalCluster) -> None:
    """Reads that any replica may serve go elsewhere, writes wait for the other two."""
    leader = await one_shard.leader_of(1)
    slow = next(node for node in one_shard.nodes if node != leader)
    term = (await one_shard.hints())[1].term
    async with one_shard.client() as client:
        await client.create_account(ACCOUNT)
        watched = Watched(client)
        levels = (Consistency.LOCAL, Consistency.SESSION)
        tasks = [
            *(asyncio.create_task(watched.read(levels[n % 2])) for n in range(READERS)),
            *(asyncio.create_task(watched.write()) for _ in range(WRITERS)),
        ]
        await asyncio.sleep(HEALTHY_S)
        healthy_s, healthy = p99_s(watched.reads_s), watched.by_node
        healthy_writes_s = p99_s(watched.writes_s)
        watched.forget()
        async with slowed(one_shard.pid_of(slow)):
            await asyncio.sleep(SLOW_S)
        reads, writes = len(watched.reads_s), len(watched.writes_s)
        share = watched.by_node[slow] / reads
        reads_p99_s, writes_p99_s = p99_s(watched.reads_s), p99_s(watched.writes_s)
        for task in tasks:
            assert not task.done(), task
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    remark = (
        f"reads p99 {healthy_s * 1000:.0f} -> {reads_p99_s * 1000:.0f} ms, "
        f"writes p99 {healthy_writes_s * 1000:.0f} -> {writes_p99_s * 1000:.0f} ms, "
        f"the slow one served {share:.0%} of reads"
    )
    counts = (reads + writes, reads + writes, reads + writes, 0, 0, "-", remark)
    ROWS.append(("16 slow follower", *map(str, counts)))
    assert (await one_shard.hints())[1].term == term, f"an election; {remark}"
    assert len(healthy) == 3, f"not spread: {healthy}"
    assert reads >= 1_000, "void"
    assert reads_p99_s < max(READ_P99_MAX_S, 2 * healthy_s), remark
    assert share < SHARE_MAX, remark

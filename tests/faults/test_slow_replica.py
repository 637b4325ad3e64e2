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
from tests.faults.armed import ArmedChild
from tests.faults.rows import ROWS

from mailraft.client import AsyncClient, Consistency
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.cluster.operator import Operator
from mailraft.node.consensus.compaction import CompactionLimits

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

ACCOUNT = "alice"
READERS, WRITERS = 8, 4
HEALTHY_S, SLOW_S = 6.0, 10.0
# Of each 0.3 s the slow node has 0.1: short of an election, and a hundred times a read's time.
STOPPED_S, RUNNING_S = 0.2, 0.1
READ_P99_MAX_S = 0.15
SHARE_MAX = 0.15
# Of every flush: a healthy one takes a few milliseconds.
FLUSH_S, SEEN_S = 0.4, 20.0


class SlowDiskChild(ArmedChild):
    """Each of its flushes takes longer once it is armed."""

    later = f"journal.before_sync=sleep:{FLUSH_S}"
    entries_max = CompactionLimits().entries_max


@pytest.fixture
async def one_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalCluster]:
    """Three nodes, of which one leads."""
    monkeypatch.setattr("mailraft.cluster.local.Child", SlowDiskChild)
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


async def known_everywhere(cluster: LocalCluster, client: AsyncClient) -> None:
    """A follower may not know yet that the account was created, and a LOCAL read asks nobody."""
    for replica in cluster.map.shards[0].replicas:
        await client.list_messages(
            ACCOUNT, consistency=Consistency.SESSION, replica=replica.replica_id
        )


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
        await known_everywhere(one_shard, client)
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


async def alarmed(operator: Operator, alarm: str) -> float:
    """Seconds until it stands in the cluster's status."""
    began_s = time.monotonic()
    async with asyncio.timeout(SEEN_S):
        while True:
            told = await operator.status()
            if alarm in {each.id for each in told.alarms}:
                break
            await asyncio.sleep(0.2)
    return time.monotonic() - began_s


@pytest.mark.parametrize("role", ["follower", "leader"])
async def test_a_slow_disk_slows_nobody_and_is_seen(one_shard: LocalCluster, role: str) -> None:
    """Two of three are a majority without it, also when it is the leader's; status names it."""
    leader = await one_shard.leader_of(1)
    slow = next(node for node in one_shard.nodes if (node == leader) == (role == "leader"))
    async with (
        one_shard.client() as client,
        Operator(one_shard.router_address, one_shard.credentials()) as operator,
    ):
        await client.create_account(ACCOUNT)
        watched = Watched(client)
        tasks = [
            *(asyncio.create_task(watched.read(Consistency.LINEARIZABLE)) for _ in range(READERS)),
            *(asyncio.create_task(watched.write()) for _ in range(WRITERS)),
        ]
        await asyncio.sleep(HEALTHY_S)
        healthy_s, healthy_writes_s = p99_s(watched.reads_s), p99_s(watched.writes_s)
        [child] = [each for each in one_shard.children() if each.name == f"n{slow}"]
        assert isinstance(child, SlowDiskChild)
        child.arm()
        seen_s = await alarmed(operator, f"disk-slow/{slow}")
        watched.forget()
        await asyncio.sleep(SLOW_S)
        reads, writes = len(watched.reads_s), len(watched.writes_s)
        reads_p99_s, writes_p99_s = p99_s(watched.reads_s), p99_s(watched.writes_s)
        for task in tasks:
            assert not task.done(), task
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        leads = await one_shard.leader_of(1)
    remark = (
        f"reads p99 {healthy_s * 1000:.0f} -> {reads_p99_s * 1000:.0f} ms, "
        f"writes p99 {healthy_writes_s * 1000:.0f} -> {writes_p99_s * 1000:.0f} ms, "
        f"seen in status after {seen_s:.1f} s, {'it' if leads == slow else 'another'} leads"
    )
    counts = (reads + writes, reads + writes, reads + writes, 0, 0, "-", remark)
    ROWS.append((f"16 slow disk of the {role}", *map(str, counts)))
    assert reads >= 1_000, "void"
    assert reads_p99_s < max(READ_P99_MAX_S, 2 * healthy_s), remark
    assert writes_p99_s < max(READ_P99_MAX_S, 2 * healthy_writes_s), remark

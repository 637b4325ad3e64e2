"""Who leads, with real processes: spread at the start, handed over by a node that is stopped."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from mailraft.client import AsyncClient, Consistency
from mailraft.cluster.local import LocalCluster, LocalOptions

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(180)]

NODES, SHARDS = 3, 8
ACCOUNTS = [f"account-{number}" for number in range(2 * SHARDS)]
SPREAD_DEADLINE_S = 30.0
# Of the whole stop, its calls included.
STOP_DEADLINE_S = 30.0
LOAD_S = 1.5


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Three nodes with a replica of all shards each, ready."""
    options = LocalOptions(nodes=NODES, shards=SHARDS)
    async with LocalCluster(tmp_path / "cluster", options) as running:
        await running.wait_ready()
        yield running


async def leaders_spread(cluster: LocalCluster) -> Counter[int]:
    """Wait until every node leads a fair share of the shards; how many each."""
    async with asyncio.timeout(SPREAD_DEADLINE_S):
        while True:
            leaders = await cluster.leaders()
            counts = Counter(leaders[shard] for shard in range(1, SHARDS + 1) if shard in leaders)
            if sorted(counts.values()) == [2, 3, 3]:
                return counts
            await asyncio.sleep(0.1)


async def test_leaders_are_spread(cluster: LocalCluster) -> None:
    """Within seconds of its start, each node of a new cluster leads two or three of eight shards;
    also once a node was gone and came back.
    """
    began_s = time.monotonic()
    await leaders_spread(cluster)
    print(f"spread {time.monotonic() - began_s:.1f} s after the cluster was ready")
    cluster.kill(1)
    await asyncio.sleep(2.0)  # the others lead meanwhile
    cluster.start(1)
    began_s = time.monotonic()
    await leaders_spread(cluster)
    print(f"spread {time.monotonic() - began_s:.1f} s after a node came back")


class Load:
    """A writer an account, each writing one message after the other."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._going = True
        self.written: dict[str, list[tuple[float, str]]] = {name: [] for name in ACCOUNTS}
        self._tasks = [asyncio.create_task(self._write(name)) for name in ACCOUNTS]

    async def _write(self, account: str) -> None:
        while self._going:
            receipt = await self._client.deliver(b"Subject: load\n\nbody", to=[account])
            message_id = receipt.recipients[0].message_id
            self.written[account].append((time.monotonic(), message_id))

    async def end(self) -> None:
        """Raises what a writer met."""
        self._going = False
        await asyncio.gather(*self._tasks)

    def longest_gap_s(self) -> float:
        """Between two acknowledgements to one writer."""
        times = [[at_s for at_s, _ in written] for written in self.written.values()]
        return max(after - before for each in times for before, after in pairwise(each))


async def test_a_stopped_node_hands_over(cluster: LocalCluster) -> None:
    """SIGTERM of a node that leads, under load: it ends by itself with status 0, every request is
    answered with success, and everything that was acknowledged is there.
    """
    await leaders_spread(cluster)
    async with cluster.client(deadline_s=STOP_DEADLINE_S) as client:
        for account in ACCOUNTS:
            await client.create_account(account)
        stopped = await cluster.leader_of(1)
        assert stopped is not None
        load = Load(client)
        await asyncio.sleep(LOAD_S)
        began_s = time.monotonic()
        process = psutil.Process(cluster.pid_of(stopped))
        process.terminate()
        status = await asyncio.to_thread(process.wait, STOP_DEADLINE_S)
        took_s = time.monotonic() - began_s
        await asyncio.sleep(LOAD_S)
        await load.end()
        print(f"stopped in {took_s:.2f} s, longest wait of a writer {load.longest_gap_s():.3f} s")
        assert status == 0, "the node ends by itself"
        for account, written in load.written.items():
            there = await all_messages(client, account)
            assert sorted(there) == sorted(message_id for _, message_id in written), account


async def all_messages(client: AsyncClient, account: str) -> list[str]:
    """Ids of what is in the inbox, read linearizably."""
    found: list[str] = []
    token = ""
    while True:
        page = await client.list_messages(
            account, page_token=token, consistency=Consistency.LINEARIZABLE
        )
        found.extend(message.id for message in page.messages)
        token = page.next_page_token
        if not token:
            return found

"""Row 13: a router whose map is old, and routers that are restarted under their callers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.faults.rows import ROWS

from mailraft.client import AsyncClient
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.cluster.operator import Operator
from mailraft.router.dispatch import Dispatcher
from mailraft.v1 import common_pb2, message_service_pb2

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

ACCOUNTS = tuple(f"account-{number}" for number in range(8))
WORKERS, RESTARTS, ACKNOWLEDGED_MIN = 16, 3, 1_000
MOVE_DEADLINE_S = 90.0


@pytest.fixture
async def four(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Four nodes, so that there is one to move to."""
    async with LocalCluster(tmp_path / "cluster", LocalOptions(nodes=4, shards=2)) as running:
        await running.wait_ready()
        yield running


async def test_a_map_of_before_a_move(four: LocalCluster) -> None:
    """Whoever routes by it gets every call through, each with one more hop at most."""
    async with four.client() as client:
        for account in ACCOUNTS:
            await client.create_account(account)
            await client.deliver(b"Subject: hello\r\n\r\nbody", to=[account])
    operator = Operator(four.router_address, four.credentials(), deadline_s=60.0)
    async with operator, asyncio.timeout(MOVE_DEADLINE_S):
        old = await operator.newest_map()
        for shard in old.shards:
            held = [each.node_id for each in shard.replicas]
            [target] = set(four.nodes) - {*held}
            await operator.move(shard.id, held[0], target)
            while await operator.jobs(open_only=True):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.2)
        assert (await operator.newest_map()).epoch > old.epoch
    calls, hops_max, stale = 0, 0, 0
    for account in ACCOUNTS:
        for level in (common_pb2.CONSISTENCY_LINEARIZABLE, common_pb2.CONSISTENCY_LOCAL):
            dispatcher = Dispatcher(old, four.credentials())
            try:
                for _ in range(3):
                    request = message_service_pb2.ListMessagesRequest(
                        account_id=account,
                        mailbox_role=common_pb2.MAILBOX_ROLE_INBOX,
                        read_options=common_pb2.ReadOptions(consistency=level),
                    )
                    before = sum(dispatcher.fleet.extra.retries.values())
                    page = await dispatcher.ask(request, message_service_pb2.ListMessagesResponse)
                    assert page.total_messages == 1
                    hops = sum(dispatcher.fleet.extra.retries.values()) - before
                    calls, hops_max = calls + 1, max(hops_max, hops)
                stale += dispatcher.fleet.stale_routes
            finally:
                await dispatcher.close()
    remark = f"{calls} calls by the old map, {stale} told so, at most {hops_max} more hops"
    ROWS.append(("13 stale map", str(calls), str(calls), "-", "0", "0", "-", remark))
    assert stale, "void: the old map was right"
    assert hops_max <= 1, remark


async def test_all_routers_restarted(cluster: LocalCluster) -> None:
    """Clients that know routers only: every call is answered, and what was written is there."""
    stop, acknowledged = asyncio.Event(), dict.fromkeys(ACCOUNTS, 0)

    async def work(client: AsyncClient, account: str) -> None:
        while not stop.is_set():
            await client.deliver(b"Subject: hello\r\n\r\nbody", to=[account])
            acknowledged[account] += 1
            page = await client.list_messages(account, page_size=1)
            assert page.total_messages >= 1

    async with AsyncClient(
        cluster.router_address, certs=cluster.certs_folder, direct=False, deadline_s=20.0
    ) as client:
        for account in ACCOUNTS:
            await client.create_account(account)
        tasks = [
            asyncio.create_task(work(client, ACCOUNTS[number % len(ACCOUNTS)]))
            for number in range(WORKERS)
        ]
        overlapping, silence_s = 0, 0.0
        for _ in range(RESTARTS):
            await asyncio.sleep(2.0)
            before, began_s = sum(acknowledged.values()), time.monotonic()
            await cluster.restart_router()
            while sum(acknowledged.values()) < before + 50:
                assert time.monotonic() - began_s < 60, "nothing goes on"
                await asyncio.sleep(0.05)
            overlapping += sum(acknowledged.values()) - before
            silence_s = max(silence_s, time.monotonic() - began_s)
        until_s = time.monotonic() + 60
        while sum(acknowledged.values()) < ACKNOWLEDGED_MIN:
            assert time.monotonic() < until_s, "void"
            await asyncio.sleep(0.1)
        stop.set()
        await asyncio.gather(*tasks)  # raises what any call has failed with
        for account in ACCOUNTS:
            page = await client.list_messages(account, page_size=1)
            assert page.total_messages == acknowledged[account], account
    total = sum(acknowledged.values())
    counts = (2 * total, total, overlapping, 0, 0, f"{silence_s:.2f}", f"{RESTARTS} times")
    ROWS.append(("13 routers restarted", *map(str, counts)))
    assert overlapping >= 100, "void"

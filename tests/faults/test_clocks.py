"""Row 9: wall clocks that jump."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from tests.faults.clocks import SEEN_S, JumpingChild, faketime_library
from tests.faults.conftest import OPTIONS
from tests.faults.load import ACCOUNTS, WHOLE_PAGE, Load, serves
from tests.faults.rows import judge, note

from mailraft.client import Consistency
from mailraft.client.options import MessageOrder
from mailraft.cluster.local import LocalCluster

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

HOUR_S = 3_600
SERVES_LIMIT_S = 30.0
HANDS_OVER_S = 10.0
# What no stamp of this test is old, nor ahead.
STAMP_OFF_MS = 10 * 60 * 1000


@pytest.fixture
async def jumping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalCluster]:
    """Three nodes with clocks of their own, ready; skips the test without libfaketime."""
    if faketime_library() is None:
        note("9 clock jumps", "skipped: libfaketime is not installed (apt: faketime)")
        pytest.skip("libfaketime is not installed")
    monkeypatch.setattr("mailraft.cluster.local.Child", JumpingChild)
    async with LocalCluster(tmp_path / "cluster", OPTIONS) as running:
        await running.wait_ready()
        yield running


def clock_of(cluster: LocalCluster, node: int) -> JumpingChild:
    """Of a node's process."""
    child = next(each for each in cluster.children() if each.name == f"n{node}")
    assert isinstance(child, JumpingChild)
    return child


async def test_a_clock_that_jumps(jumping: LocalCluster) -> None:
    """A leader's clock jumps an hour ahead, then behind, and it starts anew with it there: others
    lead meanwhile, reads stay right, stamped times never run backwards nor off, and its peers take
    it back.
    """
    again_s = 0.0
    async with Load(jumping, seed=9) as load:
        await load.more(300)
        for offset_s in (HOUR_S, -HOUR_S):
            leader = await jumping.leader_of(1)
            assert leader is not None
            with load.history.fault():
                clock_of(jumping, leader).jump(offset_s)
                await asyncio.sleep(SEEN_S)
                await another_leads(jumping, leader)
                await load.more(300)
            if offset_s < 0:
                jumping.kill(leader)
                jumping.start(leader)
                again_s = await serves(jumping, leader, SERVES_LIMIT_S)
                await load.more(100)
            clock_of(jumping, leader).jump(0)
            await asyncio.sleep(SEEN_S)
            await load.more(100)
        await judge("9 clock jumps", jumping, load, f"+1 h, -1 h; serves again {again_s:.1f} s")
        await check_stamps(jumping)


async def another_leads(cluster: LocalCluster, wrong: int) -> None:
    """Shard 1, soon."""
    until_s = time.monotonic() + HANDS_OVER_S
    while await cluster.leader_of(1) in (None, wrong):
        assert time.monotonic() < until_s, f"node {wrong} leads with a wrong clock"
        await asyncio.sleep(0.1)


async def check_stamps(cluster: LocalCluster) -> None:
    """When messages were saved, in the order they were, by clocks that were right."""
    now_ms = time.time_ns() // 1_000_000
    async with cluster.client() as client:
        for account in ACCOUNTS:
            messages = client.iter_messages(
                account,
                order=MessageOrder.UID_ASC,
                page_size=WHOLE_PAGE,
                consistency=Consistency.LINEARIZABLE,
            )
            stamps = [message.memberships[0].saved_time_ms async for message in messages]
            assert stamps
            assert all(abs(stamp - now_ms) < STAMP_OFF_MS for stamp in stamps), stamps
            assert all(earlier <= later for earlier, later in pairwise(stamps)), stamps

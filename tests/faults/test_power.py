"""Row 2: the power goes. Nodes under strace are killed and lose whatever they had not synced."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from tests.faults.checker import Broken, check
from tests.faults.conftest import OPTIONS
from tests.faults.disk_trace import Dropped
from tests.faults.load import Load
from tests.faults.rows import judge, note
from tests.faults.traced import TracedChild, why_no_trace

from mailraft.cluster.local import LocalCluster

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

ROUNDS = ((1,), (2, 3), (1, 2, 3), (3,), (1, 2), (1, 2, 3))


@pytest.fixture
async def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalCluster]:
    """Three nodes under strace, ready; skips the test where they cannot be."""
    why = why_no_trace()
    if why:
        note("2 power loss", f"skipped: {why}")
        pytest.skip(why)
    monkeypatch.setattr("mailraft.cluster.local.Child", TracedChild)
    async with LocalCluster(tmp_path / "cluster", OPTIONS) as running:
        await running.wait_ready()
        yield running


def power_cut(cluster: LocalCluster, nodes: Iterable[int]) -> Dropped:
    """Of these nodes at the same time. They are down then."""
    children = [each for each in cluster.children() if each.name in {f"n{node}" for node in nodes}]
    for child in children:
        child.kill_soon()
    dropped = Dropped()
    for child in children:
        child.kill()
        assert isinstance(child, TracedChild)
        dropped += child.cut_power()
    return dropped


async def test_power_loss(traced: LocalCluster) -> None:
    """Of one node, a majority and all, under load: nothing acknowledged is lost."""
    dropped = Dropped()
    async with Load(traced, seed=20) as load:
        await load.more(300)
        for nodes in ROUNDS:
            with load.history.fault():
                dropped += power_cut(traced, nodes)
                for node in nodes:
                    traced.start(node)
                await traced.wait_ready()
                await load.more(50)
            await load.more(100)
        remark = f"of 1, 2 and 3 nodes; not synced and gone: {dropped.bytes:,} bytes"
        await judge("2 power loss", traced, load, remark)
    assert dropped.bytes > 0, "nothing was cut"


async def test_power_loss_of_nodes_that_do_not_sync(traced: LocalCluster) -> None:
    """The same cut shows it: with flushes that only say that they synced, acknowledged mail is
    lost.
    """
    async with Load(traced, seed=21) as load:
        await load.more(100)
        power_cut(traced, traced.nodes)
        for child in traced.children():
            assert isinstance(child, TracedChild)
            child.unsynced = child.name != "router"
        for node in traced.nodes:
            traced.start(node)
        await traced.wait_ready()
        await load.more(200)
        await load.stop()
        power_cut(traced, traced.nodes)
        for child in traced.children():
            assert isinstance(child, TracedChild)
            child.unsynced = False
        for node in traced.nodes:
            traced.start(node)
        await traced.wait_ready()
        final = await load.final()
    lost = sum(each.what is Broken.LOST for each in check(load.history, final))
    note("2 power loss, nothing synced", f"the check bites: {lost} acknowledged lost")
    assert lost

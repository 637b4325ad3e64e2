"""Row 8: a disk that fails to sync, hangs in a sync, or fails to read, under a leader."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.faults.armed import ArmedChild
from tests.faults.load import Load, serves
from tests.faults.rows import judge

from mailraft.cluster.errors import ExitCode
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.node.engine import quarantine

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

SHARDS = 2
MOVES_S, ENDS_S, SERVES_S, REPAIRED_S = 3.0, 30.0, 60.0, 120.0
HANGS_S = 12.0


def armed_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch, later: str) -> LocalCluster:
    """Three nodes whose disks fail so once they are armed."""

    class FailingChild(ArmedChild):
        pass

    FailingChild.later = later
    monkeypatch.setattr("mailraft.cluster.local.Child", FailingChild)
    return LocalCluster(folder / "cluster", LocalOptions(shards=SHARDS))


@pytest.fixture
async def failing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[LocalCluster]:
    """Ready; `later` is the parameter."""
    async with armed_cluster(tmp_path, monkeypatch, request.param) as running:
        await running.wait_ready()
        yield running


async def arm_leader(cluster: LocalCluster) -> ArmedChild:
    """The disk of the node that leads shard 1 fails from now on."""
    node = await cluster.leader_of(1)
    child = next(each for each in cluster.children() if each.name == f"n{node}")
    assert isinstance(child, ArmedChild)
    child.arm()
    return child


async def moves(cluster: LocalCluster, child: ArmedChild) -> float:
    """Seconds until every shard is led by another node, as the others say."""
    began_s, node = time.monotonic(), int(child.name[1:])
    others = [each for each in cluster.nodes if each != node]
    while True:
        watch = cluster._watch()
        hints = watch.newest(await watch.maps(others))
        if len(hints) == SHARDS and node not in {each.node_id for each in hints.values()}:
            return time.monotonic() - began_s
        assert time.monotonic() - began_s < MOVES_S, f"{child.name} leads with a failing disk"
        await asyncio.sleep(0.05)


async def ends(child: ArmedChild) -> None:
    """By itself, with an error."""
    began_s = time.monotonic()
    while child.running:
        assert time.monotonic() - began_s < ENDS_S, f"{child.name} goes on after an I/O error"
        await asyncio.sleep(0.05)
    assert child.exit_status == ExitCode.FAILED


@pytest.mark.parametrize("failing", ["disk.sync=error"], indirect=True)
async def test_a_sync_that_fails(failing: LocalCluster) -> None:
    """The node ends: what is on its disk is not known, and no later sync can prove it (fsyncgate).
    Others lead within 3 s; it comes back with what it has, and nothing acknowledged is lost.
    """
    async with Load(failing, seed=81) as load:
        await load.more(300)
        with load.history.fault():
            child = await arm_leader(failing)
            moved_s = await moves(failing, child)
            await ends(child)
            await load.more(400)
            failing.start_again(child)
            await serves(failing, int(child.name[1:]), SERVES_S)
        assert "Input/output error" in child.log_path.read_text("utf-8")
        assert quarantine.kept(failing.data_folder(int(child.name[1:]))) is None
        await load.more(300)
        await judge(
            "8 sync fails on a leader", failing, load, f"led elsewhere after {moved_s:.1f} s"
        )


@pytest.mark.parametrize("failing", [f"disk.sync=sleep:{HANGS_S}@1"], indirect=True)
async def test_a_sync_that_hangs(failing: LocalCluster) -> None:
    """Others lead within 3 s. The node acknowledges nothing of what hangs, and follows again once
    its disk answers.
    """
    async with Load(failing, seed=82) as load:
        await load.more(300)
        with load.history.fault():
            child = await arm_leader(failing)
            hung_s = time.monotonic()
            moved_s = await moves(failing, child)
            await load.more(400)
            while time.monotonic() < hung_s + HANGS_S - 1.0:
                leaders = await failing.leaders()
                assert int(child.name[1:]) not in leaders.values(), "it leads while it hangs"
                await asyncio.sleep(0.1)
            assert child.running
            await serves(failing, int(child.name[1:]), HANGS_S + SERVES_S)
        await load.more(300)
        await judge(
            "8 sync hangs on a leader", failing, load, f"led elsewhere after {moved_s:.1f} s"
        )


@pytest.mark.parametrize("failing", ["disk.read=error@1"], indirect=True)
async def test_a_read_that_fails(failing: LocalCluster) -> None:
    """What cannot be read is damaged: the node ends, others lead within 3 s, and at its next start
    it is filled again from them.
    """
    async with Load(failing, seed=83) as load:
        await load.more(300)
        with load.history.fault():
            child = await arm_leader(failing)
            began_s = time.monotonic()
            moved_s = await moves(failing, child)
            await ends(child)
            await load.more(400)
            failing.start_again(child)
            folder = failing.data_folder(int(child.name[1:]))
            while quarantine.marked(folder) is not None or quarantine.kept(folder) is not None:
                assert time.monotonic() - began_s < REPAIRED_S, child.log_tail()
                await asyncio.sleep(0.1)
            repaired_s = time.monotonic() - began_s
        await load.more(300)
        remark = f"led elsewhere after {moved_s:.1f} s, repaired after {repaired_s:.1f} s"
        await judge("8 read fails on a leader", failing, load, remark)

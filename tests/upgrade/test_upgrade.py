"""Row 11 of the faults: nodes of the last release and of this tree in one cluster, under load."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

import pytest
from tests.faults import armed
from tests.faults.history import History
from tests.faults.load import Load
from tests.faults.rows import judge
from tests.faults.test_growing_and_shrinking import p99_ms
from tests.upgrade.release import Installed
from tests.upgrade.versions import (
    TREE,
    VersionedChild,
    VersionedCluster,
    lead_from,
    lead_from_all,
    until,
)

from mailraft.cluster.local import LocalOptions
from mailraft.cluster.operator import Operator
from mailraft.v1 import cluster_pb2, cluster_pb2_grpc
from mailraft.wire import errors, feature_levels
from mailraft.wire.credentials import open_channel

pytestmark = [pytest.mark.timeout(420), pytest.mark.slow]

OPTIONS = LocalOptions(shards=4)
OPERATIONS = 150  # acknowledged in each state of the cluster
REFUSED_DEADLINE_S = 20.0
COMPLETE_DEADLINE_S = 20.0
COMPARED_S = 4.5  # replicas compare the digests of their states every two seconds


@pytest.fixture
async def cluster(tmp_path: Path, before: Installed) -> AsyncIterator[VersionedCluster]:
    """Three nodes and a router of the last release, ready."""
    async with VersionedCluster(tmp_path / "cluster", OPTIONS, before.python) as running:
        await running.wait_ready()
        yield running


@pytest.fixture
async def operator(cluster: VersionedCluster) -> AsyncIterator[Operator]:
    """Who upgrades it."""
    async with Operator(
        cluster.router_address, cluster.credentials(), deadline_s=30.0
    ) as connected:
        yield connected


def failed(history: History) -> list[str]:
    """What a client got an error for."""
    return [f"{each.kind.value}: {each.error}" for each in history.operations if each.error]


async def bring_all(
    cluster: VersionedCluster, load: Load, nodes: Iterable[int], python: Path
) -> float:
    """Restart one after the other with a version, under load; the longest that it took to serve."""
    longest_s = 0.0
    for node in nodes:
        with load.history.fault():
            began_s = time.monotonic()
            await cluster.bring(node, python)
            longest_s = max(longest_s, time.monotonic() - began_s)
            await load.more(OPERATIONS // 2)
    return longest_s


async def nothing_differs(operator: Operator) -> None:
    """Every shard has its replicas, and none has stopped or another state than its peers."""

    async def complete() -> bool:
        alarms = {each.id for each in (await operator.status()).alarms}
        return not alarms & {"no-leader", "under-replicated"}

    await until(complete, COMPLETE_DEADLINE_S)
    await asyncio.sleep(COMPARED_S)
    alarms = (await operator.status()).alarms
    wrong = [each for each in alarms if each.id.startswith("replica-")]
    assert not wrong, wrong


async def test_a_rolling_upgrade_and_back(
    cluster: VersionedCluster, operator: Operator, before: Installed
) -> None:
    """Node by node to this version, then back, then here again and finalized: under load no call
    fails, and nothing is lost or stale.
    """
    async with Load(cluster, seed=11, pinned=False) as load:
        began_s = time.monotonic()
        await load.more(OPERATIONS * 4)
        upgrade_s = time.monotonic()
        away_s = await bring_all(cluster, load, (*cluster.nodes, 0), TREE)
        before_ms = p99_ms(load.history, began_s, upgrade_s)
        during_ms = p99_ms(load.history, upgrade_s, time.monotonic())
        assert (await operator.status()).feature_level == feature_levels.FIRST
        await nothing_differs(operator)
        assert before.version not in {each.node.version for each in (await operator.status()).nodes}
        await bring_all(cluster, load, (0, *cluster.nodes[::-1]), before.python)
        await nothing_differs(operator)
        await bring_all(cluster, load, (*cluster.nodes, 0), TREE)
        with load.history.fault():
            assert await operator.finalize() == feature_levels.LEVEL
            await load.more(OPERATIONS)
        assert (await operator.status()).feature_level == feature_levels.LEVEL
        remark = (
            f"p99 before {before_ms:.0f} ms, during {during_ms:.0f} ms, ready in {away_s:.1f} s"
        )
        await judge(f"11 rolling upgrade from {before.version}, back, again", cluster, load, remark)
        assert failed(load.history) == []
        await nothing_differs(operator)


async def test_leaders_of_either_version(
    cluster: VersionedCluster, operator: Operator, before: Installed
) -> None:
    """With one node of this version, then two: first it leads all groups, then the others do; no
    call fails, and nothing is lost or stale. Finalize is refused all the while.
    """
    async with Load(cluster, seed=12, pinned=False) as load:
        for node in cluster.nodes[:2]:
            await bring_all(cluster, load, [node], TREE)
            for python in (TREE, before.python):
                with load.history.fault():
                    await lead_from(cluster, operator, cluster.running(python))
                    await load.more(OPERATIONS)
                    await finalize_is_refused(cluster, operator, python, before)
            await lead_from_all(cluster, operator)
            await nothing_differs(operator)
        await judge(f"11 {before.version} and this tree, leaders on either side", cluster, load)
        assert failed(load.history) == []


async def finalize_is_refused(
    cluster: VersionedCluster, operator: Operator, leading: Path, before: Installed
) -> None:
    """A new leader names the nodes that are too old; an old one does not have the call."""
    if leading == TREE:
        old = [f"n{node}" for node in cluster.running(before.python)]
        with pytest.raises(errors.FeatureNotEnabledError) as refused:
            await operator.finalize()
        named = re.findall(rf"(n\d+) \({re.escape(before.version)}", refused.value.message)
        assert named == old
    else:
        with pytest.raises(errors.UnimplementedError):
            await operator.finalize()


async def test_snapshots_between_versions(tmp_path: Path, before: Installed) -> None:
    """A node that lost its disk gets everything from leaders of the other version, either way
    round: logs are short, so as snapshots.
    """
    cluster = VersionedCluster(tmp_path / "cluster", OPTIONS, before.python)
    cluster.entries_max = armed.ENTRIES_MAX
    async with cluster:
        await cluster.wait_ready()
        async with (
            Operator(cluster.router_address, cluster.credentials(), deadline_s=30.0) as operator,
            Load(cluster, seed=14) as load,
        ):
            await bring_all(cluster, load, cluster.nodes[:1], TREE)
            await load.more(OPERATIONS * 4)
            for python in (before.python, TREE):
                leading = cluster.running(python)
                await lead_from(cluster, operator, leading)
                lost = next(node for node in cluster.nodes if node not in leading)
                with load.history.fault():
                    cluster.kill(lost)
                    shutil.rmtree(cluster.data_folder(lost))
                    await load.more(OPERATIONS * 2)
                    cluster.start(lost)
                    await cluster.wait_ready()
                    await load.more(OPERATIONS)
                    await nothing_differs(operator)
                assert snapshots_taken(cluster.child(lost).log_path)
            await lead_from_all(cluster, operator)
            await judge(f"11 snapshots between {before.version} and this tree", cluster, load)


def snapshots_taken(log: Path) -> int:
    """How many snapshots a node has installed, by its log."""
    return log.read_text("utf-8").count(" is live")


async def test_after_finalize_a_node_cannot_go_back(
    cluster: VersionedCluster, operator: Operator, before: Installed
) -> None:
    """The release before does not start on the folder; with an empty one its peers refuse it. Both
    say which version is needed, and the node goes on with that.
    """
    async with Load(cluster, seed=13, pinned=False) as load:
        await bring_all(cluster, load, cluster.nodes, TREE)
        assert await operator.finalize() == feature_levels.LEVEL
        last = cluster.nodes[-1]
        child = cluster.child(last)
        await marked(cluster, last)
        with load.history.fault():
            child.terminate()
            await child.stopped(10.0)
            child.python = before.python
            cluster.start_again(child)
            await logged(child.log_path, "start the release that wrote this folder, or a newer one")
            await until(has_ended(child), REFUSED_DEADLINE_S)
            assert child.exit_status == 1
            await load.more(OPERATIONS)
        data = cluster.data_folder(last)
        data.rename(data.with_name("kept"))
        cluster.start_again(child)
        with load.history.fault():
            await logged(child.log_path, f"it needs {feature_levels.version_of(2)} or newer")
            await alarmed(operator, f"node-too-old/{last}")
            await load.more(OPERATIONS)
        child.kill()
        shutil.rmtree(data)
        data.with_name("kept").rename(data)
        await cluster.bring(last, TREE)
        await judge("11 after finalize a node cannot go back", cluster, load, void_below=False)
        await nothing_differs(operator)


async def marked(cluster: VersionedCluster, node: int) -> None:
    """Wait until a node goes by the new level, and its folder with it. One that ends before it
    heard of it starts with the release before, and is refused by its peers alone.
    """
    async with open_channel(cluster.address_of(node), cluster.credentials()) as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)

        async def goes_by_it() -> bool:
            told = await stub.GetClusterMap(cluster_pb2.GetClusterMapRequest(), timeout=5.0)
            return told.map.feature_level == feature_levels.LEVEL

        await until(goes_by_it, REFUSED_DEADLINE_S)


async def logged(path: Path, text: str) -> None:
    """Wait for a line of a process."""

    async def there() -> bool:
        return text in await asyncio.to_thread(path.read_text, "utf-8")

    await until(there, REFUSED_DEADLINE_S)


async def alarmed(operator: Operator, alarm: str) -> None:
    """Wait for an alarm."""

    async def raised() -> bool:
        return alarm in {each.id for each in (await operator.status()).alarms}

    await until(raised, REFUSED_DEADLINE_S)


def has_ended(child: VersionedChild) -> Callable[[], Awaitable[bool]]:
    """Whether a process runs no more."""

    async def ended() -> bool:
        return not child.running

    return ended


async def test_commands_of_the_release_before_work_on_this_tree(
    cluster: VersionedCluster, operator: Operator, before: Installed, tmp_path: Path
) -> None:
    """Services are upgraded after the cluster: an old client goes on, also once it is finalized."""
    for node in (*cluster.nodes, 0):
        await cluster.bring(node, TREE)
    await operator.finalize()
    async with cluster.client() as client:
        await client.create_account("alice")
    message = tmp_path / "message.eml"
    message.write_bytes(b"Subject: from before\r\n\r\nhello\r\n")
    folder = cluster.certs_folder
    assert folder is not None
    options = ("--server", cluster.router_address, "--certs", str(folder))
    for command in (
        ("mail", "deliver", "--to", "alice", str(message), *options),
        ("mail", "list", "alice", *options),
        ("cluster", "status", *options),
        ("node", "list", *options),
    ):
        done = await asyncio.to_thread(
            subprocess.run,
            (str(before.python), "-m", "mailraft.cluster.cli", *command),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

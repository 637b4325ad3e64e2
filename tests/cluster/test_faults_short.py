"""A short selection of `make faults` (tests/faults), for every run of the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.foreign import foreign_folder_refused
from tests.faults.load import Load
from tests.faults.rows import judge

from mailraft.cluster.local import LocalCluster

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(120), pytest.mark.slow]


async def test_kill_a_leader_under_recorded_load(cluster: LocalCluster) -> None:
    """Kill -9 of a leader: linearizable, nothing acknowledged lost, each request once."""
    async with Load(cluster, seed=1) as load:
        await load.more(300)
        leader = await cluster.leader_of(1)
        assert leader is not None
        with load.history.fault():
            cluster.kill(leader)
            await load.more(300)
            cluster.start(leader)
            await cluster.wait_ready()
        await load.more(350)
        await judge("1 kill -9 of a leader", cluster, load)


async def test_a_folder_of_another_cluster(tmp_path: Path) -> None:
    """A node refuses to start on it, and leaves it as it is."""
    assert await foreign_folder_refused(tmp_path)

"""Rows 17 and 18: whose folder it is, and what is in it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from tests.faults.foreign import foreign_folder_refused
from tests.faults.load import Load, serves
from tests.faults.rows import judge, note

from mailraft.client import MailraftError
from mailraft.cluster.local import LocalCluster

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

EMPTY_MAJORITY_S = 6.0
SERVES_LIMIT_S = 60.0


async def test_an_empty_folder(cluster: LocalCluster) -> None:
    """What nodes 1 and 3 acknowledged while 2 was down is on 1 alone once 3 has lost its folder:
    2 and the empty 3, a majority by number, must elect nobody and serve nothing without 1.
    """
    async with Load(cluster, seed=17) as load:
        await load.more(300)
        with load.history.fault():
            cluster.kill(2)
            await load.more(500)
            cluster.kill(1)
            cluster.kill(3)
            shutil.rmtree(cluster.data_folder(3))
            cluster.start(2)
            cluster.start(3)
            await _nobody_leads(cluster)
            cluster.start(1)
            await cluster.wait_ready()
            again_s = await serves(cluster, 3, SERVES_LIMIT_S)
        await load.more(200)
        await judge("17 an empty folder", cluster, load, f"rebuilt {again_s:.1f} s after")


async def _nobody_leads(cluster: LocalCluster) -> None:
    loop = asyncio.get_running_loop()
    answered = False
    until_s = loop.time() + EMPTY_MAJORITY_S
    while loop.time() < until_s or not answered:
        assert loop.time() < until_s + 30, "nodes 2 and 3 do not answer"
        missing = await cluster._watch().not_ready([2, 3])  # it says why
        assert missing, "elected with the vote of an empty folder"
        answered = answered or missing.startswith("no leader")
        if not answered:
            until_s = loop.time() + EMPTY_MAJORITY_S
        await asyncio.sleep(0.1)
    assert not await cluster.leaders()
    async with cluster.client() as client:
        with pytest.raises(MailraftError):
            await client.deliver(b"x", to=["account-0"], deadline_s=2.0)


async def test_a_folder_of_another_cluster(tmp_path: Path) -> None:
    """Refused, with words that say why."""
    note("18 another cluster's folder", f"refused: {await foreign_folder_refused(tmp_path)}")

"""The short case of row 7 (tests/faults/test_bit_flips.py has every kind of file)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.faults.damage import ACCOUNTS, ENDS_S, REPAIRED_S, Mail, Watched, flip

from mailraft.cluster.local import LocalCluster, LocalOptions

pytestmark = pytest.mark.timeout(240)

VICTIM, MESSAGES = 3, 20


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Three nodes and a router, ready."""
    async with LocalCluster(tmp_path / "cluster", LocalOptions(shards=2)) as running:
        await running.wait_ready()
        yield running


async def test_a_bit_flips_while_a_node_is_down(cluster: LocalCluster) -> None:
    """In its manifest: its start finds it, sets the store aside, and has all from its peers."""
    watched, mail = Watched(cluster, VICTIM), Mail(cluster, VICTIM)
    async with cluster.client() as client:
        for account in ACCOUNTS:
            await client.create_account(account)
        await mail.deliver(client, MESSAGES)
        await watched.stop()
        flip(max(watched.folder.glob("db/MANIFEST-*")))
        cluster.start(VICTIM)
        await watched.until(watched.keeps, "not set aside", ENDS_S)
        await watched.until(lambda: not watched.keeps(), "not repaired", REPAIRED_S)
        await mail.all_there(client, VICTIM)
        await mail.deliver(client, MESSAGES)

"""docs/runbooks/corrupt-node.md: a bit flips in a table of a node that runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.faults.damage import ACCOUNTS, Mail, SmallMemoryChild, Watched, flip
from tests.runbooks.conftest import Site, site_of

from mailraft.cluster.local import LocalOptions

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(300)]

VICTIM, MESSAGES = 3, 300


@pytest.fixture
async def small_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    """Three nodes that write their tables out early."""
    monkeypatch.setattr("mailraft.cluster.local.Child", SmallMemoryChild)
    async with site_of(tmp_path, LocalOptions(nodes=3, shards=2)) as made:
        yield made


async def test_by_the_book(small_memory: Site) -> None:
    """Found, fetched again, and nothing but what was delivered is ever served."""
    cluster = small_memory.cluster
    watched, mail = Watched(cluster, VICTIM), Mail(cluster, VICTIM)
    async with cluster.client() as client:
        for account in ACCOUNTS:
            await client.create_account(account)
        await mail.deliver(client, MESSAGES)
        await watched.stop()  # what it has is in tables then
        cluster.start(VICTIM)
        await cluster.wait_ready()
        flip(await watched.settled("db/*.sst"))
        log = watched.log_position()
        # Nobody has met the damage yet, so there may be no alarm.
        loose = {"mailraft alarm list": None}
        async with watched.supervised(), mail.going_on():
            async for _ in small_memory.rehearsal().run("corrupt-node", expect=loose):
                pass
        assert "all is fetched again" in watched.log_since(log)
        assert watched.ended == 1
        await mail.all_there(client, VICTIM)
    assert not mail.wrong
    assert not watched.led_while_fetching

"""docs/runbooks/cluster-from-backup.md: three nodes are gone, five get everything."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.backup.test_backup import until_archived
from tests.runbooks.conftest import site_of
from tests.runbooks.mailing import MESSAGES, delivered

import commands
from mailraft.cluster.local import LocalCluster, LocalOptions
from recorded import now_ms

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(400)]


async def test_by_the_book(tmp_path: Path) -> None:
    """Every account with its mail, and the settings of the cluster."""
    store = tmp_path / "store"
    async with LocalCluster(tmp_path / "old", LocalOptions(nodes=3, shards=2)) as old:
        await old.wait_ready()
        where = (*commands.where(old), "--store", str(store))
        await commands.run("settings", "set", "undelete_window=3d", *commands.where(old))
        stream = commands.Background(tmp_path / "stream.log", "backup", "stream", *where)
        try:
            async with old.client(deadline_s=30) as client:
                kept = await delivered(client)
                await client.create_account("alice")
            await until_archived(store, now_ms())
        finally:
            stream.kill()
        old.kill_all_nodes()
    shutil.rmtree(tmp_path / "old")
    async with site_of(tmp_path, LocalOptions(nodes=5, shards=3)) as site:
        async for step in site.rehearsal().run("cluster-from-backup"):
            if step.command == "mailraft settings get":
                assert "3d" in step.output
            if step.command.startswith("mailraft restore") and "dry" not in step.command:
                assert "settings=undelete_window" in step.output
        async with site.client() as client:
            for account in kept:
                page = await client.list_messages(account, "INBOX", page_size=50)
                assert len(page.messages) == MESSAGES

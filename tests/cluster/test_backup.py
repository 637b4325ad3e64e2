"""Backups by the commands: what an operator types. `make backup` does it under load."""

from __future__ import annotations

from pathlib import Path

import pytest

import commands
from mailraft.client import AsyncClient
from mailraft.cluster.local import LocalCluster

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(120)]


async def test_backup_and_restore_by_commands(
    cluster: LocalCluster, client: AsyncClient, tmp_path: Path
) -> None:
    """A backup, the log behind it, and the account in place as it was when that ended."""
    folder = tmp_path / "store"
    where = (*commands.where(cluster), "--store", str(folder))
    await client.create_account("alice")
    await client.deliver(b"Subject: kept\r\n\r\n", to=["alice"])
    line = await commands.run("backup", "create", "--dry-run", *where)
    assert line == "would be: a backup of 4 shards, all bodies\n"
    assert not folder.exists()
    line = await commands.run("backup", "create", *where)
    assert line.startswith("backup b-")
    assert " shards=4/4 bytes=" in line
    await client.deliver(b"Subject: archived\r\n\r\n", to=["alice"])
    assert (await commands.run("backup", "stream", "--for", "1", *where)).startswith("archived ")
    page = await client.list_messages("alice")
    await client.expunge_messages("alice", [each.id for each in page.messages])
    await client.deliver(b"Subject: later\r\n\r\n", to=["alice"])

    would = await commands.told("restore", "account", "alice", "--dry-run", *where)
    assert (would["appended"], would["expunged"]) == (2, 1)
    done = await commands.told("restore", "account", "alice", *where)
    assert (done["messages"], done["appended"], done["expunged"]) == (2, 2, 1)
    now = await client.list_messages("alice")
    raws = [await client.fetch_body("alice", each.id) for each in now.messages]
    assert raws == [b"Subject: kept\r\n\r\n", b"Subject: archived\r\n\r\n"]

"""docs/runbooks/disk-full.md: mail has filled all disks."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.test_disk_full import (
    ACCOUNTS,
    FOR_MAIL_BYTES,
    MESSAGE_BYTES,
    MESSAGES_MAX,
    check,
    child_of,
    fill_by_mail,
    small,
    takes_mail_again,
)
from tests.runbooks.conftest import Site

from mailraft.cluster.local import LocalCluster

__all__ = ["small"]  # the fixture

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(300)]


async def test_by_the_book(small: LocalCluster, tmp_path: Path) -> None:
    """With room again all is taken again, and nothing was lost."""
    site = Site(small, tmp_path)
    names = {
        f"/var/lib/mailraft/node-{node}": str(child_of(small, node).disk) for node in small.nodes
    }
    async with small.client() as client:
        for account in ACCOUNTS:
            await client.create_account(account)
        for node in small.nodes:
            child_of(small, node).fill(left_bytes=FOR_MAIL_BYTES)
        kept = await fill_by_mail(client, MESSAGES_MAX, MESSAGE_BYTES)
        assert len(kept) < MESSAGES_MAX, "no disk was full"
        await site.until_alarm("disk-full")
        told = ""
        async for step in site.rehearsal(names).run("disk-full", expect={"mailraft alarm list": 1}):
            told += step.output
        assert "disk-full" in told
        await takes_mail_again(client, kept)
        await check(client, kept)

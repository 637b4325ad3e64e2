"""docs/runbooks/accidental-deletion.md: messages, a mailbox, an account."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest
from tests.backup.test_backup import until_archived
from tests.runbooks.conftest import Site
from tests.runbooks.mailing import listed

import commands
from mailraft.client import AsyncClient
from recorded import now_ms

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(300)]

PAUSE_S = 1.5  # the page's times are whole seconds


async def used(client: AsyncClient, account: str) -> None:
    """Five messages in the INBOX, two of them seen, and two in another mailbox."""
    await client.create_account(account)
    kept = await client.create_mailbox(account, "Kept")
    for number in range(5):
        receipt = await client.deliver(b"Subject: mail %d\r\n\r\n" % number, to=[account])
        message = receipt.recipients[0].message_id
        if number < 2:
            await client.modify_keywords(account, [message], add=["$seen"])
    for number in range(2):
        await client.append(account, [b"Subject: kept %d\r\n\r\n" % number], kept.id)


async def deleted(client: AsyncClient, account: str) -> None:
    """The accident."""
    for mailbox in await client.list_mailboxes(account):
        page = await client.list_messages(account, mailbox.id, page_size=50)
        if page.messages:
            await client.expunge_messages(account, [each.id for each in page.messages])
        if mailbox.name == "Kept":
            await client.delete_mailbox(account, mailbox.id)


def utc(time_ms: int) -> str:
    """As a page writes it."""
    at = dt.datetime.fromtimestamp(time_ms / 1000, dt.UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def test_by_the_book(site: Site) -> None:
    """Undeleted at once; then as it was, beside and in place; then an account that was deleted."""
    where = (*commands.where(site.cluster), "--store", str(site.store))
    stream = commands.Background(site.folder / "stream.log", "backup", "stream", *where)
    try:
        async with site.cluster.client(deadline_s=30) as client:
            for account in ("alice", "bob"):
                await used(client, account)
            await asyncio.sleep(PAUSE_S)
            before_ms = now_ms()
            await asyncio.sleep(PAUSE_S)
            accident_ms = now_ms()
            await deleted(client, "alice")
            await client.deliver(b"Subject: later\r\n\r\n", to=["alice"])
            await client.delete_account("bob", force=True)
            await until_archived(site.store, now_ms())
            names = {
                "2026-11-24T12:00:00Z": utc(accident_ms),
                "2026-11-24T11:59:59Z": utc(before_ms),
            }
            async for step in site.rehearsal(names).run("accidental-deletion"):
                if step.command.startswith("mailraft mail undelete") and "dry" not in step.command:
                    assert "messages=7" in step.output
                    assert len(await listed(client, "alice")) == 8
                if step.command == "mailraft mail list alice-then":
                    await check_as_it_was(client, "alice-then", later=0)
            await check_as_it_was(client, "alice", later=1)
            await check_as_it_was(client, "bob", later=0)
    finally:
        stream.kill()


async def check_as_it_was(client: AsyncClient, account: str, later: int) -> None:
    """Mailboxes, messages and flags of used(); `later`: what came behind."""
    counts, seen = {}, 0
    for mailbox in await client.list_mailboxes(account):
        page = await client.list_messages(account, mailbox.id, page_size=50)
        counts[mailbox.name] = len(page.messages)
        seen += sum("$seen" in each.keywords for each in page.messages)
    assert counts == {"INBOX": 5 + later, "Kept": 2}
    assert seen == 2

"""Mail that a rehearsal delivers before, and looks for behind."""

from __future__ import annotations

from mailraft.client import AsyncClient, Consistency

ACCOUNTS, MESSAGES = 8, 5
# Message ids by account, acknowledged.
Kept = dict[str, set[str]]


async def delivered(client: AsyncClient, accounts: int = ACCOUNTS) -> Kept:
    """Some mail for some accounts."""
    found: Kept = {}
    for number in range(accounts):
        account = f"user-{number}"
        await client.create_account(account)
        receipts = [
            await client.deliver(b"Subject: %d\r\n\r\n" % each, to=[account])
            for each in range(MESSAGES)
        ]
        found[account] = {receipt.recipients[0].message_id for receipt in receipts}
    return found


async def listed(client: AsyncClient, account: str) -> set[str]:
    """What is there, by a linearizable read."""
    consistency = Consistency.LINEARIZABLE
    return {each.id async for each in client.iter_messages(account, consistency=consistency)}


async def check(client: AsyncClient, kept: Kept) -> None:
    """All of it is there, and nothing else."""
    for account, ids in kept.items():
        assert await listed(client, account) == ids, account


async def more(client: AsyncClient, kept: Kept, account: str = "user-0") -> None:
    """One mail more is taken."""
    receipt = await client.deliver(b"Subject: more\r\n\r\n", to=[account])
    kept[account].add(receipt.recipients[0].message_id)

"""Backups of real clusters under load: `make backup` (docs/backup.md)."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import commands
from mailraft.client import AsyncClient
from mailraft.cluster.backup.archive import read_head
from mailraft.cluster.backup.manifest import backups, only_cluster
from mailraft.cluster.backup.nodes import Nodes
from mailraft.cluster.backup.restore import Target, restore_account
from mailraft.cluster.backup.store import Folder
from mailraft.cluster.local import LocalCluster, LocalOptions
from recorded import Recorded, now_ms, shown

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(900)]

SEED = 7
ACCOUNTS, SHARDS = 16, 4
PAUSE_S, LONG_PAUSE_S = 0.02, 0.1  # between two steps of an account, on average
LOAD_S = 45.0
TIMES = 20
ACKED_MIN, OVERLAPPING_MIN = 1_000, 100  # else it shows nothing (docs/backup.md)
RECOVERY_POINT_S_MAX = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where backups go."""
    return tmp_path / "store"


@asynccontextmanager
async def loaded(client: AsyncClient, count: int, pause_s: float) -> AsyncIterator[list[Recorded]]:
    """Accounts that are used for as long as the block runs."""
    chance = random.Random(SEED)
    accounts = [
        Recorded(client, f"user-{number}", random.Random(chance.random()))
        for number in range(count)
    ]
    await asyncio.gather(*(each.create() for each in accounts))
    running = [asyncio.create_task(each.run(pause_s)) for each in accounts]
    try:
        yield accounts
    finally:
        for each in running:
            each.cancel()
        ends = await asyncio.gather(*running, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ends), ends


def reached_ms(folder: Path) -> dict[int, int]:
    """Up to when each shard is archived."""
    if not folder.is_dir() or not any(folder.glob("clusters/*/head")):
        return {}
    store = Folder(folder)
    return {group: each.time_ms for group, each in read_head(store, only_cluster(store)).items()}


async def until_archived(folder: Path, time_ms: int) -> None:
    """Wait until every shard is."""
    async with asyncio.timeout(60):
        while min(reached_ms(folder).values(), default=0) < time_ms:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.2)


async def test_three_nodes_destroyed_and_restored_into_five(tmp_path: Path, folder: Path) -> None:
    """Everything that was acknowledged before the recovery point is there, as it was."""
    options = LocalOptions(nodes=3, shards=SHARDS)
    async with LocalCluster(tmp_path / "three", options) as three:
        await three.wait_ready()
        where = (*commands.where(three), "--store", str(folder))
        stream = commands.Background(tmp_path / "stream.log", "backup", "stream", *where)
        async with (
            three.client(deadline_s=30) as client,
            loaded(client, ACCOUNTS, PAUSE_S) as accounts,
        ):
            await asyncio.sleep(LOAD_S / 2)
            print("\n" + await commands.run("backup", "create", *where), end="")
            await asyncio.sleep(LOAD_S / 2)
            assert stream.running, stream.log.read_text()
            stream.kill()
            for node in three.nodes:
                three.kill(node)
            destroyed_ms = now_ms()
    shutil.rmtree(tmp_path / "three")
    acked = sum(len(each.steps) for each in accounts)
    assert acked >= ACKED_MIN, f"void: {acked} steps"
    point_ms = min(reached_ms(folder).values())
    behind_s = (destroyed_ms - point_ms) / 1000
    print(await commands.run("backup", "verify", "--store", str(folder)), end="")
    async with LocalCluster(tmp_path / "five", LocalOptions(nodes=5, shards=7)) as five:
        await five.wait_ready()
        where = (*commands.where(five), "--store", str(folder))
        began_s = time.monotonic()
        print(await commands.run("restore", "cluster", *where), end="")
        took_s = time.monotonic() - began_s
        async with five.client(deadline_s=30) as client:
            for each in accounts:
                now = await shown(client, each.account)
                assert now in each.since(point_ms), f"{each.account} lost something"
    print(
        f"acknowledged={acked} recovery_point={behind_s:.1f} s recovery_time={took_s:.1f} s "
        f"({ACCOUNTS} accounts)"
    )
    assert behind_s <= RECOVERY_POINT_S_MAX


async def test_an_account_at_twenty_random_times(tmp_path: Path, folder: Path) -> None:
    """Row 15: exactly what it showed then, while deliveries go on; and once in place."""
    async with LocalCluster(tmp_path / "three", LocalOptions(nodes=3, shards=SHARDS)) as three:
        await three.wait_ready()
        where = (*commands.where(three), "--store", str(folder))
        stream = commands.Background(tmp_path / "stream.log", "backup", "stream", *where)
        try:
            async with three.client(deadline_s=30) as client:
                async with loaded(client, ACCOUNTS // 2, LONG_PAUSE_S) as accounts:
                    await until_archived(folder, now_ms())
                    await asyncio.sleep(LOAD_S / 2)
                    async with Nodes(three.map, three.credentials("admin")) as nodes:
                        await into_others(folder, Target(client, nodes), accounts)
                await until_archived(folder, now_ms())  # nothing changes accounts any more
                await in_place(client, accounts[0], where)
        finally:
            stream.kill()


async def into_others(folder: Path, target: Target, accounts: list[Recorded]) -> None:
    """Random accounts at random times, each into an account of its own."""
    store, chance = Folder(folder), random.Random(SEED)
    first_ms = max(shard.clock_ms for shard in backups(store)[0].shards)
    before, exact = sum(len(each.steps) for each in accounts), 0
    for number in range(TIMES):
        each, into = chance.choice(accounts), f"then-{number}"
        earliest_ms = max(first_ms, each.steps[0].acked_ms)
        at_ms = chance.randrange(earliest_ms, min(reached_ms(folder).values()))
        await restore_account(
            store, target.map.cluster_id, target, each.account, at_ms=at_ms, into=into
        )
        allowed = each.at(at_ms)
        assert await shown(target.client, into) in allowed, f"{each.account} at {at_ms}"
        exact += len(allowed) == 1
    meanwhile = sum(len(each.steps) for each in accounts) - before
    print(f"\n{TIMES} times, {exact} with no step under way; {meanwhile} steps meanwhile")
    assert exact >= TIMES // 4
    assert meanwhile >= OVERLAPPING_MIN, "void"
    assert before + meanwhile >= ACKED_MIN, f"void: {before + meanwhile} steps"


async def in_place(client: AsyncClient, it: Recorded, where: tuple[str, ...]) -> None:
    """Half way back: a forward change."""
    at_ms = it.steps[len(it.steps) // 2].acked_ms
    before = {box.id: box for box in await client.list_mailboxes(it.account)}
    modseq = (await client.get_account(it.account)).highest_modseq
    at = dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).isoformat()
    print(await commands.run("restore", "account", it.account, "--at", at, *where), end="")
    assert await shown(client, it.account) in it.at(at_ms)
    assert (await client.get_account(it.account)).highest_modseq > modseq
    for box in await client.list_mailboxes(it.account):
        assert box.uid_validity == before[box.id].uid_validity
        assert box.uid_next >= before[box.id].uid_next

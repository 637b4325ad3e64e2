"""A node with a damaged file gives its store up, and is filled again by its peers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest
from typer.testing import CliRunner

from mailraft.client import AsyncClient, Consistency
from mailraft.cluster.cli import app
from mailraft.cluster.errors import ExitCode
from mailraft.node import failpoints, repair
from mailraft.node.engine import keys, quarantine, scrub_files
from mailraft.node.engine.errors import DiskError, FileDamagedError
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import Configuration, HardState, SaveHardState, replica_id
from three_nodes import SHARD, Nodes, all_up, until

MESSAGES = 20
FOUND_S, REPAIRED_S = 10.0, 40.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once, and repairs are looked after more often."""
    monkeypatch.setattr(scrub_files.FileLook.__init__, "__kwdefaults__", {"settled_s": 0.0})
    monkeypatch.setattr(repair, "LOOK_S", 0.2)


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """All three are up, and have mail, in tables and blobs too."""
    async with all_up(tmp_path) as found:
        async with found.client() as mail:
            await mail.create_account("alice")
            for number in range(MESSAGES):
                await mail.deliver(Random(number).randbytes(2_000), to=["alice"])
        await until(found.alike)
        for number in (1, 2, 3):
            for family in found.store(number)._backend._families.values():  # type: ignore[attr-defined]
                family.flush()
        yield found


def flip(folder: Path, pattern: str) -> None:
    """A bit in the middle of the largest such file."""
    path = max(folder.glob(pattern), key=lambda each: each.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)


async def all_there(mail: AsyncClient, number: int) -> None:
    """Every message, byte for byte, from this node."""
    replica = replica_id(number, 1)
    where = Consistency.LINEARIZABLE
    page = await mail.list_messages("alice", "INBOX", replica=replica, consistency=where)
    assert len(page.messages) == MESSAGES
    for message in page.messages:
        body = await mail.fetch_body("alice", message.id, replica=replica, consistency=where)
        assert body in {Random(each).randbytes(2_000) for each in range(MESSAGES)}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("whose", ["leader", "follower"])
async def test_a_flipped_bit_in_a_table(nodes: Nodes, whose: str) -> None:
    """The scrub finds it; the node serves nothing from then on, and others lead. Its next start
    moves the store aside, fills a new one from its peers and then removes the old.
    """
    leader = nodes.leader
    broken = leader if whose == "leader" else next(n for n in (1, 2, 3) if n != leader)
    node, folder = nodes.running[broken], nodes.folder(broken)
    scrub = node._healing.scrub
    await scrub.run_pass()
    assert scrub.state.errors == 0
    flip(folder, "db/*.sst")
    await scrub.run_pass()
    with pytest.raises(FileDamagedError, match=r"\.sst"):
        await asyncio.wait_for(node.failed, FOUND_S)
    assert all(replica.stopped for replica in node.replicas())
    await nodes.stop(broken)
    assert ".sst" in (quarantine.marked(folder) or "")
    await until(lambda: nodes.leader not in {0, broken})

    await nodes.start(broken)
    assert ".sst" in (quarantine.kept(folder) or "")
    assert nodes.store(broken).load(SHARD).lost
    told = nodes.running[broken]._healing.told()
    assert list(told.fetching) == [SHARD]
    await until(lambda: quarantine.kept(folder) is None, REPAIRED_S)
    assert not nodes.store(broken).load(SHARD).lost
    assert not (folder / quarantine.QUARANTINE_FOLDER).exists()
    await until(nodes.alike)
    async with nodes.client() as mail:
        await all_there(mail, broken)


@pytest.mark.timeout(120)
async def test_a_damaged_body_is_never_served(nodes: Nodes) -> None:
    """Behind every block's checksum: its own tells when it is read, its reader gets an error from
    here or the body from elsewhere, and the replica is fetched again.
    """
    broken = next(number for number in (1, 2, 3) if number != nodes.leader)
    store = nodes.store(broken)
    key, packed = next(iter(store.bodies(SHARD)))
    batch = store._backend.batch()
    batch.put(keys.BODY, key, packed[:-1] + bytes((packed[-1] ^ 1,)))
    store._backend.write(batch)
    node = nodes.running[broken]
    assert node.body(SHARD, *keys.body_position(key)) is None
    await until(lambda: node._healing.repairs.figures.begun == 1, FOUND_S)
    await until(lambda: node._healing.repairs.figures.completed == 1, REPAIRED_S)
    await until(nodes.alike)
    async with nodes.client() as mail:
        await all_there(mail, broken)


@pytest.mark.timeout(120)
async def test_check_repair(nodes: Nodes) -> None:
    """Has all nodes read everything, fetches what is damaged, and ends with 0 once all is whole."""
    broken = next(number for number in (1, 2, 3) if number != nodes.leader)
    store = nodes.store(broken)
    key, packed = next(iter(store.bodies(SHARD)))
    batch = store._backend.batch()
    batch.put(keys.BODY, key, packed[:-1] + bytes((packed[-1] ^ 1,)))
    store._backend.write(batch)
    server = nodes.map.nodes[0].address
    arguments = ["check", "repair", "--server", server, "--insecure", "--timeout", "60"]
    looked = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--dry-run"])
    assert looked.exit_code == ExitCode.OK
    assert "n1: whole" in looked.stdout
    ran = await asyncio.to_thread(CliRunner().invoke, app, arguments)
    assert ran.exit_code == ExitCode.OK, ran.output
    assert f"n{broken}: whole" in ran.stdout
    assert "1 errors so far, 1 found now" in ran.stdout
    assert nodes.running[broken]._healing.repairs.figures.completed == 1


@pytest.mark.timeout(120)
async def test_nothing_is_given_up_while_too_few_others_are_well(nodes: Nodes) -> None:
    """A replica that is set aside stays as it is until a majority of peers can fill it again."""
    broken, gone = [number for number in (1, 2, 3) if number != nodes.leader]
    await nodes.stop(gone)
    repairs = nodes.running[broken]._healing.repairs
    await repairs.damaged(SHARD, "for a test")
    await asyncio.sleep(3.0)
    assert repairs.waiting() == [SHARD]
    assert repairs.figures.begun == 0
    assert not (nodes.folder(broken) / quarantine.QUARANTINE_FOLDER).exists()
    await nodes.start(gone)
    await until(lambda: repairs.figures.completed == 1, REPAIRED_S)
    await until(nodes.alike)


def test_a_sync_that_failed_is_never_made_good_by_a_later_one(tmp_path: Path) -> None:
    """The kernel may have dropped what it could not write, and says so once: no later flush, write
    or close of this process touches the disk again (fsyncgate).
    """
    store = Store.open(tmp_path, cluster_id="c1", node=1)
    store.create_group(SHARD, replica_id(1, 1), Configuration(1, (replica_id(1, 1),)))
    write = SaveHardState(SHARD, HardState(2))
    store.write([write])
    try:
        failpoints.arm("disk.sync=error@1")
        with pytest.raises(DiskError, match="Input/output error"):
            store.flush()
        for again in (store.flush, lambda: store.write([write])):
            with pytest.raises(DiskError, match="an earlier write failed"):
                again()
        synced = failpoints._armed["disk.sync"].hits
        store.close()
        assert failpoints._armed["disk.sync"].hits == synced == 1
    finally:
        failpoints.arm("")

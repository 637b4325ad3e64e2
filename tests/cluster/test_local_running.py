"""What holds of a local cluster while it runs. The tests of this file share one."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from mailraft.client import AsyncClient, Consistency, MailraftError
from mailraft.cluster import runfile
from mailraft.cluster.errors import FolderInUseError
from mailraft.cluster.local import LocalCluster, LocalOptions

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("processes"),
    pytest.mark.timeout(120),
]

SHARDS = 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalCluster]:
    """Three nodes and a router, ready, with certificates."""
    folder = tmp_path_factory.mktemp("running") / "cluster"
    async with LocalCluster(folder, LocalOptions(shards=SHARDS)) as cluster:
        await cluster.wait_ready()
        yield cluster


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mail(running: LocalCluster) -> AsyncIterator[AsyncClient]:
    """A client of it."""
    async with running.client(deadline_s=30.0) as client:
        yield client


async def test_mail_goes_in_and_comes_out(mail: AsyncClient) -> None:
    """A delivered message is listed and fetched, byte by byte, from any of its replicas."""
    raw = b"Subject: first\r\n\r\nNUL \x00, 8bit \xe9, lone CR \r, LF \n"
    await mail.create_account("alice")
    receipt = await mail.deliver(raw, to=["alice"])
    message_id = receipt.recipients[0].message_id
    assert await mail.fetch_body("alice", message_id) == raw
    located = await mail.locate("alice")
    assert len(located.shard.replicas) == 3
    for replica in located.shard.replicas:
        await _until_there(mail, "alice", message_id, replica.replica_id)
        page = await mail.list_messages(
            "alice", consistency=Consistency.LOCAL, replica=replica.replica_id
        )
        assert page.served.replica_id == replica.replica_id
        body = await mail.fetch_body(
            "alice", message_id, consistency=Consistency.LOCAL, replica=replica.replica_id
        )
        assert body == raw


async def _until_there(mail: AsyncClient, account: str, message_id: str, replica: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                await mail.get_message(
                    account, message_id, consistency=Consistency.LOCAL, replica=replica
                )
            except MailraftError:
                await asyncio.sleep(0.02)
            else:
                return


async def test_everybody_knows_who_leads(running: LocalCluster) -> None:
    """Every shard has a leader, and it is one of the nodes."""
    leaders = await running.leaders()
    assert sorted(leaders) == [shard.id for shard in running.map.shards]
    assert set(leaders.values()) <= set(running.nodes)
    assert await running.leader_of(1) == leaders[1]


async def test_the_folder_says_who_runs(running: LocalCluster) -> None:
    """run.json names live processes; configuration and logs of each are there."""
    told = runfile.read(running.folder)
    assert told is not None
    assert told.router.address == running.router_address
    for process in (told.router, *told.nodes):
        os.kill(process.pid, 0)
        assert (running.logs_folder / f"{process.name}.log").exists()
    assert [node.node for node in told.nodes] == running.nodes


async def test_logs_are_json(running: LocalCluster) -> None:
    """Each line of a log file is one object with time, level and node."""
    for line in (running.logs_folder / "n1.log").read_text().splitlines():
        entry = json.loads(line)
        assert entry["node"] == 1
        assert {"timestamp", "level", "event"} <= set(entry)


async def test_a_second_start_is_refused(running: LocalCluster) -> None:
    """One cluster a folder; the first goes on."""
    with pytest.raises(FolderInUseError, match=rf"process {os.getpid()}"):
        async with LocalCluster(running.folder):
            pass
    assert running.ended() == []
    await running.wait_ready(5)


@pytest.mark.parametrize("direct", [True, False], ids=["to the leaders", "through the router"])
async def test_a_large_message_goes_in_and_comes_out(running: LocalCluster, direct: bool) -> None:
    """5 MiB are uploaded, delivered to two accounts and read back, byte by byte and in a range."""
    raw = b"Subject: large\r\n\r\n" + os.urandom(5 * 1024 * 1024)
    names = [f"large-{direct}-1", f"large-{direct}-2"]
    certs = running.certs_folder
    async with AsyncClient(
        running.router_address, certs=certs, deadline_s=30.0, direct=direct
    ) as mail:
        for name in names:
            await mail.create_account(name)
        receipt = await mail.deliver(raw, to=names)
        assert not receipt.failed
        for each in receipt.recipients:
            assert await mail.fetch_body(each.account_id, each.message_id) == raw
            part = await mail.fetch_body(each.account_id, each.message_id, offset=9, length=2**21)
            assert part == raw[9 : 9 + 2**21]

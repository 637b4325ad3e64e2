"""Following mail on a cluster of real processes: watches that outlive nodes, import and export."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import pytest
from tests.cluster.test_local import mailraft

from mailraft.client import AsyncClient
from mailraft.cluster.corpus import default_path
from mailraft.cluster.local import LocalCluster

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(180)]

ACCOUNTS = [f"watched-{number}" for number in range(12)]


@pytest.mark.parametrize("direct", [True, False])
async def test_a_watch_goes_on_when_a_node_is_killed(cluster: LocalCluster, direct: bool) -> None:
    """Through the router or direct: every account is told its last state, by whichever node."""
    target = cluster.router_address
    async with AsyncClient(
        target, certs=cluster.certs_folder, deadline_s=30.0, direct=direct
    ) as mail:
        for account in ACCOUNTS:
            await mail.create_account(account)
        told: dict[str, str] = {}
        begun = asyncio.Event()

        async def follow() -> None:
            async with aclosing(mail.watch(ACCOUNTS)) as stream:
                async for event in stream:
                    assert event.WhichOneof("event") == "change", event
                    told[event.account_id] = event.change.state
                    if len(told) == len(ACCOUNTS):
                        begun.set()

        following = asyncio.ensure_future(follow())
        async with asyncio.timeout(30):
            await begun.wait()
        cluster.kill(cluster.nodes[0])
        receipt = await mail.deliver(b"Subject: x\r\n\r\nx", to=ACCOUNTS)
        receipt.raise_for_failures()
        expected = {each.account_id: each.state for each in receipt.recipients}
        async with asyncio.timeout(60):
            while told != expected:
                assert not following.done(), following
                await asyncio.sleep(0.05)
        following.cancel()


async def test_mail_is_imported_and_exported(cluster: LocalCluster, client: AsyncClient) -> None:
    """By the commands, as a user runs them: what goes in comes out, byte for byte, and a second run
    does nothing.
    """
    folder = cluster.folder.parent

    def run(*arguments: str) -> dict[str, object]:
        done = mailraft("mail", *arguments, "-o", "json", *_where(cluster), folder=folder)
        assert done.returncode == 0, done.stderr.decode()
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    raws = sorted(path.read_bytes() for path in default_path().glob("*.eml"))
    source = str(default_path())
    state = ("--state", str(folder / "state"))
    first = await asyncio.to_thread(run, "import", "alice", source, "--create", *state)
    again = await asyncio.to_thread(run, "import", "alice", source, *state)
    count = len([raw for raw in raws if raw])
    assert (first["imported"], again["imported"], again["before"]) == (count, 0, count)
    out = folder / "out"
    told = await asyncio.to_thread(run, "export", "alice", str(out), "--format", "eml")
    assert told["exported"] == count
    assert sorted(path.read_bytes() for path in out.rglob("*.eml")) == [raw for raw in raws if raw]
    assert (await client.get_account("alice")).usage.messages == count


def _where(cluster: LocalCluster) -> tuple[str, ...]:
    return ("--server", cluster.router_address, "--certs", str(cluster.certs_folder))

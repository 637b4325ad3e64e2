"""A cluster of real processes: it starts, serves, is alone on its folder, and loses nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mailraft.client import AsyncClient, Consistency, MailraftError
from mailraft.cluster import runfile
from mailraft.cluster.errors import ClusterError, ExitCode, NotReadyError
from mailraft.cluster.local import LocalCluster, LocalOptions

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(180)]

SHARDS = 4
OPTIONS = LocalOptions(shards=SHARDS)
ACCOUNTS = [f"account-{number}" for number in range(12)]


async def inbox(client: AsyncClient, account: str) -> dict[str, bytes]:
    """Message id to bytes, of everything that is there, read linearizably."""
    found: dict[str, bytes] = {}
    token = ""
    while True:
        page = await client.list_messages(
            account, page_token=token, consistency=Consistency.LINEARIZABLE
        )
        for message in page.messages:
            found[message.id] = await client.fetch_body(account, message.id)
        token = page.next_page_token
        if not token:
            return found


def mailraft(
    *arguments: str, folder: Path, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """The command as a user runs it, in a folder."""
    command = [sys.executable, "-m", "mailraft.cluster.cli", *arguments]
    return subprocess.run(
        command, cwd=folder, input=stdin, capture_output=True, timeout=60, check=False
    )


async def test_a_restart_keeps_the_data(tmp_path: Path) -> None:
    """Stopped and started again, with one port taken meanwhile: all mail is there."""
    folder = tmp_path / "cluster"
    sent: dict[str, dict[str, bytes]] = {}
    async with LocalCluster(folder, OPTIONS) as cluster:
        await cluster.wait_ready()
        addresses = [node.address for node in cluster.map.nodes]
        async with cluster.client(deadline_s=30.0) as client:
            for account in ACCOUNTS:
                await client.create_account(account)
                raw = f"To: {account}\n\nbody\n".encode()
                receipt = await client.deliver(raw, to=[account])
                sent[account] = {receipt.recipients[0].message_id: raw}
    assert runfile.read(folder) is None
    with closing(socket.create_server(("127.0.0.1", int(addresses[0].rpartition(":")[2])))):
        async with LocalCluster(folder) as cluster:
            await cluster.wait_ready()
            moved = [node.address for node in cluster.map.nodes]
            assert moved[0] != addresses[0]
            assert moved[1:] == addresses[1:]
            assert len(cluster.map.shards) == SHARDS
            async with cluster.client(deadline_s=30.0) as client:
                for account, messages in sent.items():
                    assert await inbox(client, account) == messages


async def test_another_shape_is_refused(tmp_path: Path) -> None:
    """A folder's cluster keeps its number of nodes and shards."""
    async with LocalCluster(tmp_path, LocalOptions(nodes=1, shards=1)) as cluster:
        await cluster.wait_ready()
    with pytest.raises(ClusterError, match="has 1 shards, not 2"):
        async with LocalCluster(tmp_path, LocalOptions(shards=2)):
            pass


@pytest.mark.parametrize("count", [1, 2])
async def test_fewer_nodes(tmp_path: Path, count: int) -> None:
    """One or two nodes serve as well, in plain text too."""
    options = LocalOptions(nodes=count, shards=2, insecure=True)
    async with LocalCluster(tmp_path, options) as cluster:
        await cluster.wait_ready()
        async with cluster.client(deadline_s=30.0) as client:
            await client.create_account("a")
            receipt = await client.deliver(b"x", to=["a"])
            assert await inbox(client, "a") == {receipt.recipients[0].message_id: b"x"}


async def test_a_node_that_cannot_start_is_told(tmp_path: Path) -> None:
    """Its log's last lines are in the error, and nothing is left running."""
    async with LocalCluster(tmp_path, LocalOptions(nodes=1, shards=1)) as cluster:
        await cluster.wait_ready()
    (tmp_path / "n1" / "data" / "db" / "CURRENT").write_bytes(b"damaged\n")
    with pytest.raises(NotReadyError, match="n1 ended with status"):
        async with LocalCluster(tmp_path) as cluster:
            await cluster.wait_ready()
    assert [child.running for child in cluster.children()] == [False, False]


class Writer:
    """Delivers without pause, and remembers what was acknowledged."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.acknowledged: dict[tuple[str, str], bytes] = {}
        self.failed = self.under_way = 0
        self._stop = False

    async def run(self, number: int) -> None:
        """One of many at once."""
        for step in range(1_000_000):
            if self._stop:
                return
            account = ACCOUNTS[(number + step) % len(ACCOUNTS)]
            raw = f"Subject: {number}/{step}\n\n".encode() + os.urandom(number * 40)
            self.under_way += 1
            try:
                receipt = await self.client.deliver(raw, to=[account], deadline_s=60.0)
            except MailraftError:
                self.failed += 1
            else:
                self.acknowledged[account, receipt.recipients[0].message_id] = raw
            finally:
                self.under_way -= 1

    def stop(self) -> None:
        """Each ends after the delivery that it has under way."""
        self._stop = True

    async def reach(self, count: int) -> None:
        """Wait until so many are acknowledged."""
        until_s = time.monotonic() + 60
        while len(self.acknowledged) < count:
            assert time.monotonic() < until_s, f"{len(self.acknowledged)} of {count} acknowledged"
            await asyncio.sleep(0.01)


async def check_all(client: AsyncClient, writer: Writer) -> None:
    """Everything acknowledged is there, once, with its bytes."""
    found: dict[tuple[str, str], bytes] = {}
    for account in ACCOUNTS:
        for message_id, raw in (await inbox(client, account)).items():
            found[account, message_id] = raw
    lost = writer.acknowledged.keys() - found.keys()
    assert not lost, f"{len(lost)} of {len(writer.acknowledged)} acknowledged messages are lost"
    assert all(found[key] == raw for key, raw in writer.acknowledged.items())
    assert len(set(found.values())) == len(found), "a message is there twice"
    assert len(found) <= len(writer.acknowledged) + writer.failed


@pytest.mark.slow
async def test_kill_all_nodes_at_once(cluster: LocalCluster, client: AsyncClient) -> None:
    """Kill -9 of all three nodes in the middle of deliveries, restart: everything acknowledged is
    there, once, and deliveries that waited go on under their request ids.
    """
    for account in ACCOUNTS:
        await client.create_account(account)
    writer = Writer(client)
    async with asyncio.TaskGroup() as group:
        for number in range(32):
            group.create_task(writer.run(number))
        await writer.reach(1_000)
        cluster.kill_all_nodes()
        before = len(writer.acknowledged)
        assert len(cluster.ended()) == 3
        assert writer.under_way == 32, "nothing was cut off"
        for node in cluster.nodes:
            cluster.start(node)
        await cluster.wait_ready()
        await writer.reach(before + 500)
        writer.stop()
    await check_all(client, writer)


@pytest.mark.slow
async def test_kill_a_leader(cluster: LocalCluster, client: AsyncClient) -> None:
    """Kill -9 of one leader: deliveries go on without it, and it comes back with everything."""
    for account in ACCOUNTS:
        await client.create_account(account)
    writer = Writer(client)
    async with asyncio.TaskGroup() as group:
        for number in range(16):
            group.create_task(writer.run(number))
        await writer.reach(200)
        victim = await cluster.leader_of(1)
        assert victim is not None
        cluster.kill(victim)
        before, killed_s = len(writer.acknowledged), time.monotonic()
        await writer.reach(before + 200)
        assert time.monotonic() - killed_s < 20
        cluster.start(victim)
        await writer.reach(before + 400)
        writer.stop()
    await cluster.wait_ready()
    assert await cluster.leader_of(1) is not None
    await check_all(client, writer)


@pytest.mark.slow
def test_up_as_a_user_runs_it(tmp_path: Path) -> None:
    """`mailraft up`, the commands it suggests, then Ctrl-C: exit 0 and nothing left running."""
    up = subprocess.Popen(
        [sys.executable, "-m", "mailraft.cluster.cli", "up", "--port", "0", "-o", "json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert len(_ready(up)["nodes"]) == 3
        status = mailraft("cluster", "status", folder=tmp_path)
        first, _, _ = status.stdout.partition(b"\n")
        counts = rb"nodes=3/3 shards=8 under_replicated=0 no_leader=0"
        assert re.fullmatch(rb"OK epoch=\d+ " + counts, first), first
        assert status.returncode == ExitCode.OK
        assert mailraft("account", "create", "alice", folder=tmp_path).returncode == ExitCode.OK
        raw = b"From: b@example.org\r\nSubject: =?utf-8?q?h=C3=A9?= \x1b[31m\r\n\r\nbody\x00\xff\n"
        delivered = mailraft(
            "mail", "deliver", "--to", "alice", "-o", "json", folder=tmp_path, stdin=raw
        )
        (outcome,) = json.loads(delivered.stdout)
        assert outcome["uid"] == 1
        listed = mailraft("mail", "list", "alice", folder=tmp_path).stdout
        assert b"\x1b" not in listed
        assert "hé".encode() in listed
        fetched = mailraft("mail", "fetch", "alice", outcome["message_id"], folder=tmp_path)
        assert fetched.stdout == raw
        missing = mailraft("mail", "list", "bob", folder=tmp_path)
        assert missing.returncode == ExitCode.NOT_FOUND
        assert b"(ACCOUNT_NOT_FOUND)" in missing.stderr
        assert missing.stderr.count(b"\n") == 1
        second = mailraft("up", "--port", "0", folder=tmp_path)
        assert second.returncode == ExitCode.FAILED
        assert b"(FOLDER_IN_USE)" in second.stderr
        run = runfile.read(tmp_path / ".mailraft")
        assert run is not None
    finally:
        up.send_signal(signal.SIGINT)
        _, errors = up.communicate(timeout=30)
    assert up.returncode == ExitCode.OK, errors
    assert runfile.read(tmp_path / ".mailraft") is None
    for process in (run.router, *run.nodes):
        assert _gone(process.pid)


def _ready(up: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What `mailraft up -o json` tells once it is ready."""
    assert up.stdout is not None
    lines = []
    for line in up.stdout:
        lines.append(line)
        if line == b"}\n":
            told: dict[str, Any] = json.loads(b"".join(lines))
            return told
    pytest.fail("`mailraft up` ended before it was ready")


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
def test_children_end_with_their_parent(tmp_path: Path) -> None:
    """Kill -9 of `mailraft up` itself leaves nothing running, and its folder can be used again."""
    command = [sys.executable, "-m", "mailraft.cluster.cli", "up", "--port", "0"]
    command += ["--nodes", "1", "--shards", "1", "-o", "json"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as up:
        _ready(up)
        run = runfile.read(tmp_path / ".mailraft")
        assert run is not None
        up.kill()
    until_s = time.monotonic() + 20
    pids = {run.router.pid, *(node.pid for node in run.nodes)}
    while pids and time.monotonic() < until_s:
        pids = {pid for pid in pids if not _gone(pid)}
        time.sleep(0.05)
    assert not pids
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as again:
        _ready(again)
        again.send_signal(signal.SIGTERM)
    assert again.returncode == ExitCode.OK

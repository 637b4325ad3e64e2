"""mailraft check on real processes with TLS, through the router, while mail comes in."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from typing import Any

import pytest

from mailraft.client import AsyncClient
from mailraft.cluster.local import LocalCluster

ACCOUNTS = [f"user-{number}" for number in range(8)]


async def check(cluster: LocalCluster, what: str) -> tuple[int | None, Any]:
    """Exit status, and what is told as JSON."""
    server = ("--server", cluster.router_address, "--certs", str(cluster.certs_folder))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mailraft.cluster.cli", "check", what, *server, "-o", "json"),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60.0)
    return process.returncode, json.loads(output)


@pytest.mark.timeout(180)
async def test_checks_hold_under_writes(cluster: LocalCluster, client: AsyncClient) -> None:
    """All shards match, nothing is missing and nothing too much; a node that is gone is named."""
    for account in ACCOUNTS:
        await client.create_account(account)

    async def on_and_on(account: str) -> None:
        while True:
            await client.deliver(b"Subject: hello\r\n\r\n" + bytes(3_000), to=[account])

    writers = [asyncio.create_task(on_and_on(account)) for account in ACCOUNTS]
    try:
        status, told = await check(cluster, "hash")
        assert (status, told["status"]) == (0, "OK")
        assert [shard["shard"] for shard in told["shards"]] == [
            0,  # the group that keeps the map
            *(shard.id for shard in cluster.map.shards),
        ]
        assert all(len(shard["matching"]) == 3 for shard in told["shards"])
        status, told = await check(cluster, "blobs")
        assert (status, told["status"]) == (0, "OK")
        assert len(told["replicas"]) == 3 * len(cluster.map.shards)
        assert told["totals"]["referenced"] > 0
    finally:
        for writer in writers:
            writer.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*writers)
    cluster.kill(3)
    status, told = await check(cluster, "hash")
    assert (status, told["status"]) == (3, "INCOMPLETE")
    name = next(node.name for node in cluster.map.nodes if node.id == 3)
    assert all(list(shard["missing"]) == [name] for shard in told["shards"])

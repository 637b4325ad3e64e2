"""Row 14: malformed, oversized, unauthenticated calls and peer messages at every port of real
processes. `make hostile` sends 100,000; HOSTILE says how many else.
"""

from __future__ import annotations

import asyncio
import os
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.faults.rows import note

import fuzzing
import hostile_ports
from hostile_storm import DELIVER, Storm, Targets
from mailraft.cluster import certs
from mailraft.cluster.addresses import split_address
from mailraft.cluster.checks import Checks
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.wire import limits
from mailraft.wire.access import Role
from mailraft.wire.credentials import Credentials, open_channel

pytestmark = [pytest.mark.timeout(0), pytest.mark.slow]

CALLS_DEFAULT = 5_000
ACCOUNTS = tuple(f"hostile-{number}" for number in range(4))
# A storm of a fifth comes first: caches, channels and what mail it leaves have been paid for then.
WARM_SHARE = 5
# What the rest may add to a process. Its stores take up to 64 MiB of memtables and cache blocks.
GROWTH_MAX_MIB = 192.0


def resident_mib(pid: int) -> float:
    """Memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"{pid} is gone")


def metrics_ports(folder: Path) -> list[str]:
    """Of every process."""
    files = [*folder.glob("n*/node.toml"), folder / "router" / "router.toml"]
    return [str(tomllib.loads(file.read_text("utf-8"))["metrics_address"]) for file in files]


def targets(cluster: LocalCluster) -> Targets:
    """Every port of a cluster."""
    nodes = {node.name: node.address for node in cluster.map.nodes}
    assert cluster.certs_folder is not None
    return Targets(
        grpc={**nodes, "router": cluster.router_address},
        http=metrics_ports(cluster.folder),
        certs=cluster.certs_folder,
        cluster_id=cluster.map.cluster_id,
        accounts=ACCOUNTS,
    )


async def test_hostile_input_at_every_port(cluster: LocalCluster) -> None:
    """No process ends, grows or logs a bug; everybody is answered clearly; and afterwards mail is
    served and replicas are equal.
    """
    calls = int(os.environ.get("MAILRAFT_HOSTILE_CALLS", str(CALLS_DEFAULT)))
    pids = {child.name: child.pid for child in cluster.children()}
    async with cluster.client() as client:
        for account_id in ACCOUNTS:
            await client.create_account(account_id)
    async with Storm(targets(cluster), seed=fuzzing.seed()) as storm:
        await storm.run(calls // WARM_SHARE)
        before = {name: resident_mib(pid) for name, pid in pids.items()}
        tally = await storm.run(calls - calls // WARM_SHARE)
    after = {name: resident_mib(pid) for name, pid in pids.items()}
    print(f"\n{tally}\nseed {fuzzing.seed()}")
    for name in pids:
        print(f"{name}: {before[name]:.0f} MiB before, {after[name]:.0f} MiB after")
    assert {child.name: child.pid for child in cluster.children()} == pids
    for child in cluster.children():
        child.check_running()
        log = child.log_path.read_text("utf-8", "replace")
        assert "incident" not in log, child.name
        assert "Traceback" not in log, child.name
    assert tally.unclear == [], f"{len(tally.unclear)}, the first: {tally.unclear[:5]}"
    assert {name for name in pids if after[name] - before[name] > GROWTH_MAX_MIB} == set()
    await calm(cluster)
    grown = max(after[name] - before[name] for name in pids)
    note("14 hostile input", f"{tally.sent.total():,} calls, memory +{grown:.0f} MiB at most")


async def test_memory_under_what_is_never_finished(tmp_path: Path) -> None:
    """Connections that say nothing, thousands of calls with half a request, and as many large
    requests at once as one caller can send: no process grows by more than it may, and others are
    served meanwhile.
    """
    async with LocalCluster(tmp_path / "one", LocalOptions(nodes=1, shards=2)) as cluster:
        await cluster.wait_ready()
        pids = {child.name: child.pid for child in cluster.children()}
        certs.issue(cluster.folder / "certs", "greedy", Role.SERVICE)
        ports = [cluster.router_address, cluster.map.nodes[0].address]
        async with cluster.client() as client:
            await client.create_account("calm")
            for what in (silent, halves, large):
                before = {name: resident_mib(pid) for name, pid in pids.items()}
                told = await asyncio.gather(*(what(cluster, address) for address in ports))
                grown = {name: resident_mib(pid) - before[name] for name, pid in pids.items()}
                said = ", ".join(f"{name} +{mib:.0f} MiB" for name, mib in grown.items())
                print(f"{what.__name__}: {told} {said}")
                assert max(grown.values()) < GROWTH_MAX_MIB
                await client.get_account("calm")
        for child in cluster.children():
            child.check_running()


async def silent(_: LocalCluster, address: str) -> str:
    """Connections without a word."""
    host, port = split_address(address)
    held = [await asyncio.open_connection(host, port) for _ in range(500)]
    await asyncio.sleep(1.0)
    for _reader, writer in held:
        writer.transport.abort()
    return f"{len(held)} connections"


async def halves(cluster: LocalCluster, address: str) -> str:
    """Calls with the beginning of a message of 4 MiB."""
    assert cluster.certs_folder is not None
    session = hostile_ports.tls(cluster.certs_folder, "greedy")
    said = hostile_ports.half_sent(DELIVER, 500, limits.RPC_MAX_BYTES, 100)
    host, port = split_address(address)
    held = []
    for _ in range(10):
        _, writer = await asyncio.open_connection(
            host, port, ssl=session, server_hostname="mailraft"
        )
        writer.write(said)
        held.append(writer)
    await asyncio.sleep(2.0)
    for writer in held:
        writer.transport.abort()
    return f"{500 * len(held)} calls"


async def large(cluster: LocalCluster, address: str) -> str:
    """Messages of nearly 4 MiB, that are no good, all at once."""
    assert cluster.certs_folder is not None
    shown = Credentials(cluster.certs_folder, "greedy")
    request = b"\xff" * (limits.RPC_MAX_BYTES - 1)
    async with open_channel(address, shown) as channel:
        untyped: Any = channel
        calls = [untyped.unary_unary(DELIVER)(request, timeout=30.0) for _ in range(200)]
        failed = await asyncio.gather(*calls, return_exceptions=True)
    codes = Counter(each.code().name for each in failed if isinstance(each, grpc.aio.AioRpcError))
    assert codes.total() == len(calls)
    return f"{len(calls)} calls {dict(codes)}"


async def calm(cluster: LocalCluster) -> None:
    """Mail is served, and every shard has the same state at each of its replicas."""
    raw = b"Subject: after the storm\r\n\r\n"
    async with cluster.client() as client:
        await client.create_account("calm")
        receipt = await client.deliver(raw, to=["calm"])
        assert await client.fetch_body("calm", receipt.recipients[0].message_id) == raw
    async with Checks(cluster.map, cluster.credentials("admin")) as checks:
        found = await checks.compare()
    print(*found, sep="\n")
    assert all(len(each.matching) == each.replicas for each in found)

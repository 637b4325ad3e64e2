"""Rows that slices of a work do not show: bytes to the device, router, TLS, failover, restart.

Each answers samples by row and peer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from bench import failover
from bench.compare import machine, mails, work
from bench.compare.daemon import make_folder
from bench.compare.etcd import EtcdServer
from bench.compare.interface import MAILBOXES, Server, Work
from bench.compare.mailraft_peer import SHARDS, MailraftServer, account_of
from bench.compare.results import Found, Scale
from bench.compare.rows import OURS
from bench.compare.worker import Worker

from mailraft.client import AsyncClient, Consistency, MailraftError
from mailraft.cluster.addresses import split_address
from mailraft.cluster.levels import LogLevel
from mailraft.cluster.local import LocalCluster, LocalOptions

DEADLINE_S = 60.0
REST_S = 2.0
READY_POLL_S = 0.02
# Of the store that is restarted: bytes of mail first, then small messages up to the number.
APPENDERS = 12
MAILS_PER_APPEND = 100
FILL_S_MAX = 420.0
SMALL_BYTES = 200
SMALL_PER_APPEND = 250
STORED = ("*.sst", "*.blob")


@asynccontextmanager
async def running(server: Server, folder: Path) -> AsyncIterator[Worker]:
    """A server beside or instead of those of the slices, and its client; nothing large is there."""
    worker = Worker(server.name)
    try:
        await server.start(make_folder(folder))
        await worker.start(server.address, 0)
        yield worker
    finally:
        await worker.stop()
        await server.stop()


async def device(server: Server, worker: Worker, folder: Path, scale: Scale) -> list[float]:
    """Bytes written by a byte of mail: bulk deliveries, then wait until nothing is written."""
    found: list[float] = []
    for _ in range(scale.device_rounds):
        before = await _at_rest(server, folder)
        units = await worker.run_units("bulk", scale.device_mails)
        after = await _at_rest(server, folder)
        if before is not None and after is not None:
            found.append((after - before) / (units * mails.mean_bytes()))
    return found


async def _at_rest(server: Server, folder: Path) -> int | None:
    """Bytes that the device has written once nothing is put off any more."""
    await server.settle()
    if not await machine.settled(folder):
        print("  the device does not come to rest: others write to it, and are counted, too")
    return machine.written_bytes(folder)


async def router(server: MailraftServer, scale: Scale) -> Found:
    """Deliveries one at a time, direct and through the router by turns, call by call."""
    target, mail = server.cluster.router_address, mails.load()
    direct_ms: list[float] = []
    routed_ms: list[float] = []
    async with (
        AsyncClient(target, insecure=True) as direct,
        AsyncClient(target, insecure=True, direct=False) as routed,
    ):
        for number in range(scale.calls):
            for client, took_ms in ((direct, direct_ms), (routed, routed_ms)):
                raw, account = mail[number % len(mail)], account_of(number % MAILBOXES)
                began_s = time.perf_counter()
                await client.deliver(raw, to=[account])
                took_ms.append(1000 * (time.perf_counter() - began_s))
    p50_ms = [failover.percentile(sorted(each), 0.5) for each in (direct_ms, routed_ms)]
    return {"router": {OURS: [p50_ms[1] - p50_ms[0]], "direct": [p50_ms[0]]}}


async def tls(plain: Worker, folder: Path, scale: Scale) -> Found:
    """A cluster with TLS beside the one without, by turns."""
    server = MailraftServer("mailraft-tls", tls=True)
    found: Found = {"tls128": {OURS: [], "plain": []}, "tls1": {OURS: [], "plain": []}}
    async with running(server, folder / server.name) as worker:
        for _ in range(scale.rounds):
            for name, each in ((OURS, worker), ("plain", plain)):
                done = await each.run("deliver128", scale.slice_s)
                found["tls128"][name].append(done.units / done.took_s)
                done = await each.run("single", scale.slice_s)
                found["tls1"][name].append(done.p50_ms)
    return found


async def failovers(ours: MailraftServer, etcd: EtcdServer | None, scale: Scale) -> Found:
    """A leader of each by turns; seconds until the next write is acknowledged."""
    found: dict[str, list[float]] = {OURS: []}
    cluster = ours.cluster
    async with cluster.client(deadline_s=failover.DEADLINE_S) as client:
        account = await failover.account_of(client)
        for _ in range(scale.failovers):
            took_s, _terms = await failover.one_try(cluster, client, account)
            found[OURS].append(took_s)
            if etcd is not None:
                found.setdefault("etcd", []).append(await etcd.fail_over())
                await asyncio.sleep(REST_S)
    return {"failover": found}


async def stored(folder: Path, scale: Scale) -> Found:
    """A cluster that is filled: what a byte of mail takes, and how long a node's restart takes."""
    options = LocalOptions(shards=SHARDS, insecure=True, log_level=LogLevel.WARNING)
    found: Found = {"size": {OURS: []}, "restart": {OURS: []}}
    async with LocalCluster(folder, options) as cluster:
        await cluster.wait_ready()
        async with cluster.client(deadline_s=DEADLINE_S) as client:
            for mailbox in range(MAILBOXES):
                await client.create_account(account_of(mailbox))
            filling = _Filling(client)
            mail_bytes, count = await filling.mail(scale.stored_bytes)
            # What was in memory only, and in its log, is in tables once a node was started again.
            node = cluster.nodes[0]
            await _restart(cluster, client, node)
            await machine.settled(folder)
            found["size"][OURS].append(_stored_bytes(cluster.data_folder(node)) / mail_bytes)
            await filling.small(scale.stored_messages - count)
            await machine.settled(folder)
            for number in range(scale.restarts):
                node = cluster.nodes[number % len(cluster.nodes)]
                found["restart"][OURS].append(await _restart(cluster, client, node))
    return found


def _stored_bytes(data: Path) -> int:
    found = sum(path.stat().st_size for each in STORED for path in data.rglob(each))
    assert found > 0, "nothing is in tables"
    return found


class _Filling:
    """Messages in large appends: what is stored is the same as by deliveries."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._mails = mails.Mails(mails.load(), MAILBOXES)
        self._appends = 0

    async def mail(self, least_bytes: int) -> tuple[int, int]:
        """At least so many bytes of mail; answers bytes and messages."""
        done_bytes = count = 0

        async def call(_: int) -> int:
            nonlocal done_bytes, count
            batch = [self._mails.next()[2] for _ in range(MAILS_PER_APPEND)]
            await self._append(batch)
            done_bytes += sum(map(len, batch))
            count += len(batch)
            return sum(map(len, batch))

        await self._all(call, least_bytes)
        return done_bytes, count

    async def small(self, least: int) -> None:
        """At least so many small messages."""
        number = 0

        async def call(_: int) -> int:
            nonlocal number
            batch = []
            for _ in range(SMALL_PER_APPEND):
                number += 1
                raw = b"Message-ID: <%d@example.org>\r\nSubject: %d\r\n\r\n" % (number, number)
                batch.append(raw + b"x" * (SMALL_BYTES - len(raw)))
            await self._append(batch)
            return len(batch)

        await self._all(call, least)

    async def _all(self, call: Callable[[int], Awaitable[int]], units: int) -> None:
        """Raises TimeoutError when it takes too long."""
        async with asyncio.timeout(FILL_S_MAX):
            await work.run_units(Work(APPENDERS, call), units, (MailraftError,))

    async def _append(self, batch: Sequence[bytes]) -> None:
        self._appends += 1
        await self._client.append(account_of(self._appends % MAILBOXES), batch)


async def _restart(cluster: LocalCluster, client: AsyncClient, node: int) -> float:
    """Seconds from the start of a node's process until it is ready and each of its replicas has
    served a linearizable read.
    """
    accounts: dict[int, str] = {}
    for mailbox in range(MAILBOXES):
        place = await client.locate(account_of(mailbox))
        accounts[place.shard.id] = account_of(mailbox)
    replicas = {
        shard.id: replica.replica_id
        for shard in cluster.map.shards
        for replica in shard.replicas
        if replica.node_id == node
    }
    cluster.terminate(node)
    await cluster.stopped(node)
    began_s = time.monotonic()
    cluster.start(node)
    await _wait_ready(cluster.metrics_address(f"n{node}"))
    # A new client: one that was connected before waits longer and longer until it tries again.
    async with cluster.client(deadline_s=DEADLINE_S) as new:
        reads = [_served(new, accounts[shard], replica) for shard, replica in replicas.items()]
        await asyncio.gather(*reads)
    took_s = time.monotonic() - began_s
    await cluster.wait_ready()
    await asyncio.sleep(REST_S)
    return took_s


async def _served(client: AsyncClient, account: str, replica: int) -> None:
    """Until the replica itself has served a linearizable read."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await client.list_messages(
                    account,
                    page_size=1,
                    replica=replica,
                    consistency=Consistency.LINEARIZABLE,
                )
            except MailraftError:
                await asyncio.sleep(READY_POLL_S)
            else:
                return


async def _wait_ready(address: str) -> None:
    """Until /readyz says so."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            if await _ready(address):
                return
            await asyncio.sleep(READY_POLL_S)


async def _ready(address: str) -> bool:
    host, port = split_address(address)
    try:
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(b"GET /readyz HTTP/1.1\r\n\r\n")
            return (await reader.readline()).split()[1:2] == [b"200"]
        finally:
            writer.close()
    except OSError:
        return False

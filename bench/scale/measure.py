"""Throughput, latency and CPU of real clusters, one thing varied at a time.

Every setting is BASE with one of its numbers changed. Nodes, a router that is not used and the
caller share one machine. What costs CPU is counted for each process, so that the figures say
something about nodes that have a machine each; the rest is to compare with each other.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import psutil  # type: ignore[import-untyped]
from bench.failover import percentile

from mailraft.client import AsyncClient, MailraftError
from mailraft.client.options import MessageOrder, MessageView
from mailraft.cluster.local import LocalCluster, LocalOptions

KIB, MIB = 1024, 1024 * 1024
REPLICAS_MAX = 3
ACCOUNTS = 256
SLICES, SLICE_S = 3, 1.5
SETTLE_S, IDLE_S = 5.0, 5.0
DEADLINE_S = 60.0
READY_DEADLINE_S = 120.0
BODIES = 16
PAGE = 50
FILLED_AT_ONCE = 16
# Mails that fetches choose among; of large ones fewer, so that all stay on disk for a while.
FETCHED_MAX, FETCHED_BYTES_MAX = 2_000, 256 * MIB


@dataclass(frozen=True, slots=True)
class Setting:
    """concurrency: calls in flight of one client. size_bytes: of each mail."""

    nodes: int = 3
    shards: int = 8
    size_bytes: int = 4 * KIB
    concurrency: int = 128

    @property
    def replicas(self) -> int:
        return min(self.nodes, REPLICAS_MAX)

    @property
    def cluster(self) -> tuple[int, int]:
        """What needs a cluster of its own."""
        return self.nodes, self.shards


BASE = Setting()
NODES = (1, 3, 5)
SHARDS = (1, 4, 8, 16, 64, 256)
SIZES = (1 * KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 1 * MIB, 10 * MIB)
# Nodes and shards of clusters that are only looked at idle: more nodes than two cores can load.
IDLE_ONLY = ((10, 8),)
CONCURRENCIES = (1, 4, 16, 64, 128, 256, 1_024)
# Large mails by so many callers only: what is in flight has to fit into memory.
IN_FLIGHT_BYTES_MAX = 32 * MIB


def settings() -> list[Setting]:
    """Each once, those of one cluster together."""
    varied = [
        *(replace(BASE, nodes=nodes) for nodes in NODES),
        *(replace(BASE, shards=shards) for shards in SHARDS),
        *(replace(BASE, size_bytes=size, concurrency=callers(size)) for size in SIZES),
        *(replace(BASE, concurrency=concurrency) for concurrency in CONCURRENCIES),
    ]
    return sorted(dict.fromkeys(varied), key=lambda each: each.cluster)


def callers(size_bytes: int) -> int:
    """How many deliver mails of this size at the same time."""
    return max(1, min(BASE.concurrency, IN_FLIGHT_BYTES_MAX // size_bytes))


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one kind of call. CPU in milliseconds a call: of all nodes together, and of the client."""

    per_s: float
    p50_ms: float
    p99_ms: float
    nodes_ms: float
    client_ms: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What was measured of one setting."""

    setting: Setting
    deliver: Cost
    fetch: Cost
    page: Cost


@dataclass(frozen=True, slots=True)
class ClusterSeen:
    """Of a cluster: percent of a core and MiB resident of a node that does nothing; and bytes on
    the disk of a replica a byte of mail, with the log that is not compacted yet (None: no mail).
    """

    nodes: int
    shards: int
    cpu_percent: float
    memory_mib: float
    disk_ratio: float | None

    @property
    def shape(self) -> tuple[int, int]:
        """As `Setting.cluster`."""
        return self.nodes, self.shards


@dataclass(slots=True)
class _Slices:
    rates: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    calls: int = 0
    nodes_s: float = 0.0
    client_s: float = 0.0

    def cost(self) -> Cost:
        ordered = sorted(self.took_s)
        return Cost(
            per_s=median(self.rates),
            p50_ms=percentile(ordered, 0.5) * 1000,
            p99_ms=percentile(ordered, 0.99) * 1000,
            nodes_ms=self.nodes_s * 1000 / self.calls,
            client_ms=self.client_s * 1000 / self.calls,
        )


class Rig:
    """A cluster with accounts, and a client."""

    def __init__(self, cluster: LocalCluster, mail: AsyncClient) -> None:
        self._mail = mail
        self._nodes = [psutil.Process(cluster.pid_of(node)) for node in cluster.nodes]
        self._client = psutil.Process()
        self._folders = [cluster.data_folder(node) for node in cluster.nodes]
        self._disk_before = self._stored_bytes = 0
        self._chance = random.Random(1)
        self._accounts = [f"account-{number}" for number in range(ACCOUNTS)]

    async def open(self) -> None:
        """Each account has a page full of mail: pages cost the same from the first one on."""
        page = [b"Subject: first %d\r\n\r\n" % number for number in range(PAGE)]

        async def fill(account: str) -> None:
            await self._mail.create_account(account)
            await self._mail.append(account, page)

        for first in range(0, ACCOUNTS, FILLED_AT_ONCE):
            await asyncio.gather(*map(fill, self._accounts[first : first + FILLED_AT_ONCE]))
        self._disk_before = self._disk_bytes()

    async def idle(self) -> tuple[float, float]:
        """Percent of a core and MiB of a node, when nothing runs but what keeps it together."""
        await asyncio.sleep(SETTLE_S)
        before_s = sum(map(_cpu_s, self._nodes))
        await asyncio.sleep(IDLE_S)
        used_s = (sum(map(_cpu_s, self._nodes)) - before_s) / len(self._nodes)
        memory = sum(process.memory_info().rss for process in self._nodes) / len(self._nodes)
        return 100 * used_s / IDLE_S, memory / MIB

    @property
    def disk_ratio(self) -> float:
        """Of everything that was measured."""
        return (self._disk_bytes() - self._disk_before) / self._stored_bytes

    async def measure(self, setting: Setting) -> Seen:
        """Deliveries, fetches and pages by turns; the first turn warms up."""
        bodies = [self._body(setting.size_bytes) for _ in range(BODIES)]
        there: list[tuple[str, str]] = []
        kept = min(FETCHED_MAX, max(BODIES, FETCHED_BYTES_MAX // setting.size_bytes))
        numbers = itertools.count()

        async def deliver() -> None:
            number = next(numbers)
            account = self._accounts[number % ACCOUNTS]
            raw = b"Subject: %d\r\n\r\n" % number + bodies[number % BODIES]
            receipt = await self._mail.deliver(raw, to=[account])
            message = account, receipt.recipients[0].message_id
            if len(there) < kept:
                there.append(message)
            else:
                there[number % kept] = message

        async def fetch() -> None:
            await self._mail.fetch_body(*self._chance.choice(there))

        async def page() -> None:
            await self._mail.list_messages(
                self._chance.choice(self._accounts),
                page_size=PAGE,
                order=MessageOrder.UID_DESC,
                view=MessageView.ENVELOPE,
            )

        found = [(call, _Slices()) for call in (deliver, fetch, page)]
        for turn in range(1 + SLICES):
            for call, slices in found:
                await self._slice(call, setting.concurrency, slices if turn else _Slices())
        self._stored_bytes += next(numbers) * setting.size_bytes * setting.replicas
        return Seen(setting, *(slices.cost() for _, slices in found))

    async def _slice(
        self, call: Callable[[], Awaitable[None]], concurrency: int, into: _Slices
    ) -> None:
        nodes_s, client_s = sum(map(_cpu_s, self._nodes)), _cpu_s(self._client)
        began_s = time.perf_counter()
        end_s, done = began_s + SLICE_S, len(into.took_s)

        async def caller() -> None:
            now_s = time.perf_counter()
            while now_s < end_s:
                try:
                    await call()
                except MailraftError as error:
                    if not error.retryable:
                        raise
                    # As services do; the time counts, in the next call's latency too.
                    await asyncio.sleep((error.retry_after_ms or 0) / 1000)
                    continue
                before_s, now_s = now_s, time.perf_counter()
                into.took_s.append(now_s - before_s)

        await asyncio.gather(*(caller() for _ in range(concurrency)))
        # All calls that began in time count, and the time until the last is answered.
        calls = len(into.took_s) - done
        into.calls += calls
        into.rates.append(calls / (time.perf_counter() - began_s))
        into.nodes_s += sum(map(_cpu_s, self._nodes)) - nodes_s
        into.client_s += _cpu_s(self._client) - client_s

    def _body(self, size_bytes: int) -> bytes:
        """Text of which about half is incompressible, so that it compresses as mail does."""
        return self._chance.randbytes(size_bytes // 2).hex().encode()

    def _disk_bytes(self) -> int:
        return sum(map(_folder_bytes, self._folders))


@asynccontextmanager
async def rig(setting: Setting, folder: Path) -> AsyncIterator[Rig]:
    """A cluster for the settings that are like this one in nodes and shards."""
    options = LocalOptions(nodes=setting.nodes, shards=setting.shards)
    async with LocalCluster(folder, options) as cluster:
        await cluster.wait_ready(READY_DEADLINE_S)
        async with cluster.client(deadline_s=DEADLINE_S) as mail:
            found = Rig(cluster, mail)
            await found.open()
            yield found


def by_cluster(wanted: Iterable[Setting]) -> Iterator[list[Setting]]:
    """Settings that share a cluster."""
    for _, group in itertools.groupby(wanted, key=lambda each: each.cluster):
        yield list(group)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _folder_bytes(folder: Path) -> int:
    found = 0
    for path in folder.rglob("*"):
        try:
            found += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue  # compacted away meanwhile
    return found

"""What each consistency level costs, and what it survives: measured on real processes.

Three nodes, a router and the callers share one machine; the callers talk to the nodes directly.
Levels take turns call by call, or slice by slice, so that a slow moment meets all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any, TypeVar

from tests.faults.network import ProxiedCluster, both_ways

from mailraft.client import Ack, AsyncClient, Consistency, MailraftError
from mailraft.cluster.local import LocalCluster
from mailraft.cluster.operator import Operator
from mailraft.v1 import admin_pb2

SHARD = 1
ACCOUNTS = tuple(f"account-{number}" for number in range(8))
MAIL = b"Subject: hello\r\n\r\n" + b"Hello world.\r\n" * 70  # 1 KB
PAGE = 10
DEADLINE_S = 5.0
BACKGROUND_WRITES_A_SECOND = 20

ROUNDS = 300
SLICES, SLICE_S, CALLERS = 3, 2.0, 16
ASK_EVERY_S = 0.1
ASK_DEADLINE_S = 1.0
BEFORE_S, FAULT_S = 1.0, 6.0
TIMES = 3


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """A level of the menu, as arguments of calls."""

    name: str
    args: Mapping[str, Any]

    @property
    def writes(self) -> bool:
        return "ack" in self.args

    async def call(self, mail: AsyncClient, account: str, deadline_s: float = DEADLINE_S) -> None:
        """One delivery, or one page of a mailbox."""
        args: Any = {**self.args, "deadline_s": deadline_s}
        if self.writes:
            await mail.deliver(MAIL, to=[account], **args)
        else:
            await mail.list_messages(account, page_size=PAGE, **args)


WRITES = (
    Level("ACCEPTED", {"ack": Ack.ACCEPTED}),
    Level("QUORUM", {"ack": Ack.QUORUM}),
    Level("REPLICAS(3)", {"ack": Ack.REPLICAS, "replicas": 3}),
    Level("EACH_ZONE", {"ack": Ack.EACH_ZONE}),
    Level("ALL", {"ack": Ack.ALL}),
)
READS = (
    Level("LINEARIZABLE", {"consistency": Consistency.LINEARIZABLE}),
    Level("QUORUM(2)", {"consistency": Consistency.QUORUM, "replicas": 2}),
    Level("SESSION", {"consistency": Consistency.SESSION}),
    Level("BOUNDED(500 ms)", {"consistency": Consistency.BOUNDED, "max_staleness_ms": 500}),
    Level("LOCAL", {"consistency": Consistency.LOCAL}),
)
LEVELS = (*WRITES, *READS)


@dataclass(slots=True)
class Cost:
    """Of one level: how long one caller waits, how much many callers get done."""

    took_s: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)  # of each slice


@dataclass(slots=True)
class Availability:
    """Of one level under one fault: calls that began in its time, and the longest time without an
    answer at the level.
    """

    asked: int = 0
    answered: int = 0
    silence_s: float = 0.0

    @property
    def share(self) -> float:
        return self.answered / self.asked if self.asked else 0.0


AnyCluster = TypeVar("AnyCluster", bound=LocalCluster)
Costs = Mapping[Level, Cost]
Availabilities = Mapping[Level, Availability]


@asynccontextmanager
async def callers(cluster: LocalCluster) -> AsyncIterator[AsyncClient]:
    """A client with the accounts; ACCEPTED is allowed."""
    async with Operator(cluster.router_address, cluster.credentials()) as operator:
        wanted = admin_pb2.Settings(allow_accepted=True)
        await operator.change_settings(wanted, ["allow_accepted"])
    async with cluster.client(deadline_s=DEADLINE_S) as mail:
        for account in ACCOUNTS:
            await mail.create_account(account)
            for _ in range(PAGE):
                await mail.deliver(MAIL, to=[account])
        yield mail


# ---- cost ----------------------------------------------------------------------------------------


async def costs(mail: AsyncClient, chance: Random) -> Costs:
    """Of all levels; reads go beside a few writes of the same client, so that there is news."""
    found = {level: Cost() for level in LEVELS}
    for levels in (WRITES, READS):
        async with _background(mail, 0 if levels is WRITES else BACKGROUND_WRITES_A_SECOND):
            await _latencies(mail, levels, found, chance)
            for _ in range(SLICES):
                for level in chance.sample(levels, len(levels)):
                    found[level].per_s.append(await _slice(mail, level))
    return found


async def _latencies(
    mail: AsyncClient, levels: Sequence[Level], found: Costs, chance: Random
) -> None:
    for _ in range(ROUNDS):
        for level in chance.sample(levels, len(levels)):
            began_s = time.perf_counter()
            await level.call(mail, chance.choice(ACCOUNTS))
            found[level].took_s.append(time.perf_counter() - began_s)


async def _slice(mail: AsyncClient, level: Level) -> float:
    """Calls a second of many callers, each one after the other."""
    end_s, done = time.perf_counter() + SLICE_S, 0

    async def caller(number: int) -> None:
        nonlocal done
        while time.perf_counter() < end_s:
            await level.call(mail, ACCOUNTS[number % len(ACCOUNTS)])
            done += time.perf_counter() < end_s

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    return done / SLICE_S


@asynccontextmanager
async def _background(mail: AsyncClient, writes_a_second: int) -> AsyncIterator[None]:
    async def write() -> None:
        while True:
            await mail.deliver(MAIL, to=[ACCOUNTS[0]])
            await asyncio.sleep(1 / writes_a_second)

    writing = asyncio.create_task(write()) if writes_a_second else None
    try:
        yield
    finally:
        if writing is not None:
            writing.cancel()
            await asyncio.wait([writing])


# ---- availability --------------------------------------------------------------------------------


@asynccontextmanager
async def leader_killed(cluster: LocalCluster) -> AsyncIterator[None]:
    """Kill -9, and started again at the end."""
    leader, _ = await _leader_and_others(cluster)
    cluster.kill(leader)
    yield
    cluster.start(leader)


@asynccontextmanager
async def follower_killed(cluster: LocalCluster) -> AsyncIterator[None]:
    """The same of one that does not lead."""
    _, others = await _leader_and_others(cluster)
    cluster.kill(others[0])
    yield
    cluster.start(others[0])


@asynccontextmanager
async def leader_cut_off(cluster: ProxiedCluster) -> AsyncIterator[None]:
    """A partition: the leader hears no node and none hears it. Callers reach all of them."""
    leader, others = await _leader_and_others(cluster)
    await cluster.network.cut(both_ways([leader], others))
    yield
    await cluster.network.heal()


Fault = Callable[[AnyCluster], AbstractAsyncContextManager[None]]
KILLS: Mapping[str, Fault[LocalCluster]] = {
    "leader killed": leader_killed,
    "follower killed": follower_killed,
}
# Apart from the kills: a network that can be cut costs time of this process.
PARTITIONS: Mapping[str, Fault[ProxiedCluster]] = {"leader cut off": leader_cut_off}
FAULTS = (*KILLS, *PARTITIONS)


async def _leader_and_others(cluster: LocalCluster) -> tuple[int, list[int]]:
    leader = await cluster.leader_of(SHARD)
    assert leader is not None
    return leader, [node for node in cluster.nodes if node != leader]


async def availability(cluster: AnyCluster, fault: Fault[AnyCluster]) -> Availabilities:
    """Each level is asked at its pace, each time for one second, by a client of its own."""
    found = {level: Availability() for level in LEVELS}
    async with AsyncExitStack() as stack:
        clients = {
            level: await stack.enter_async_context(cluster.client(deadline_s=ASK_DEADLINE_S))
            for level in LEVELS
        }
        for level, client in clients.items():  # tidy: a plain dict
            await level.call(client, ACCOUNTS[0])
        for _ in range(TIMES):
            asking = [_Asking(level, clients[level]) for level in LEVELS]
            tasks = [asyncio.create_task(each.run()) for each in asking]
            await asyncio.sleep(BEFORE_S)
            began_s = time.perf_counter()
            async with fault(cluster):
                await asyncio.sleep(FAULT_S)
                ended_s = time.perf_counter()
                for each in asking:
                    each.stop = True
                await asyncio.gather(*tasks)
            for each in asking:
                each.count(found[each.level], began_s, ended_s)
            await cluster.wait_ready()
            await asyncio.sleep(BEFORE_S)
    return found


class _Asking:
    """One level, asked at a fixed pace, whether answers come or not."""

    def __init__(self, level: Level, mail: AsyncClient) -> None:
        self.level, self._mail = level, mail
        self.stop = False
        self._asked: list[tuple[float, float | None]] = []  # when, and when answered

    async def run(self) -> None:
        pending: set[asyncio.Task[None]] = set()
        turn_s = time.perf_counter()
        while not self.stop:
            task = asyncio.create_task(self._ask())
            pending.add(task)
            task.add_done_callback(pending.discard)
            turn_s += ASK_EVERY_S
            await asyncio.sleep(max(0.0, turn_s - time.perf_counter()))
        if pending:
            await asyncio.wait(pending)

    async def _ask(self) -> None:
        began_s, answered_s = time.perf_counter(), None
        try:
            await self.level.call(self._mail, ACCOUNTS[0], ASK_DEADLINE_S)
            answered_s = time.perf_counter()
        except MailraftError:
            pass  # refused, not in time, or not at the level
        self._asked.append((began_s, answered_s))

    def count(self, into: Availability, began_s: float, ended_s: float) -> None:
        """Of what began while the fault was there."""
        inside = [each for each in self._asked if began_s <= each[0] < ended_s]
        answers = sorted(answered for _, answered in self._asked if answered is not None)
        marks = [began_s, *(each for each in answers if began_s < each < ended_s), ended_s]
        into.asked += len(inside)
        into.answered += sum(answered is not None for _, answered in inside)
        silence_s = max(after - before for before, after in pairwise(marks))
        into.silence_s = max(into.silence_s, silence_s)

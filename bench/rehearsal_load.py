"""Clients of the rehearsal (bench/rehearse.py): a steady load, each call recorded, all read back.

Calls are due at fixed times. A client that is kept waiting is late with its next ones, and how late
counts: a latency is from when the call was due, so that an outage is not hidden by who waits in it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from types import TracebackType
from typing import Self

from tests.faults.checker import Broken, Stored, check
from tests.faults.history import History, Kind, Operation, Outcome

from mailraft.client import AsyncClient, Consistency, MailraftError
from mailraft.client.options import MessageOrder
from mailraft.cluster.local import LocalCluster
from mailraft.wire import errors, tokens

ACCOUNTS = 16
WORKERS = 32  # two an account, so that each account sees writes of another
# By client: straight to the leaders, or through the router, whose restart they have to outlive.
DIRECT = (True, True, False)
PERIOD_S = 0.6  # of each worker: 53 calls a second, far below what two cores serve
CALL_DEADLINE_S = 10.0
REACH_DEADLINE_S = 60.0
FINAL_DEADLINE_S = 60.0
FINAL_CONCURRENCY = 16
PAGE, WHOLE_PAGE = 8, 500
BODY_BYTES, LARGE_BODY_BYTES, LARGE_EVERY = 1_024, 16_384, 8
KEYWORD = "$rehearsed"
# A delivered message is known by its received time: delivery n at EPOCH + n milliseconds.
EPOCH = datetime(2001, 1, 1, tzinfo=UTC)
EPOCH_MS = int(EPOCH.timestamp() * 1000)


@dataclass(frozen=True, slots=True)
class Call:
    """error: of a call that failed after all its retries; empty: it was answered well."""

    kind: str
    account: str
    direct: bool
    due_s: float
    end_s: float
    error: str

    @property
    def took_s(self) -> float:
        return self.end_s - self.due_s

    def __str__(self) -> str:
        way = "direct" if self.direct else "through the router"
        due = datetime.now(UTC) - timedelta(seconds=time.monotonic() - self.due_s)
        told = f"{self.kind} of {self.account}, {way}, due {due:%H:%M:%S.%f} UTC"
        return f"{told}, {self.took_s:.2f} s{': ' if self.error else ''}{self.error}"


@dataclass(slots=True)
class Verdict:
    """Everything that was acknowledged, against what is there at the end."""

    messages: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)


class Clients:
    """async with Clients(cluster, seed=1) as clients: what happens to it; then `verdict`."""

    def __init__(self, cluster: LocalCluster, *, seed: int) -> None:
        self.calls: list[Call] = []
        self._history = History()
        self._cluster, self._seed = cluster, seed
        self._accounts = [f"account-{number}" for number in range(ACCOUNTS)]
        self._shard_of: dict[str, int] = {}
        self._bytes: Counter[int] = Counter()  # by shard
        self._clients: list[AsyncClient] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._due_s = [0.0] * WORKERS  # by worker: its call that runs, or comes next
        # By worker: what it delivered. Only it changes the keyword of these messages.
        self._delivered: list[list[Operation]] = [[] for _ in range(WORKERS)]
        # By account and message; None: an answer never came.
        self._flagged: dict[tuple[str, str], bool | None] = {}

    async def __aenter__(self) -> Self:
        self._clients = [
            AsyncClient(
                self._cluster.router_address,
                certs=self._cluster.certs_folder,
                insecure=self._cluster.certs_folder is None,
                deadline_s=CALL_DEADLINE_S,
                direct=direct,
            )
            for direct in DIRECT
        ]
        for account in self._accounts:
            await self._clients[0].create_account(account)
            self._shard_of[account] = (await self._clients[0].locate(account)).shard.id
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for client in self._clients:
            await client.close()

    async def fill(self, messages: int) -> None:
        """Deliver so many a worker, as fast as it goes, for there to be something to move."""

        async def one(worker: int) -> None:
            for _ in range(messages):
                await self._deliver(worker)

        await asyncio.gather(*map(one, range(WORKERS)))

    def start(self) -> None:
        """Begin the steady load."""
        self._tasks = [
            asyncio.create_task(self._work(number), name=f"worker {number}")
            for number in range(WORKERS)
        ]

    def bytes_in(self, shard: int) -> int:
        """Of the mail that was delivered to a shard so far, before compression."""
        return self._bytes[shard]

    async def reached(self, due_s: float) -> None:
        """Wait until every call that was due by then has ended; raise what was not expected."""
        async with asyncio.timeout(REACH_DEADLINE_S):
            while min(self._due_s) <= due_s:
                for task in self._tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """Begin nothing more, wait for what runs."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def verdict(self) -> Verdict:
        """Read all messages, all bodies and all keywords back, linearizably, and compare."""
        found, final = Verdict(), dict[str, list[Stored]]()
        for account in self._accounts:
            final[account] = []
            async for message in self._clients[0].iter_messages(
                account,
                page_size=WHOLE_PAGE,
                consistency=Consistency.LINEARIZABLE,
                deadline_s=FINAL_DEADLINE_S,
            ):
                number = message.internal_time_ms - EPOCH_MS
                place = message.memberships[0].uid, message.created_modseq, message.id
                final[account].append(Stored(number, *place))
                flagged = self._flagged.get((account, message.id), False)
                if flagged is not None and flagged != (KEYWORD in message.keywords):
                    found.wrong.append(f"{message.id} of {account} should say {KEYWORD}: {flagged}")
        found.messages = sum(map(len, final.values()))
        for violation in check(self._history, final):
            found.lost += violation.what is Broken.LOST
            found.doubled += violation.what is Broken.DOUBLED
            found.wrong.append(f"{violation.what.value}: {violation.text}")
        found.wrong += await self._wrong_bodies()
        return found

    async def _wrong_bodies(self) -> list[str]:
        delivered = iter([each for many in self._delivered for each in many])
        wrong: list[str] = []

        async def compare(operations: Iterable[Operation]) -> None:
            for each in operations:  # one iterator, shared
                body = await self._clients[0].fetch_body(
                    each.account,
                    each.message_id,
                    consistency=Consistency.LINEARIZABLE,
                    deadline_s=FINAL_DEADLINE_S,
                )
                if body != raw_of(each.number):
                    wrong.append(f"{each.message_id} of {each.account} has other bytes")

        await asyncio.gather(*(compare(delivered) for _ in range(FINAL_CONCURRENCY)))
        return wrong

    # ---- one worker ------------------------------------------------------------------------------

    async def _work(self, worker: int) -> None:
        """Every second call delivers, so that a writer is never silent by chance."""
        chance = Random(self._seed * 1_000 + worker)
        due_s = time.monotonic() + chance.random() * PERIOD_S
        for turn in itertools.count():
            self._due_s[worker] = due_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            if self._stopping:
                return
            kind = chance.choice(("list", "list", "fetch", "flag")) if turn % 2 else "deliver"
            error = ""
            try:
                await self._call(worker, kind, chance)
            except MailraftError as failed:
                error = repr(failed)
            account, direct = self._accounts[worker % ACCOUNTS], DIRECT[worker % len(DIRECT)]
            self.calls.append(Call(kind, account, direct, due_s, time.monotonic(), error))
            due_s += PERIOD_S

    async def _call(self, worker: int, kind: str, chance: Random) -> None:
        match kind:
            case "deliver":
                await self._deliver(worker)
            case "list":
                await self._list(worker, linearizable=chance.random() < 0.5)
            case "fetch":
                await self._fetch(worker, chance)
            case _:
                await self._flag(worker, chance)

    def _begin(self, worker: int, kind: Kind, *, linearizable: bool = False) -> Operation:
        account, session = self._accounts[worker % ACCOUNTS], worker % len(DIRECT)
        return self._history.begin(kind, account, session, level=_level(linearizable))

    async def _deliver(self, worker: int) -> None:
        operation = self._begin(worker, Kind.DELIVER)
        received = EPOCH + timedelta(milliseconds=operation.number)
        raw = raw_of(operation.number)
        receipt = await self._clients[operation.session].deliver(
            raw, to=[operation.account], internal_time=received
        )
        self._bytes[self._shard_of[operation.account]] += len(raw)
        answer = receipt.recipients[0]
        _seen(operation, answer.state)
        operation.uid, operation.message_id = answer.memberships[0].uid, answer.message_id
        self._delivered[worker].append(operation)

    async def _list(self, worker: int, *, linearizable: bool) -> None:
        operation = self._begin(worker, Kind.LIST, linearizable=linearizable)
        page = await self._clients[operation.session].list_messages(
            operation.account,
            order=MessageOrder.UID_DESC,
            page_size=PAGE,
            consistency=_level(linearizable),
        )
        operation.newest_uids = [message.memberships[0].uid for message in page.messages]
        operation.total = page.total_messages
        _seen(operation, page.state)

    async def _fetch(self, worker: int, chance: Random) -> None:
        """Something that was acknowledged in this session, as often as not the newest."""
        delivered, linearizable = self._delivered[worker], chance.random() < 0.5
        wanted = delivered[-1] if chance.random() < 0.5 else chance.choice(delivered)
        operation = self._begin(worker, Kind.FETCH, linearizable=linearizable)
        try:
            body = await self._clients[operation.session].fetch_body(
                wanted.account, wanted.message_id, consistency=_level(linearizable)
            )
        except errors.NotFoundError:
            operation.outcome, operation.end_s = Outcome.MISSING, time.monotonic()
            raise
        right = body == raw_of(wanted.number)
        operation.outcome = Outcome.DONE if right else Outcome.WRONG
        operation.end_s = time.monotonic()

    async def _flag(self, worker: int, chance: Random) -> None:
        """Set the keyword of a message, or take it away again."""
        wanted = chance.choice(self._delivered[worker])
        name = wanted.account, wanted.message_id
        is_set = not self._flagged.get(name, False)
        self._flagged[name] = None
        await self._clients[worker % len(DIRECT)].modify_keywords(
            wanted.account,
            [wanted.message_id],
            add=[KEYWORD] if is_set else [],
            remove=[] if is_set else [KEYWORD],
        )
        self._flagged[name] = is_set


def raw_of(number: int) -> bytes:
    """What delivery `number` delivers."""
    size_bytes = BODY_BYTES if number % LARGE_EVERY else LARGE_BODY_BYTES
    text = Random(number).randbytes(size_bytes // 2).hex()
    return f"Subject: {number}\r\n\r\n{text}".encode()


def _level(linearizable: bool) -> Consistency:
    return Consistency.LINEARIZABLE if linearizable else Consistency.SESSION


def _seen(operation: Operation, state: str) -> None:
    operation.end_s = time.monotonic()
    decoded = tokens.decode_state(state)
    operation.incarnation, operation.modseq = decoded.incarnation, decoded.modseq
    operation.outcome = Outcome.DONE

"""Clients that deliver and read without pause, and record what they did and what was answered."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from random import Random
from types import TracebackType
from typing import Self

from tests.faults.checker import Stored
from tests.faults.history import History, Kind, Operation, Outcome

from mailraft.client import AsyncClient, Consistency, MailraftError
from mailraft.client.options import MessageOrder, ReadArgs
from mailraft.cluster.local import LocalCluster
from mailraft.node.interfaces import replica_id
from mailraft.wire import errors, tokens

ACCOUNTS = tuple(f"account-{number}" for number in range(8))
WORKERS = 24
CLIENTS = 3
# Rest after an operation: the nodes share this machine with us.
PAUSE_S = 0.04
WRITE_DEADLINE_S = 15.0
READ_DEADLINE_S = 5.0
# Of a read at one given replica, that may be cut off, frozen or dead.
PINNED_DEADLINE_S = 2.0
PROBE_DEADLINE_S = 0.5
REACH_DEADLINE_S = 90.0
# A delivered message is known by its received time: operation n at EPOCH + n milliseconds.
EPOCH = datetime(2001, 1, 1, tzinfo=UTC)
EPOCH_MS = int(EPOCH.timestamp() * 1000)
PAGE = 8
WHOLE_PAGE = 1_000


def raw_of(number: int) -> bytes:
    """What delivery `number` delivers."""
    return f"Subject: {number}\r\n\r\n".encode() + b"%d," % number * (number % 97)


class Load:
    """async with Load(cluster, seed=1) as load: faults; then `await load.final()`."""

    def __init__(
        self, cluster: LocalCluster, *, seed: int = 1, workers: int = WORKERS, pinned: bool = True
    ) -> None:
        """pinned: some reads go to one given replica, whether that is up or not."""
        self.history, self._pinned = History(), pinned
        self._cluster, self._seed, self._workers = cluster, seed, workers
        self._clients: list[AsyncClient] = []
        self._delivered: dict[tuple[str, int], list[Operation]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = False

    async def __aenter__(self) -> Self:
        self._clients = [self._cluster.client(deadline_s=WRITE_DEADLINE_S) for _ in range(CLIENTS)]
        for account in ACCOUNTS:
            await self._clients[0].create_account(account)
        for number in range(self._workers):
            self._tasks.append(asyncio.create_task(self._work(number), name=f"worker {number}"))
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

    @property
    def acknowledged(self) -> int:
        return len(self.history.acknowledged())

    async def more(self, count: int) -> None:
        """Wait until so many more are acknowledged."""
        target, until_s = self.acknowledged + count, time.monotonic() + REACH_DEADLINE_S
        while self.acknowledged < target:
            for task in self._tasks:
                if task.done():
                    task.result()
            assert time.monotonic() < until_s, f"{target - self.acknowledged} of {count} missing"
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Begin nothing more, wait for what runs. Raises what a worker did not expect."""
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def final(self) -> dict[str, list[Stored]]:
        """All messages of all accounts, linearizably."""
        return {account: await self._all_of(account) for account in ACCOUNTS}

    async def check_bodies(self, count: int) -> None:
        """The bytes of some acknowledged messages are those that were sent."""
        delivered = [
            each for many in self._delivered.values() for each in many
        ]  # tidy: a plain dict
        for each in Random(self._seed).sample(delivered, min(count, len(delivered))):
            body = await self._clients[0].fetch_body(
                each.account, each.message_id, consistency=Consistency.LINEARIZABLE
            )
            assert body == raw_of(each.number), f"{each} holds other bytes"

    async def _all_of(self, account: str) -> list[Stored]:
        messages = self._clients[0].iter_messages(
            account, page_size=WHOLE_PAGE, consistency=Consistency.LINEARIZABLE, deadline_s=30.0
        )
        return [
            Stored(
                message.internal_time_ms - EPOCH_MS,
                message.memberships[0].uid,
                message.created_modseq,
                message.id,
            )
            async for message in messages
        ]

    # ---- one worker ------------------------------------------------------------------------------

    async def _work(self, number: int) -> None:
        chance = Random(self._seed * 1_000 + number)
        account, session = ACCOUNTS[number % len(ACCOUNTS)], number % CLIENTS
        while not self._stop:
            drawn = chance.random()
            if drawn < 0.55:
                await self._deliver(account, session)
            elif drawn < 0.90:
                await self._list(account, session, chance)
            else:
                await self._fetch(account, session, chance)
            await asyncio.sleep(PAUSE_S * chance.random() * 2)

    async def _deliver(self, account: str, session: int) -> None:
        operation = self.history.begin(Kind.DELIVER, account, session)
        received = EPOCH + timedelta(milliseconds=operation.number)
        try:
            receipt = await self._clients[session].deliver(
                raw_of(operation.number), to=[account], internal_time=received
            )
        except MailraftError as error:
            operation.error, operation.gave_up_s = repr(error), time.monotonic()
            return
        answer = receipt.recipients[0]
        seen(operation, answer.state)
        operation.uid, operation.message_id = answer.memberships[0].uid, answer.message_id
        self._delivered.setdefault((account, session), []).append(operation)

    async def _list(self, account: str, session: int, chance: Random) -> None:
        level = _level(chance, 0.6)
        pinned = 0
        if self._pinned and chance.random() < 0.4:
            pinned = chance.choice(self._cluster.nodes)
        operation = self.history.begin(Kind.LIST, account, session, level=level, replica=pinned)
        try:
            page = await self._clients[session].list_messages(
                account,
                order=MessageOrder.UID_DESC,
                page_size=PAGE,
                **_read_args(level, node=pinned),
            )
        except MailraftError as error:
            operation.error = repr(error)
            return
        operation.newest_uids = [message.memberships[0].uid for message in page.messages]
        operation.total, operation.age_s = page.total_messages, page.served.age_ms / 1000
        seen(operation, page.state)

    async def _fetch(self, account: str, session: int, chance: Random) -> None:
        """Something that was acknowledged in this session."""
        delivered = self._delivered.get((account, session))
        if not delivered:
            return
        wanted = delivered[-1] if chance.random() < 0.5 else chance.choice(delivered)
        level = _level(chance, 0.5)
        operation = self.history.begin(Kind.FETCH, account, session, level=level)
        try:
            body = await self._clients[session].fetch_body(
                account, wanted.message_id, **_read_args(level, node=0)
            )
        except errors.NotFoundError as error:
            operation.outcome, operation.error = Outcome.MISSING, repr(error)
        except MailraftError as error:
            operation.error = repr(error)
            return
        else:
            right = body == raw_of(wanted.number)
            operation.outcome = Outcome.DONE if right else Outcome.WRONG
        operation.end_s = time.monotonic()


def _level(chance: Random, linearizable: float) -> Consistency:
    return Consistency.LINEARIZABLE if chance.random() < linearizable else Consistency.SESSION


def _read_args(level: Consistency, node: int) -> ReadArgs:
    args = ReadArgs(deadline_s=PINNED_DEADLINE_S if node else READ_DEADLINE_S, consistency=level)
    if node:
        args["replica"] = replica_id(node, 1)
    return args


def seen(operation: Operation, state: str) -> None:
    """It was answered, with this state."""
    operation.end_s = time.monotonic()
    decoded = tokens.decode_state(state)
    operation.incarnation, operation.modseq = decoded.incarnation, decoded.modseq
    operation.outcome = Outcome.DONE


async def serves(cluster: LocalCluster, node: int, deadline_s: float) -> float:
    """Seconds until the node answers linearizable reads of every account by its own replica."""
    began_s = time.monotonic()
    args = _read_args(Consistency.LINEARIZABLE, node)
    args["deadline_s"] = PROBE_DEADLINE_S
    async with cluster.client() as client:
        for account in ACCOUNTS:
            while True:
                try:
                    await client.list_messages(account, page_size=1, **args)
                    break
                except MailraftError as error:
                    if time.monotonic() - began_s > deadline_s:
                        text = f"node {node} does not serve after {deadline_s} s: {error!r}"
                        raise AssertionError(text) from error
                    await asyncio.sleep(0.02)
    return time.monotonic() - began_s

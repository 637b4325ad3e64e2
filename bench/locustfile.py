"""Internal services as locust users, on any cluster: docs/load-testing.md has it in full.

    .venv/bin/mailraft up                                   # or any cluster
    export LOCUST_SKIP_MONKEY_PATCH=1
    .venv/bin/locust -f bench/locustfile.py --headless -u 64 -r 64 -t 30s

The mix, of 100 requests:

    30 deliver   an SMTP or LMTP receiver: a mail of 4.3 KB on average to one account's inbox
    16 list      webmail: the newest 50 of the inbox with their envelopes
    40 fetch     webmail: the body of one of the last page
     8 flag      webmail: one of it is read, or flagged
     2 search    webmail: the newest 20 of the inbox that are flagged
     4 watch     a push service: a mail is delivered to an account that it watches; measured is
                 until the change is told

A user is a task of such a service: one request after the other, with no pause, so -u is how many
are in flight. Those of one process share one client and one stream of changes. Accounts are taken
at random.

A request fails when the client gave up on it (it retries by itself until its deadline) and the user
did too: like a service with a queue, a user repeats what may be repeated, after the time that the
server names, for some minutes. Both kinds of retry are counted, and printed at the end.

MAILRAFT_SERVER (default 127.0.0.1:7400) and MAILRAFT_CERTS (default .mailraft/certs; empty: plain
text) say where; MAILRAFT_REQUESTS after how many requests of all workers to stop, MAILRAFT_SECONDS
after which time at the latest; and MAILRAFT_OUTCOME a file for retries and failures as JSON.

Users are greenlets; AsyncClient, which coalesces their calls, needs an event loop, and that a
thread of its own. Hence LOCUST_SKIP_MONKEY_PATCH where users are: with gevent's patches there are
no threads. A master, which has no users, waits for its workers only with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast
from uuid import uuid4

import gevent  # type: ignore[import-untyped]
import uvloop
from gevent.event import AsyncResult  # type: ignore[import-untyped]
from gevent.monkey import is_module_patched  # type: ignore[import-untyped]
from locust import User, constant, events, runners, task
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from mailraft.client import AsyncClient, MailraftError
from mailraft.client.ids import request_ids
from mailraft.client.options import MessageOrder, MessageView
from mailraft.v1 import search_pb2
from mailraft.wire import tokens
from mailraft.wire.errors import AccountExistsError

# Heartbeats, a second each, that a worker may miss: one on a machine that is all busy is not gone.
runners.HEARTBEAT_LIVENESS = 30

SERVER = os.environ.get("MAILRAFT_SERVER", "127.0.0.1:7400")
CERTS = os.environ.get("MAILRAFT_CERTS", ".mailraft/certs")
REQUESTS = int(os.environ.get("MAILRAFT_REQUESTS", "0"))
SECONDS = float(os.environ.get("MAILRAFT_SECONDS", "inf"))
OUTCOME_FILE = os.environ.get("MAILRAFT_OUTCOME", "")
ACCOUNTS = 1_000
BODY_BYTES_MEAN = 4_300  # as in the corpora that mail servers are measured with
BODIES = 256
WATCHED = 20  # accounts of each process
PAGE, MATCHES = 50, 20
FLAGGED = search_pb2.MessageFilter(has_keyword="$flagged")
DEADLINE_S = 20.0
PATIENCE_S = 300.0  # of a user, who calls again when the client has given up
PAUSE_MIN_S, PAUSE_MAX_S = 0.1, 10.0
TOLD_DEADLINE_S = 120.0
LOOK_EVERY_S = 0.5

T = TypeVar("T")


def _bodies() -> list[str]:
    """Text of which about half is incompressible, so that it compresses as mail does."""
    chance = random.Random(1)
    sizes = (chance.expovariate(1 / BODY_BYTES_MEAN) for _ in range(BODIES))
    return [chance.randbytes(int(size) // 2 + 1).hex() for size in sizes]


class Bridge:
    """An event loop in a thread, for greenlets of the thread that makes this."""

    def __init__(self) -> None:
        self._loop = uvloop.new_event_loop()
        self._done: deque[tuple[AsyncResult, asyncio.Task[Any]]] = deque()
        self._news = gevent.get_hub().loop.async_()
        self._news.start(self._wake)
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What it returns or raises; other greenlets run meanwhile."""
        waiting = AsyncResult()
        self._loop.call_soon_threadsafe(self._begin, work, waiting)
        done: asyncio.Task[T] = waiting.get()
        return done.result()

    def _begin(self, work: Coroutine[Any, Any, T], waiting: AsyncResult) -> None:
        def end(done: asyncio.Task[T]) -> None:
            self._done.append((waiting, done))
            self._news.send()  # the one call of gevent that another thread may make

        self._loop.create_task(work).add_done_callback(end)

    def _wake(self) -> None:
        while self._done:
            waiting, done = self._done.popleft()
            waiting.set(done)


class Service:
    """What the users of one process share."""

    bridge: ClassVar[Bridge]
    mail: ClassVar[AsyncClient | None] = None
    push: ClassVar[Push]
    bodies: ClassVar[list[str]] = _bodies()
    known: ClassVar[set[str]] = set()  # accounts that are there
    retries: ClassVar[Counter[str]] = Counter()  # of users, by the reason of the try before

    @classmethod
    def open(cls) -> None:
        if is_module_patched("threading"):
            raise SystemExit("users need threads: set LOCUST_SKIP_MONKEY_PATCH=1")
        cls.bridge = Bridge()
        cls.bridge.run(cls._connect())

    @classmethod
    async def _connect(cls) -> None:
        certs = CERTS or None
        cls.mail = AsyncClient(SERVER, certs=certs, insecure=certs is None, deadline_s=DEADLINE_S)
        cls.push = Push(cls.mail)

    @classmethod
    def all_retries(cls) -> Counter[str]:
        """Of the client and of the users, since the process began."""
        dispatcher = cls.mail._transport.dispatcher() if cls.mail is not None else None
        of_client = {} if dispatcher is None else dispatcher.fleet.extra.retries
        found = Counter({f"client {reason}": count for reason, count in of_client.items()})
        found.update({f"user {reason}": count for reason, count in cls.retries.items()})
        return found

    @classmethod
    async def ensure(cls, account: str) -> None:
        if account not in cls.known:
            with contextlib.suppress(AccountExistsError):  # another process was here
                assert cls.mail is not None
                await cls.mail.create_account(account)
            cls.known.add(account)


class Push:
    """A stream of the changes of accounts that only this process delivers to."""

    def __init__(self, mail: AsyncClient) -> None:
        # By account: up to where it was told.
        self._states = dict.fromkeys((f"watched-{uuid4()}" for _ in range(WATCHED)), "")
        self._news = asyncio.Condition()
        self._mail = mail
        self._listening: asyncio.Task[None] | None = None

    async def account(self, chance: random.Random) -> str:
        """Any that is watched."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())
        account = chance.choice(list(self._states))
        await self._until(lambda: bool(self._states[account]))
        return account

    async def told(self, account: str, state: str) -> None:
        """Returns once the change to this state was told; TimeoutError after TOLD_DEADLINE_S."""
        wanted = tokens.decode_state(state)
        await self._until(lambda: tokens.decode_state(self._states[account]) >= wanted)

    async def _until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(TOLD_DEADLINE_S), self._news:
            await self._news.wait_for(true)

    async def _listen(self) -> None:
        for account in self._states:
            await Service.ensure(account)
        async for response in self._mail.watch(list(self._states)):
            if response.WhichOneof("event") == "change":
                self._states[response.account_id] = response.change.state
                async with self._news:
                    self._news.notify_all()


class MailUser(User):
    """One request after the other."""

    wait_time = constant(0)
    _numbers = itertools.count(1)

    def on_start(self) -> None:
        self.chance = random.Random(f"{os.getpid()} {next(self._numbers)}")
        assert Service.mail is not None
        self.mail = Service.mail
        self.page = ("", [""])  # the account whose inbox was listed last, and what was in it

    @task(30)
    def deliver(self) -> None:
        account, raw, request_id = self._account(), self._raw(), request_ids.next()
        self._measured(
            "deliver",
            lambda: self.mail.deliver(raw, to=[account], request_id=request_id),
            lambda _: len(raw),
        )

    @task(16)
    def list_(self) -> None:
        account = self._account()
        page = self._measured(
            "list",
            lambda: self.mail.list_messages(
                account, page_size=PAGE, order=MessageOrder.UID_DESC, view=MessageView.ENVELOPE
            ),
        )
        if page is not None and page.messages:
            self.page = account, [message.id for message in page.messages]

    @task(40)
    def fetch(self) -> None:
        account, message = self._listed()
        if message:
            self._measured("fetch", lambda: self.mail.fetch_body(account, message), len)

    @task(8)
    def flag(self) -> None:
        account, message = self._listed()
        request_id, keyword = request_ids.next(), self.chance.choice(("$seen", "$flagged"))
        if message:
            self._measured(
                "flag",
                lambda: self.mail.modify_keywords(
                    account, [message], add=[keyword], request_id=request_id
                ),
            )

    @task(2)
    def search(self) -> None:
        account = self._account()
        self._measured(
            "search", lambda: self.mail.search_messages(account, FLAGGED, page_size=MATCHES)
        )

    @task(4)
    def watch(self) -> None:
        account = Service.bridge.run(Service.push.account(self.chance))
        raw, request_id = self._raw(), request_ids.next()

        async def until_told() -> None:
            receipt = await self.mail.deliver(raw, to=[account], request_id=request_id)
            await Service.push.told(account, receipt.recipients[0].state)

        self._measured("watch", until_told, lambda _: len(raw))

    # ---- inside ----------------------------------------------------------------------------------

    def _account(self) -> str:
        account = f"load-{self.chance.randrange(ACCOUNTS)}"
        if account not in Service.known:
            Service.bridge.run(Service.ensure(account))
        return account

    def _listed(self) -> tuple[str, str]:
        account, messages = self.page
        return account, self.chance.choice(messages)

    def _raw(self) -> bytes:
        """A mail like no other."""
        subject, body = self.chance.getrandbits(64), self.chance.choice(Service.bodies)
        return f"Subject: load {subject:x}\r\n\r\n{body}\r\n".encode()

    def _measured(
        self,
        name: str,
        call: Callable[[], Awaitable[T]],
        size: Callable[[T], int] = lambda _: 0,
    ) -> T | None:
        """Run one call and tell locust: latency in ms with all retries, bytes of mail moved."""
        began_s, failed, answer = time.perf_counter(), None, None
        try:
            answer = Service.bridge.run(_persistently(call))
        except (MailraftError, TimeoutError) as error:
            failed = error
        self.environment.events.request.fire(
            request_type="grpc",
            name=name,
            response_time=(time.perf_counter() - began_s) * 1000,
            response_length=0 if failed is not None else size(cast("T", answer)),
            exception=failed,
        )
        return answer


async def _persistently(call: Callable[[], Awaitable[T]]) -> T:
    end_s, pause_s = time.monotonic() + PATIENCE_S, PAUSE_MIN_S
    while True:
        try:
            return await call()
        except MailraftError as error:
            if not error.retryable or time.monotonic() > end_s:
                raise
            Service.retries[error.name] += 1
            await asyncio.sleep(max(pause_s, (error.retry_after_ms or 0) / 1000))
            pause_s = min(2 * pause_s, PAUSE_MAX_S)


# ---- a run: its length, and the retries of all its workers ---------------------------------------

_told: dict[str, Counter[str]] = {}  # by worker


def _begin(environment: Environment, **_: Any) -> None:
    if not isinstance(environment.runner, MasterRunner):
        Service.open()
    if REQUESTS and not isinstance(environment.runner, WorkerRunner):
        gevent.spawn(_stop_after, environment, REQUESTS)


def _stop_after(environment: Environment, requests: int) -> None:
    end_s = time.monotonic() + SECONDS
    while environment.stats.total.num_requests < requests and time.monotonic() < end_s:
        gevent.sleep(LOOK_EVERY_S)
    assert environment.runner is not None
    environment.runner.stop()  # waits until what runs is done
    gevent.sleep(2 * runners.WORKER_REPORT_INTERVAL)  # and told
    environment.runner.quit()


def _tell(data: dict[str, Any], **_: Any) -> None:
    data["retries"] = dict(Service.all_retries())


def _hear(client_id: str, data: dict[str, Any], **_: Any) -> None:
    _told[client_id] = Counter(data["retries"])


def _report(environment: Environment, **_: Any) -> None:
    if isinstance(environment.runner, WorkerRunner):
        return
    found = sum(_told.values(), Counter()) if _told else Service.all_retries()
    print("retries:", ", ".join(f"{count:,} {why}" for why, count in found.items()) or "none")
    failed: Counter[str] = Counter()
    for error in environment.stats.errors.values():
        failed[f"{error.name}: {error.error}"] += error.occurrences
    if OUTCOME_FILE:
        Path(OUTCOME_FILE).write_text(json.dumps({"retries": found, "failed": failed}), "utf-8")


for _hook, _listener in (
    (events.init, _begin),
    (events.report_to_master, _tell),
    (events.worker_report, _hear),
    (events.quitting, _report),
):
    _hook.add_listener(_listener)  # type: ignore[no-untyped-call]

"""Internal services as locust users: a receiver that delivers, a webmail that lists and reads.

    .venv/bin/mailraft up                                   # or any cluster
    .venv/bin/locust -f bench/locustfile.py --headless -u 20 -r 10 -t 30s

MAILRAFT_SERVER (default 127.0.0.1:7400) and MAILRAFT_CERTS (default .mailraft/certs) say where.
Locust runs on gevent, so this uses the synchronous client, whose calls the router coalesces.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

import grpc.experimental.gevent  # type: ignore[import-not-found]  # not in its types
from locust import User, between, task

from mailraft.client import Client, MailraftError
from mailraft.wire.errors import AccountExistsError

grpc.experimental.gevent.init_gevent()

SERVER = os.environ.get("MAILRAFT_SERVER", "127.0.0.1:7400")
CERTS = os.environ.get("MAILRAFT_CERTS", ".mailraft/certs")
ACCOUNTS = 8
BODY_BYTES_MEAN = 4_300  # as in the corpora that mail servers are measured with
PAGE_SIZE = 50

T = TypeVar("T")


class MailService(User):
    """One caller with a connection of its own."""

    abstract = True
    wait_time = between(0.01, 0.1)

    def on_start(self) -> None:
        self.mail = Client(SERVER, certs=CERTS)
        self.chance = random.Random(id(self))
        self.account = f"load-{self.chance.randrange(ACCOUNTS)}"
        with contextlib.suppress(AccountExistsError):  # another user has it too
            self.mail.create_account(self.account)

    def on_stop(self) -> None:
        self.mail.close()

    def measured(self, name: str, call: Callable[[], T], size: Callable[[T], int]) -> T | None:
        """Run one call and tell locust: latency in ms, bytes of mail moved."""
        began, failed, answer = time.perf_counter(), None, None
        try:
            answer = call()
        except MailraftError as error:
            failed = error
        self.environment.events.request.fire(
            request_type="grpc",
            name=name,
            response_time=(time.perf_counter() - began) * 1000,
            response_length=size(answer) if answer is not None else 0,
            exception=failed,
        )
        return answer


class Receiver(MailService):
    """SMTP or LMTP: a mail comes in, sometimes for several people."""

    weight = 3

    @task
    def deliver(self) -> None:
        body = self.chance.randbytes(int(self.chance.expovariate(1 / BODY_BYTES_MEAN)) // 2).hex()
        raw = f"Subject: load {self.chance.random()}\r\n\r\n{body}\r\n".encode()
        self.measured(
            "deliver", lambda: self.mail.deliver(raw, to=[self.account]), lambda _: len(raw)
        )


class Reader(MailService):
    """Webmail: opens the inbox, reads one of what it sees."""

    weight = 1

    @task
    def read(self) -> None:
        page = self.measured(
            "list 50",
            lambda: self.mail.list_messages(self.account, "INBOX", page_size=PAGE_SIZE),
            lambda _: 0,
        )
        if page is not None and page.messages:
            message = self.chance.choice(page.messages)
            self.measured("fetch", lambda: self.mail.fetch_body(self.account, message.id), len)

"""mailraft: three nodes and a router, by its own client."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.compare import mails, work
from bench.compare.interface import FAN_OUT, MAILBOXES, PAGE, Address, Work

from mailraft.client import AsyncClient, Consistency, MailraftError, MessageView
from mailraft.cluster.levels import LogLevel
from mailraft.cluster.local import LocalCluster, LocalOptions

SHARDS = 3
DEADLINE_S = 30.0
BULK = 1_024
LARGE = "large"
FLAGGED = "$flagged"


class MailraftServer:
    """The cluster of `mailraft up`, in plain text unless tls."""

    title = "mailraft, 3 nodes"
    version_command: Sequence[str] = ()

    def __init__(self, name: str = "mailraft", *, tls: bool = False) -> None:
        self.name, self._tls = name, tls
        self._cluster: LocalCluster | None = None

    def missing(self) -> str:
        return ""

    async def start(self, folder: Path) -> None:
        options = LocalOptions(shards=SHARDS, insecure=not self._tls, log_level=LogLevel.WARNING)
        self._cluster = LocalCluster(folder, options)
        await self.cluster.launch()
        await self.cluster.wait_ready()

    async def stop(self) -> None:
        if self._cluster is not None:
            await self._cluster.stop()

    async def settle(self) -> None:
        """Compaction is waited for."""

    @property
    def cluster(self) -> LocalCluster:
        assert self._cluster is not None
        return self._cluster

    @property
    def address(self) -> Address:
        certs = self.cluster.certs_folder
        return {"target": self.cluster.router_address, "certs": str(certs) if certs else None}

    def pids(self) -> Sequence[int]:
        return [child.pid for child in self.cluster.children()]


def account_of(mailbox: int) -> str:
    return f"box-{mailbox:03d}"


class MailraftClient:
    """One AsyncClient; writes at QUORUM."""

    errors: tuple[type[Exception], ...] = (MailraftError,)

    def __init__(self) -> None:
        self.works: Mapping[str, Work] = {
            "deliver128": Work(128, self._deliver),
            "deliver128c": Work(128, self._deliver),
            "bulk": Work(BULK, self._deliver),
            "single": Work(1, self._deliver),
            "fanout": Work(16, self._fan_out),
            "get": Work(32, self._get),
            "page": Work(8, self._page),
            "keywords": Work(32, self._flag),
        }
        self._mails = mails.Mails(mails.load(), MAILBOXES)
        self._sent: list[tuple[str, str, int]] = []
        self._flagged: set[tuple[str, str]] = set()
        self._tokens: list[str] = []
        self._client: AsyncClient | None = None

    async def open(self, address: Address, large_mailbox: int) -> None:
        certs = address["certs"]
        self._client = AsyncClient(
            address["target"], certs=certs, insecure=certs is None, deadline_s=DEADLINE_S
        )
        for mailbox in range(MAILBOXES):
            await self.client.create_account(account_of(mailbox))
        await work.run_units(self.works["deliver128"], self._mails.count, self.errors)
        if large_mailbox:
            await self.client.create_account(LARGE)
            await work.run_units(Work(128, self._deliver_large), large_mailbox, self.errors)
            await self._turn_pages(large_mailbox)

    async def _turn_pages(self, size: int) -> None:
        """Remember where each page of the large mailbox begins."""
        token = ""
        for _ in range(size // PAGE - 1):
            page = await self.client.list_messages(LARGE, page_size=PAGE, page_token=token)
            token = page.next_page_token
            self._tokens.append(token)

    async def close(self) -> None:
        await self.client.close()

    @property
    def client(self) -> AsyncClient:
        assert self._client is not None
        return self._client

    async def _deliver(self, _: int) -> int:
        _, mailbox, raw = self._mails.next()
        receipt = await self.client.deliver(raw, to=[account_of(mailbox)])
        self._sent.append((account_of(mailbox), receipt.recipients[0].message_id, len(raw)))
        return 1

    async def _deliver_large(self, _: int) -> int:
        _, _, raw = self._mails.next()
        await self.client.deliver(raw, to=[LARGE])
        return 1

    async def _fan_out(self, _: int) -> int:
        _, mailbox, raw = self._mails.next()
        to = [account_of((mailbox + number) % MAILBOXES) for number in range(FAN_OUT)]
        (await self.client.deliver(raw, to=to)).raise_for_failures()
        return len(to)

    async def _get(self, _: int) -> int:
        account, message, size = random.choice(self._sent)
        body = await self.client.fetch_body(account, message, consistency=Consistency.LINEARIZABLE)
        assert len(body) == size
        return 1

    async def _page(self, _: int) -> int:
        """Summaries: who, what, when, keywords, sizes."""
        page = await self.client.list_messages(
            LARGE,
            page_size=PAGE,
            page_token=random.choice(self._tokens),
            view=MessageView.ENVELOPE,
        )
        assert len(page.messages) == PAGE
        return 1

    async def _flag(self, _: int) -> int:
        account, message, _size = random.choice(self._sent)
        there = (account, message) in self._flagged
        (self._flagged.discard if there else self._flagged.add)((account, message))
        if there:
            await self.client.modify_keywords(account, [message], remove=[FLAGGED])
        else:
            await self.client.modify_keywords(account, [message], add=[FLAGGED])
        return 1

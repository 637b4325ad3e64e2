"""Accounts that are used one step after the other, and what each had to show after every step."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from mailraft.client import AsyncClient
from mailraft.client.options import Consistency

INBOX = "INBOX"
WORDS = ("$seen", "$flagged", "mine", "todo")
# (mailbox, sha256, keywords) of every message; mailboxes alone have ("name", "", ()).
Shown = Counter[tuple[str, str, tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class Step:
    """Asked for behind began_ms, answered at acked_ms; `shown` is what there is since."""

    began_ms: int
    acked_ms: int
    shown: Shown


@dataclass(slots=True)
class _Mail:
    sha256: str
    box: str
    keywords: tuple[str, ...] = ()


@dataclass(slots=True)
class Recorded:
    """One account. Nobody else may change it."""

    client: AsyncClient
    account: str
    chance: random.Random
    steps: list[Step] = field(default_factory=list)
    _mails: dict[str, _Mail] = field(default_factory=dict)
    _boxes: dict[str, str] = field(default_factory=dict)  # ids by name
    _count: int = 0

    async def create(self) -> None:
        """The account, with its INBOX."""
        began_ms = now_ms()
        await self.client.create_account(self.account)
        self._boxes[INBOX] = (await self.client.get_mailbox(self.account, INBOX)).id
        self._done(began_ms)

    async def run(self, pause_s: float) -> None:
        """One random step after the other, until it is cancelled."""
        while True:
            began_ms = now_ms()
            await self._step()
            self._done(began_ms)
            await asyncio.sleep(self.chance.uniform(0, 2 * pause_s))

    def at(self, time_ms: int) -> list[Shown]:
        """What it may have shown then: the last that was answered, or what was on its way."""
        known = [step for step in self.steps if step.acked_ms <= time_ms]
        under_way = [step for step in self.steps if step.began_ms <= time_ms < step.acked_ms]
        return [step.shown for step in (known[-1:] + under_way)]

    def since(self, time_ms: int) -> list[Shown]:
        """As at(), and all that it showed later."""
        later = [step.shown for step in self.steps if step.acked_ms > time_ms]
        return [*self.at(time_ms)[:1], *later]

    def _done(self, began_ms: int) -> None:
        shown: Shown = Counter((name, "", ()) for name in self._boxes)
        shown.update((mail.box, mail.sha256, mail.keywords) for mail in self._mails.values())
        self.steps.append(Step(began_ms, now_ms(), shown))

    async def _step(self) -> None:
        kind = self.chance.random()
        if kind < 0.6 or not self._mails:
            await self._deliver()
            return
        message = self.chance.choice(list(self._mails))
        mail = self._mails[message]
        if kind < 0.75:
            count = self.chance.randrange(len(WORDS))
            words = tuple(sorted(self.chance.sample(WORDS, count)))
            await self.client.modify_keywords(self.account, [message], replace=words)
            mail.keywords = words
        elif kind < 0.9:
            await self._move(message, mail)
        elif kind < 0.97 or len(self._boxes) > 8:
            await self.client.expunge_messages(self.account, [message])
            del self._mails[message]
        else:
            name = f"box-{len(self._boxes)}"
            self._boxes[name] = (await self.client.create_mailbox(self.account, name)).id

    async def _deliver(self) -> None:
        self._count += 1
        head = b"Subject: %d of %s\r\n\r\n" % (self._count, self.account.encode())
        raw = head + self.chance.randbytes(self.chance.randrange(3_000))
        receipt = await self.client.deliver(raw, to=[self.account])
        message = receipt.recipients[0].message_id
        self._mails[message] = _Mail(hashlib.sha256(raw).hexdigest(), INBOX)

    async def _move(self, message: str, mail: _Mail) -> None:
        to = self.chance.choice(list(self._boxes))
        source = self._boxes[mail.box]
        if to != mail.box:
            await self.client.move_messages(self.account, [message], self._boxes[to], source=source)
            mail.box = to


async def shown(client: AsyncClient, account: str) -> Shown:
    """What an account shows now, bytes fetched."""
    found: Shown = Counter()
    for box in await client.list_mailboxes(account, consistency=Consistency.LINEARIZABLE):
        found[box.name, "", ()] += 1
        async for each in client.iter_messages(account, box.id, page_size=1000):
            raw = await client.fetch_body(account, each.id)
            found[box.name, hashlib.sha256(raw).hexdigest(), tuple(each.keywords)] += 1
    return found


def now_ms() -> int:
    """Of the wall clock, which stamps commands too."""
    return time.time_ns() // 1_000_000

"""The demo's deliveries: what is sent, what is acknowledged and when, and a kill in the middle."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mailraft.client import AsyncClient, MailraftError
from mailraft.cluster.corpus import Corpus, CorpusMessage
from mailraft.cluster.errors import CorpusError
from mailraft.cluster.local import LocalCluster
from mailraft.wire.limits import MESSAGE_MAX_BYTES

IN_FLIGHT_MAX = 64
# A small corpus gets fewer, so that its middle is not over at once.
IN_FLIGHT_SHARE = 16
# Long enough for an election, and for more than one that fails.
DELIVER_DEADLINE_S = 60.0

# Parts of all acknowledgements: the victim is chosen, killed, started again.
CHOOSE_AT, KILL_AT, RESTART_AT = 0.3, 0.4, 0.7
# Acknowledgements that were under way when the leader died may still arrive for so long.
STILL_UNDER_WAY_S = 0.25


@dataclass(frozen=True, slots=True)
class Plan:
    """A corpus, counted: how often it is delivered, and what of it the store cannot take."""

    corpus: Corpus
    repeats: int
    messages: int
    size_bytes: int
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, corpus: Corpus, at_least: int) -> Plan:
        """Read the corpus once. Raises CorpusError if nothing in it can be delivered."""
        count = size_bytes = 0
        left_out = []
        for message in corpus:
            if fits(message):
                count += 1
                size_bytes += len(message.raw)
            else:
                left_out.append(f"{message.name} ({len(message.raw)} bytes)")
        if not count:
            raise CorpusError(f"there is no message in {corpus.path} that can be delivered")
        repeats = max(1, -(-at_least // count))
        return cls(corpus, repeats, count * repeats, size_bytes * repeats, tuple(left_out))

    def __iter__(self) -> Iterator[CorpusMessage]:
        for _ in range(self.repeats):
            yield from filter(fits, self.corpus)


def fits(message: CorpusMessage) -> bool:
    """True if the store takes a message of this size."""
    return 0 < len(message.raw) <= MESSAGE_MAX_BYTES


@dataclass(frozen=True, slots=True)
class Sent:
    """One delivery: a message of the corpus may be in several."""

    name: str
    account: str
    size_bytes: int
    sha256: bytes


@dataclass(slots=True)
class Ledger:
    """What was sent and what came of it."""

    sent: int = 0
    size_bytes: int = 0
    acknowledged: int = 0
    # Account to message id to what was delivered under it.
    stored: defaultdict[str, dict[str, Sent]] = field(default_factory=lambda: defaultdict(dict))
    unacknowledged: list[tuple[Sent, str]] = field(default_factory=list)
    # Two deliveries that were acknowledged with one message id: one of them is lost.
    collided: list[Sent] = field(default_factory=list)
    # Shard to when it acknowledged, ascending; and the highest log index told.
    times_s: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    last_index: Counter[int] = field(default_factory=Counter)
    began_s: float = 0.0
    ended_s: float = 0.0

    @property
    def answered(self) -> int:
        return self.acknowledged + len(self.unacknowledged)

    @property
    def per_second(self) -> float:
        return self.acknowledged / max(self.ended_s - self.began_s, 1e-9)

    def busiest_shard(self) -> int:
        """The shard with most acknowledgements so far."""
        return max(self.times_s, key=lambda shard: (len(self.times_s[shard]), shard))

    def silence_s(self, shards: list[int], since_s: float) -> float | None:
        """The longest time between two acknowledgements of one of these shards around a moment.

        None: none of them acknowledged anything afterwards.
        """
        gaps = []
        for shard in shards:
            times = self.times_s[shard]
            gaps += [
                after - before
                for before, after in zip([self.began_s, *times], times, strict=False)
                if after > since_s and before < since_s + STILL_UNDER_WAY_S
            ]
        return max(gaps, default=None)


@dataclass(slots=True)
class Kill:
    """The fault: the leader of a busy shard dies, and comes back later."""

    node: int = 0
    shard: int = 0
    shards: list[int] = field(default_factory=list)
    at_s: float = 0.0
    acknowledged: int = 0  # at that moment
    restarted: bool = False


class Deliveries:
    """Delivers a plan, with a kill in the middle of it."""

    def __init__(
        self,
        plan: Plan,
        accounts: list[str],
        cluster: LocalCluster,
        rng: random.Random,
        *,
        progress: Callable[[int], None],
        note: Callable[[str], None],
    ) -> None:
        self.plan, self.accounts, self.cluster, self.rng = plan, accounts, cluster, rng
        self.ledger, self.kill = Ledger(), Kill()
        self._progress, self._note = progress, note
        self._choosing: asyncio.Task[None] | None = None

    async def run(self, client: AsyncClient) -> None:
        """Deliver every message once; returns when each was answered and the victim is back."""
        messages = iter(self.plan)
        workers = max(1, min(IN_FLIGHT_MAX, self.plan.messages // IN_FLIGHT_SHARE))
        self.ledger.began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work(client, messages))
        self.ledger.ended_s = time.monotonic()
        if self._choosing is not None:
            await self._choosing
        self._bring_back()

    async def _work(self, client: AsyncClient, messages: Iterator[CorpusMessage]) -> None:
        for message in messages:
            account = self.rng.choice(self.accounts)
            digest = hashlib.sha256(message.raw).digest()
            sent = Sent(message.name, account, len(message.raw), digest)
            self.ledger.sent += 1
            self.ledger.size_bytes += sent.size_bytes
            try:
                receipt = await client.deliver(
                    message.raw, to=[account], deadline_s=DELIVER_DEADLINE_S
                )
            except MailraftError as error:
                self.ledger.unacknowledged.append((sent, f"{error.name or error.code}: {error}"))
            else:
                told = receipt.recipients[0]
                self._acknowledge(sent, told.message_id, told.served.shard, told.served.index)
            self._progress(self.ledger.answered)

    def _acknowledge(self, sent: Sent, message_id: str, shard: int, index: int) -> None:
        ledger = self.ledger
        ledger.acknowledged += 1
        if ledger.stored[sent.account].setdefault(message_id, sent) is not sent:
            ledger.collided.append(sent)
        ledger.times_s[shard].append(time.monotonic())
        ledger.last_index[shard] = max(ledger.last_index[shard], index)
        self._take_its_turn(ledger.acknowledged / self.plan.messages)

    def _take_its_turn(self, part: float) -> None:
        """What the fault does at this part of the acknowledgements."""
        if part >= CHOOSE_AT and self._choosing is None:
            self._choosing = asyncio.create_task(self._choose())
        if part >= KILL_AT and self.kill.node and not self.kill.at_s:
            self._kill()
        if part >= RESTART_AT and self.kill.at_s:
            self._bring_back()

    async def _choose(self) -> None:
        while not self.kill.node:
            leaders = await self.cluster.leaders()
            shard = self.ledger.busiest_shard()
            if node := leaders.get(shard):
                self.kill.shard, self.kill.node = shard, node
                self.kill.shards = [each for each, leader in leaders.items() if leader == node]

    def _kill(self) -> None:
        self.cluster.kill_soon(self.kill.node)
        self.kill.at_s = time.monotonic()
        self.kill.acknowledged = self.ledger.acknowledged
        self._note(
            f"killed n{self.kill.node} (SIGKILL), leader of shard {self.kill.shard}"
            f" and {len(self.kill.shards) - 1} more,"
            f" after {self.kill.acknowledged / self.plan.messages:.0%} of the acknowledgements"
        )

    def _bring_back(self) -> None:
        if self.kill.at_s and not self.kill.restarted:
            self.kill.restarted = True
            self.cluster.kill(self.kill.node)  # it is dead: this takes its exit status
            self.cluster.start(self.kill.node)
            part = self.ledger.acknowledged / self.plan.messages
            self._note(f"started n{self.kill.node} again at {part:.0%}")

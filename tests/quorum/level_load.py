"""Load at every read level at once: each answer is recorded with what its level promises of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from random import Random

from tests.faults.checker import Violation, check
from tests.faults.history import History, Kind, Outcome
from tests.faults.load import ACCOUNTS, CLIENTS, Load, seen

from mailraft.client import Consistency, MailraftError
from mailraft.client.options import MessageOrder, ReadArgs
from mailraft.cluster.local import LocalCluster
from mailraft.node.interfaces import replica_id

LEVELS = tuple(Consistency)
BOUND_MS = 500
# One worker an account each; the level with most to wait for has most. None: writes.
ROLES = (None, Consistency.LINEARIZABLE, *LEVELS, *LEVELS)
PAGE = 3
PAUSE_S = 0.03
DEADLINE_S = 3.0
# A replica that is named may be cut off, frozen or dead.
PINNED = 0.3
PINNED_DEADLINE_S = 0.4


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run showed."""

    history: History
    answered: Counter[Consistency]  # reads that began when faults had begun
    refused: Counter[Consistency]
    violations: list[Violation]


class LevelLoad(Load):
    """async with LevelLoad(cluster) as load: faults; then `await load.verdict()`."""

    def __init__(self, cluster: LocalCluster, *, seed: int = 1) -> None:
        super().__init__(cluster, seed=seed, workers=len(ROLES) * len(ACCOUNTS))
        self._answered: Counter[Consistency] = Counter()
        self._refused: Counter[Consistency] = Counter()

    @property
    def fewest(self) -> int:
        """Reads that were answered since the first fault, of the level with the fewest."""
        return min(self._answered[level] for level in LEVELS)

    def count_from_here(self) -> None:
        """The first fault begins."""
        self._answered.clear()
        self._refused.clear()

    async def verdict(self) -> Verdict:
        """Stop, read everything as it is in the end, and judge every operation."""
        await self._cluster.wait_ready()
        await self.stop()
        violations = check(self.history, await self.final())
        return Verdict(self.history, self._answered, self._refused, violations)

    # ---- one worker ------------------------------------------------------------------------------

    async def _work(self, number: int) -> None:
        chance = Random(self._seed * 1_000 + number)
        account, role = ACCOUNTS[number % len(ACCOUNTS)], ROLES[number // len(ACCOUNTS)]
        while not self._stop:
            session = chance.randrange(CLIENTS)
            if role is None:
                await self._deliver(account, session)
            else:
                await self._read(role, account, session, chance)
            await asyncio.sleep(PAUSE_S * chance.random() * 2)

    async def _read(self, level: Consistency, account: str, session: int, chance: Random) -> None:
        node = chance.choice(self._cluster.nodes) if chance.random() < PINNED else 0
        args = ReadArgs(consistency=level, deadline_s=PINNED_DEADLINE_S if node else DEADLINE_S)
        operation = self.history.begin(Kind.LIST, account, session, level=level, replica=node)
        if node:
            args["replica"] = replica_id(node, 1)
        if level is Consistency.QUORUM:
            args["replicas"] = chance.randrange(3)  # 0: a majority
        elif level is Consistency.BOUNDED:
            args["max_staleness_ms"] = BOUND_MS
            operation.bound_s = BOUND_MS / 1000
        try:
            page = await self._clients[session].list_messages(
                account, order=MessageOrder.UID_DESC, page_size=PAGE, **args
            )
        except MailraftError as error:
            operation.error, operation.gave_up_s = repr(error), time.monotonic()
            self._refused[level] += 1
            return
        operation.newest_uids = [message.memberships[0].uid for message in page.messages]
        operation.total, operation.age_s = page.total_messages, page.served.age_ms / 1000
        if level is Consistency.QUORUM and page.served.complete:
            operation.age_s = 0.0
        seen(operation, page.state)
        self._answered[level] += 1


def refusals(history: History, level: Consistency) -> Counter[str]:
    """Why reads of a level were not answered."""
    return Counter(
        each.error.partition("(")[0]
        for each in history.operations
        if each.kind is Kind.LIST and each.level is level and each.outcome is Outcome.UNKNOWN
    )

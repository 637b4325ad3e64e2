"""Hedged reads: one that takes longer than 95% of its kind is asked of a second replica, and the
first answer counts (Dean and Barroso, "The Tail at Scale", 2013).

Only reads that any replica may serve come here: nothing in this module knows how to repeat a write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

from mailraft.router.budget import HEDGE_RATIO, HEDGE_RESERVE, Budget
from mailraft.router.latencies import Latencies
from mailraft.router.table import Place
from mailraft.wire import errors

Answer = TypeVar("Answer")

# Below it the second call costs more than the first one's delay.
AFTER_MIN_S = 0.005


class Hedger:
    """Shared by all reads of one client or router."""

    def __init__(self) -> None:
        self.budget = Budget(HEDGE_RATIO, HEDGE_RESERVE)
        self.won = 0  # the second replica was the first to answer
        self._latencies = Latencies()

    def after_s(self, kind: Hashable) -> float | None:
        """A call of this kind begins: how long one replica has it for itself; None: to its end."""
        self.budget.earn()
        p95_s = self._latencies.p95_s(kind)
        return None if p95_s is None else max(p95_s, AFTER_MIN_S)

    def took(self, kind: Hashable, took_s: float) -> None:
        """A call of this kind was answered."""
        self._latencies.took(kind, took_s)

    async def ask(
        self,
        kind: Hashable,
        place: Place,
        ask: Callable[[Place], Coroutine[Any, Any, Answer]],
        spare: Callable[[Place], Place | None],
    ) -> Answer:
        """The first answer of `place` or, after a while, of a spare one as well.

        Raises the error of `place`, once both have failed. What is not needed is cancelled.
        """
        after_s, began_s = self.after_s(kind), _now_s()
        if after_s is None:
            answer = await ask(place)
        else:
            answer = await self._race(after_s, place, ask, spare)
        self.took(kind, _now_s() - began_s)
        return answer

    async def _race(
        self,
        after_s: float,
        place: Place,
        ask: Callable[[Place], Coroutine[Any, Any, Answer]],
        spare: Callable[[Place], Place | None],
    ) -> Answer:
        first = asyncio.ensure_future(ask(place))
        asked = [first]
        try:
            await asyncio.wait(asked, timeout=after_s)
            other = None if first.done() else spare(place)
            if other is None or not self.budget.spend():
                return await first
            asked.append(asyncio.ensure_future(ask(other)))
            open_ = set(asked)
            while open_:
                done, open_ = await asyncio.wait(open_, return_when=asyncio.FIRST_COMPLETED)
                for each in asked:
                    if each in done and not _failed(each):
                        self.won += each is not first
                        return each.result()
            return await first
        finally:
            for each in asked:
                each.add_done_callback(_look)
                each.cancel()


def _failed(task: asyncio.Future[Answer]) -> bool:
    return task.cancelled() or isinstance(task.exception(), errors.MailraftError)


def _look(task: asyncio.Future[Answer]) -> None:
    """What the loser says is of no interest."""
    if not task.cancelled():
        task.exception()


def _now_s() -> float:
    return asyncio.get_running_loop().time()

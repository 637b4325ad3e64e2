"""Hedged reads: one that takes longer than 95% of its kind is asked of a second replica, and the
first answer counts (Dean and Barroso, "The Tail at Scale", 2013).

Only reads that any replica may serve come here: nothing in this module knows how to repeat a write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

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
        def begin() -> asyncio.Task[Answer] | None:
            other = spare(place)
            if other is None or not self.budget.spend():
                return None
            return asyncio.ensure_future(ask(other))

        second = _Second(begin)
        timer = asyncio.get_running_loop().call_later(after_s, second.start)
        try:
            return await ask(place)
        except asyncio.CancelledError:
            if not second.has_won():
                raise
            answer = second.result()
        except errors.MailraftError:
            timer.cancel()
            if not await second.answers():
                raise
            answer = second.result()
        finally:
            timer.cancel()
            second.leave()
        self.won += 1
        return answer


class _Second(Generic[Answer]):
    """What may be asked beside a call that its caller's own task waits for: in a task of its own
    each call would cost more than its place in a batch. Its answer ends the wait for the first, as
    asyncio.timeout ends a wait.
    """

    __slots__ = ("_begin", "_caller", "_cancelling", "_ended", "_first_waits", "_task")

    def __init__(self, begin: Callable[[], asyncio.Task[Answer] | None]) -> None:
        caller = asyncio.current_task()
        assert caller is not None
        self._begin, self._caller, self._cancelling = begin, caller, caller.cancelling()
        self._task: asyncio.Task[Answer] | None = None
        self._first_waits = True
        self._ended = False  # the wait for the first, by this

    def start(self) -> None:
        """The first takes long."""
        self._task = self._begin()
        if self._task is not None:
            self._task.add_done_callback(self._done)

    def has_won(self) -> bool:
        """Whether the wait for the first was ended by this, and by nobody else."""
        ended, self._ended = self._ended, False
        return ended and self._caller.uncancel() <= self._cancelling

    async def answers(self) -> bool:
        """The first has failed: whether this, if it was asked, has an answer in the end."""
        self._first_waits = False
        if self._task is None:
            return False
        await asyncio.wait((self._task,))
        return not _failed(self._task)

    def result(self) -> Answer:
        assert self._task is not None
        return self._task.result()

    def leave(self) -> None:
        """It is over; what is not needed is cancelled."""
        self._first_waits = False
        if self._ended:  # too late: the first was there
            self._caller.uncancel()
        if self._task is not None:
            self._task.add_done_callback(_look)
            self._task.cancel()

    def _done(self, task: asyncio.Task[Answer]) -> None:
        # Called a turn after the task has ended: the first may be there by then.
        if self._first_waits and not _failed(task):
            self._ended = True
            self._caller.cancel()


def _failed(task: asyncio.Task[Answer]) -> bool:
    return task.cancelled() or isinstance(task.exception(), errors.MailraftError)


def _look(task: asyncio.Task[Answer]) -> None:
    """What the loser says is of no interest."""
    if not task.cancelled():
        task.exception()


def _now_s() -> float:
    return asyncio.get_running_loop().time()

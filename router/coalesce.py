"""Many callers, few calls: items bound for one node travel together.

A gRPC call costs a Python server about 0.3 ms whatever it carries. An idle lane sends at once (what
is submitted in one turn of the event loop goes together); while its calls are in flight, what
arrives forms the next one. So a batch grows with the load and no item waits for a timer. What was
answered is taken by its callers before the next call goes: what they ask next goes along.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mailraft.router.failures import NoAnswerError
from mailraft.wire import errors, limits

Item = TypeVar("Item")
Result = TypeVar("Result")

# Two calls: while the server works on one, the next is on its way.
CALLS_IN_FLIGHT_MAX = 2
BATCH_ITEMS_MAX = limits.DELIVERIES_PER_CALL_MAX
BATCH_BYTES_MAX = 1024 * 1024
# Recipients of a DeliverMessages call, and room for small parts in any other.
BATCH_UNITS_MAX = 4_096
# What waits here for its turn; past it callers are told to come back.
WAITING_ITEMS_MAX = 8_192
WAITING_BYTES_MAX = 64 * 1024 * 1024
# The call's own deadline passes first and tells more.
DEADLINE_GRACE_S = 0.05


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    size_bytes: int
    units: int
    deadline_s: float
    done: asyncio.Future[Result]
    sent: bool = False


@dataclass(slots=True)
class LaneCounts:
    """For metrics and tests."""

    calls: int = 0
    items: int = 0
    largest: int = 0
    refused: int = 0


@dataclass(slots=True)
class Coalescer(Generic[Item, Result]):
    """One lane to one node.

    `send` gets items and the latest of their deadlines, and answers in the order of the items. When
    it raises, every item of its batch gets that error. While a call is on its way another goes
    beside it once it carries as much: halves would cost twice as much, and one caller or a few
    do not wait for each other.
    """

    send: Callable[[Sequence[Item], float], Awaitable[Sequence[Result]]]
    items_max: int = BATCH_ITEMS_MAX
    bytes_max: int = BATCH_BYTES_MAX
    calls_max: int = CALLS_IN_FLIGHT_MAX
    counts: LaneCounts = field(default_factory=LaneCounts)
    _queue: deque[_Waiting[Item, Result]] = field(default_factory=deque)
    _waiting_bytes: int = 0
    _in_flight: int = 0
    _items_in_flight: int = 0
    _scheduled: bool = False
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    # What has no result yet, as it came, and the one timer for all: it goes off for the first
    # deadline. A timer for each item would cost it more than its place in a batch.
    _open: dict[_Waiting[Item, Result], None] = field(default_factory=dict)
    _timer: asyncio.TimerHandle | None = None
    _timer_s: float = math.inf

    @property
    def idle(self) -> bool:
        return not self._queue and not self._in_flight and not self._scheduled

    @property
    def load(self) -> int:
        """Items that wait, and calls in flight."""
        return len(self._queue) + self._in_flight

    async def submit(
        self, item: Item, size_bytes: int, deadline_s: float, *, units: int = 1
    ) -> Result:
        """The result of one item; deadline_s is on the event loop's clock.

        Raises OverloadedError when too much waits already, DeadlineExceededError when the time was
        over before it was sent (nothing was done), NoAnswerError when it was over later, else what
        `send` raises.
        """
        if (
            len(self._queue) >= WAITING_ITEMS_MAX
            or self._waiting_bytes + size_bytes > WAITING_BYTES_MAX
        ):
            self.counts.refused += 1
            raise errors.OverloadedError(f"{len(self._queue)} items wait for this node")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()
        waiting = _Waiting(item, size_bytes, units, deadline_s, done)
        self._queue.append(waiting)
        self._waiting_bytes += size_bytes
        self._schedule()
        self._open[waiting] = None
        if deadline_s < self._timer_s:
            self._watch(deadline_s)
        try:
            return await done
        finally:
            del self._open[waiting]

    def _watch(self, deadline_s: float) -> None:
        """Have what is too late by this deadline ended."""
        if self._timer is not None:
            self._timer.cancel()
        at = asyncio.get_running_loop().call_at
        self._timer_s, self._timer = deadline_s, at(deadline_s + DEADLINE_GRACE_S, self._late)

    def _late(self) -> None:
        passed_s, self._timer_s, self._timer = self._timer_s, math.inf, None
        for waiting in self._open:
            if waiting.done.done():
                continue
            if waiting.deadline_s <= passed_s:
                waiting.done.set_exception(
                    NoAnswerError("no answer in time")
                    if waiting.sent
                    else errors.DeadlineExceededError(f"{self.load} items were before it")
                )
            else:
                self._timer_s = min(self._timer_s, waiting.deadline_s)
        if self._timer_s < math.inf:
            self._watch(self._timer_s)

    async def close(self) -> None:
        """Fail what waits, and wait for what is in flight."""
        while self._queue:
            waiting = self._queue.popleft()
            if not waiting.done.done():
                waiting.done.set_exception(errors.ShuttingDownError())
        self._waiting_bytes = 0
        if self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_s = None, math.inf

    def _schedule(self) -> None:
        # Not at once: whoever is ready in this turn of the loop goes along.
        if self._queue and not self._scheduled and self._may_start():
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    def _may_start(self) -> bool:
        as_many = len(self._queue) * self._in_flight >= self._items_in_flight
        return self._in_flight < self.calls_max and as_many

    def _start(self) -> None:
        self._scheduled = False
        while self._queue and self._may_start():
            batch = self._take()
            if batch:
                self._in_flight += 1
                self._items_in_flight += len(batch)
                task = asyncio.get_running_loop().create_task(self._carry(batch))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _take(self) -> list[_Waiting[Item, Result]]:
        batch: list[_Waiting[Item, Result]] = []
        size_bytes = units = 0
        now_s = asyncio.get_running_loop().time()
        while self._queue and len(batch) < self.items_max:
            first = self._queue[0]
            too_much = (
                size_bytes + first.size_bytes > self.bytes_max
                or units + first.units > BATCH_UNITS_MAX
            )
            if batch and too_much:
                break
            self._queue.popleft()
            self._waiting_bytes -= first.size_bytes
            if first.done.done():  # its caller has gone
                continue
            if first.deadline_s <= now_s:
                first.done.set_exception(errors.DeadlineExceededError())
                continue
            size_bytes += first.size_bytes
            units += first.units
            first.sent = True
            batch.append(first)
        return batch

    async def _carry(self, batch: list[_Waiting[Item, Result]]) -> None:
        self.counts.calls += 1
        self.counts.items += len(batch)
        self.counts.largest = max(self.counts.largest, len(batch))
        try:
            deadline_s = max(waiting.deadline_s for waiting in batch)
            results = await self.send([waiting.item for waiting in batch], deadline_s)
            if len(results) != len(batch):
                raise errors.InternalError(f"{len(results)} results for {len(batch)} items")
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.done.done():
                    waiting.done.set_result(result)
        except errors.MailraftError as error:
            self._fail(batch, error)
        except asyncio.CancelledError:
            self._fail(batch, errors.CommitUnknownError("the call was cancelled"))
            raise
        except Exception as error:  # noqa: BLE001 - a bug of ours must not leave callers waiting
            self._fail(batch, errors.InternalError(f"{type(error).__name__}: {error}"))
        finally:
            self._in_flight -= 1
            self._items_in_flight -= len(batch)
            self._schedule()

    def _fail(self, batch: list[_Waiting[Item, Result]], error: errors.MailraftError) -> None:
        for waiting in batch:
            if not waiting.done.done():
                # Each its own: raising one object in many tasks would grow its traceback.
                waiting.done.set_exception(copy.copy(error))

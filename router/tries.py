"""One request's tries on an event loop: which node next, how long, and when. The rules are those of
mailraft.router.attempts.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext

from mailraft.router import places
from mailraft.router.attempts import Attempts, Goal, Target
from mailraft.router.fleet import Fleet
from mailraft.router.table import Place
from mailraft.v1 import error_pb2
from mailraft.wire import errors


class Tries:
    """Use: place = next(); try it, with patience(place); after an error await failed(place, error),
    which may raise.
    """

    def __init__(self, fleet: Fleet, goal: Goal, deadline_s: float) -> None:
        self._fleet, self._goal, self._deadline_s = fleet, goal, deadline_s
        self._attempts = Attempts(goal, fleet.extra)

    @property
    def first(self) -> bool:
        """Nothing was tried yet."""
        return not self._attempts.count

    def next(self) -> Place:
        """The node to try. Raises when the map has none."""
        place = self._choose()
        if place is None:
            self._attempts.tried.clear()
            place = self._choose()
        if place is None:
            raise self._attempts.nowhere()
        return place

    def spare(self, place: Place) -> Place | None:
        """Another one, to be asked at the same time; the round has tried it then."""
        return self._attempts.spare(self._choose, place)

    def timeout_s(self) -> float:
        """How long the try may take."""
        return self._attempts.timeout_s(max(0.0, self._remaining_s()))

    def patience(self, place: Place) -> AbstractAsyncContextManager[None]:
        """Around the try: it ends as soon as another node is known to lead in place of a silent
        one.
        """
        if self._goal.target is not Target.LEADER:
            return nullcontext()
        return self._fleet.seeker.patience(self._goal.shard, place)

    def succeeded(self, place: Place) -> None:
        if self._goal.target is Target.LEADER:
            self._fleet.table.confirm(self._goal.shard, place)

    async def failed(self, place: Place, error: errors.MailraftError) -> None:
        """Return when it is time for the next try; else raise what the caller shall see."""
        attempts = self._attempts
        attempts.failed(
            place.address, error, self._remaining_s(), lambda: self._choose() is not None
        )
        self._fleet.table.failed(self._goal.shard, place.address, error)
        if isinstance(error, errors.StaleRouteError):
            await self._refresh(error)
        if self._choose() is None:
            pause_s = attempts.next_round(error)
            await asyncio.sleep(max(0.0, min(pause_s, self._remaining_s())))
        if self._remaining_s() <= 0:
            raise attempts.last(error)

    # ---- inside ----------------------------------------------------------------------------------

    def _remaining_s(self) -> float:
        return self._deadline_s - asyncio.get_running_loop().time()

    def _choose(self) -> Place | None:
        fleet = self._fleet
        return places.choose(
            self._attempts,
            fleet.table,
            fleet.loads,
            suspect=lambda place: fleet.node(place).suspect,
            zone=fleet.zone,
        )

    async def _refresh(self, error: errors.MailraftError) -> None:
        self._fleet.stale_routes += 1
        detail = error.detail
        told = detail.epoch if isinstance(detail, error_pb2.StaleRoute) else 0
        known = self._fleet.table.epoch
        if told == 0 or told > known:
            try:
                async with asyncio.timeout(max(0.0, self._remaining_s())):
                    await self._fleet.refresh()
            except TimeoutError:
                return
            if self._fleet.table.epoch > known:
                self._attempts.tried.clear()

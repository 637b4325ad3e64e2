"""A leader that is silent: its peers are asked who leads, and calls to it end as soon as one tells.

A partition or a frozen process is silence, and an election is over long before a call's time is.
What is asked is the cluster map, whose hints tell the leaders that a node knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from mailraft.router.failures import NoAnswerError
from mailraft.router.methods import METHODS
from mailraft.router.pool import Pool
from mailraft.router.table import Place, RoutingTable, WrongClusterError
from mailraft.v1 import cluster_pb2
from mailraft.wire import errors

# Longer than a commit takes, not than an election: followers hold one after 0.4 s without a beat.
SILENT_S = 0.4
# One round of questions for all calls that wait for the same leader; then a rest, that doubles: it
# may be only slow.
ASK_TIMEOUT_S = 0.3
REST_FIRST_S = 0.1
REST_MAX_S = 1.0

_Key = tuple[int, str]  # a shard, and the address of its leader

_GET_MAP = METHODS["/mailraft.v1.ClusterService/GetClusterMap"]


def rivals(table: RoutingTable, shard: int, silent: str) -> list[str]:
    """The addresses that know whether another leads in place of a silent one: its fellow voters.

    None for a map that stands in for routers: they pass calls on, and what they know of the cluster
    is not for who shall go through them.
    """
    if not table.epoch:
        return []
    places = table.topology.places(shard)
    return [each.address for each in places if each.voter and each.address != silent]


def replaced(table: RoutingTable, shard: int, silent: str) -> bool:
    """Whether another node is known to lead."""
    leader = table.leader(shard)
    return leader is not None and leader.address != silent


def silence(silent: str) -> NoAnswerError:
    """How a call to a leader ends that was replaced."""
    return NoAnswerError(f"{silent} is silent, and does not lead any more")


class Seeker:
    """Shared by all calls of a Fleet."""

    def __init__(
        self,
        table: RoutingTable,
        pool: Pool,
        install: Callable[[cluster_pb2.ClusterMap], Awaitable[None]],
    ) -> None:
        self._table, self._pool, self._install = table, pool, install
        # Calls by leader, in the order in which they began: each with when it will have waited for
        # long. One timer a leader, for the first of them.
        self._calls: dict[_Key, dict[_Patience, float]] = {}
        self._timers: dict[_Key, asyncio.TimerHandle] = {}
        # Those that have waited for so long that the leader's peers are asked.
        self._waiting: dict[_Key, set[_Patience]] = {}
        self._seeking: set[asyncio.Task[None]] = set()

    def patience(self, shard: int, place: Place) -> AbstractAsyncContextManager[None]:
        """Around a call to the leader of a shard: NoAnswerError once another node leads instead."""
        return _Patience(self, (shard, place.address))

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for task in self._seeking:
            task.cancel()

    def begin(self, key: _Key, call: _Patience) -> None:
        """A call waits for its leader."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + SILENT_S
        self._calls.setdefault(key, {})[call] = until_s
        if key not in self._timers:
            self._timers[key] = loop.call_at(until_s, self._silent, key, until_s)

    def leave(self, key: _Key, call: _Patience) -> None:
        """It waits no more."""
        self._calls[key].pop(call, None)
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.discard(call)

    def _silent(self, key: _Key, now_s: float) -> None:
        """The peers are asked for those calls that have waited until now."""
        del self._timers[key]
        calls = self._calls[key]
        due = [call for call, until_s in calls.items() if until_s <= now_s]
        for call in due:
            del calls[call]
            self._join(key, call)
        for until_s in calls.values():
            at = asyncio.get_running_loop().call_at
            self._timers[key] = at(until_s, self._silent, key, until_s)
            break

    def _join(self, key: _Key, call: _Patience) -> None:
        if key in self._waiting:
            self._waiting[key].add(call)
            return
        self._waiting[key] = {call}
        task = asyncio.get_running_loop().create_task(self._seek(*key))
        self._seeking.add(task)
        task.add_done_callback(self._seeking.discard)

    async def _seek(self, shard: int, silent: str) -> None:
        """Until another leader is known, or nobody waits."""
        others = rivals(self._table, shard, silent)
        rest_s = REST_FIRST_S
        while self._waiting[shard, silent]:
            await asyncio.gather(*map(self._ask, others))
            if replaced(self._table, shard, silent):
                break
            await asyncio.sleep(rest_s)
            rest_s = min(2 * rest_s, REST_MAX_S)
        for call in self._waiting.pop((shard, silent)):
            call.end()

    async def _ask(self, address: str) -> None:
        request = cluster_pb2.GetClusterMapRequest(known_epoch=self._table.epoch)
        try:
            response = await self._pool.node(address).unary(_GET_MAP, request, ASK_TIMEOUT_S, ())
            assert isinstance(response, cluster_pb2.GetClusterMapResponse)
            await self._install(response.map)
        except (errors.MailraftError, WrongClusterError, ValueError):
            return  # another may tell


class _Patience(AbstractAsyncContextManager[None]):
    """One call's wait. Ends it as asyncio.timeout does, without a timer and a timeout of its own:
    both together would cost a delivery more than its way through the rest of the router.
    """

    __slots__ = ("_cancelling", "_ended", "_key", "_seeker", "_task")

    def __init__(self, seeker: Seeker, key: _Key) -> None:
        self._seeker, self._key = seeker, key
        self._task: asyncio.Task[object] | None = None
        self._cancelling, self._ended = 0, False

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self._seeker.begin(self._key, self)

    def end(self) -> None:
        """Another node leads."""
        assert self._task is not None
        self._ended = True
        self._task.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._task is not None
        self._seeker.leave(self._key, self)
        cancelled_by_us = self._ended and self._task.uncancel() <= self._cancelling
        if cancelled_by_us and kind is asyncio.CancelledError:
            raise silence(self._key[1]) from None

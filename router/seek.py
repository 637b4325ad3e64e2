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

_GET_MAP = METHODS["/mailraft.v1.ClusterService/GetClusterMap"]


def rivals(table: RoutingTable, shard: int, silent: str) -> list[str]:
    """The addresses that know whether another leads in place of a silent one: its fellow voters."""
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
        self._waiting: dict[tuple[int, str], set[asyncio.Timeout]] = {}
        self._seeking: set[asyncio.Task[None]] = set()

    def patience(self, shard: int, place: Place) -> AbstractAsyncContextManager[None]:
        """Around a call to the leader of a shard: NoAnswerError once another node leads instead."""
        return _Patience(self, (shard, place.address))

    def close(self) -> None:
        for task in self._seeking:
            task.cancel()

    def join(self, key: tuple[int, str], limit: asyncio.Timeout) -> None:
        """A call has waited for so long that the leader's peers are asked."""
        if key in self._waiting:
            self._waiting[key].add(limit)
            return
        self._waiting[key] = {limit}
        task = asyncio.get_running_loop().create_task(self._seek(*key))
        self._seeking.add(task)
        task.add_done_callback(self._seeking.discard)

    def leave(self, key: tuple[int, str], limit: asyncio.Timeout) -> None:
        """It waits no more."""
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.discard(limit)

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
        for limit in self._waiting.pop((shard, silent)):
            limit.reschedule(asyncio.get_running_loop().time())

    async def _ask(self, address: str) -> None:
        request = cluster_pb2.GetClusterMapRequest(known_epoch=self._table.epoch)
        try:
            response = await self._pool.node(address).unary(_GET_MAP, request, ASK_TIMEOUT_S, ())
            assert isinstance(response, cluster_pb2.GetClusterMapResponse)
            await self._install(response.map)
        except (errors.MailraftError, WrongClusterError, ValueError):
            return  # another may tell


class _Patience(AbstractAsyncContextManager[None]):
    """One call's wait. A class, since a generator costs each call three times as much."""

    __slots__ = ("_key", "_limit", "_seeker", "_timer")

    def __init__(self, seeker: Seeker, key: tuple[int, str]) -> None:
        self._seeker, self._key = seeker, key
        self._limit = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(SILENT_S, self._seeker.join, self._key, self._limit)
        await self._limit.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._timer is not None
        self._timer.cancel()
        self._seeker.leave(self._key, self._limit)
        try:
            await self._limit.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise silence(self._key[1]) from None

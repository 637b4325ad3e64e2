"""A cluster of real processes whose nodes are killed while it is used, one at a time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

import account_snapshot
from grpc_driver import Loop
from mailraft.client import AsyncClient
from mailraft.cluster.local import LocalCluster, LocalOptions
from plain_stubs import Doors

T = TypeVar("T")

DEADLINE_S = 60.0  # of a call, with all its retries
UP_S = (0.2, 1.0)  # between the end of a fault and the next
DOWN_S = (0.2, 2.0)


class KilledCluster:
    """Implements grpc_driver.Server. Its clocks are the machine's, its upkeep its own."""

    def __init__(self, folder: Path, *, shards: int, seed: int) -> None:
        self.kills = 0
        self._random = random.Random(seed)
        self._loop = Loop()
        self._cluster = LocalCluster(folder, LocalOptions(shards=shards))
        try:
            self.wait(self._start())
        except BaseException:
            self.wait(self._cluster.stop())
            raise

    @property
    def client(self) -> AsyncClient:
        return self._client

    def wait(self, call: Coroutine[Any, Any, T]) -> T:
        return self._loop.wait(call)

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def at(self, time_ms: int) -> None:
        """Time passes by itself here."""

    def work(self) -> int:
        return 0

    def audit(self) -> None:
        """Fails if killing has ended: then nothing is tested any more."""
        if self._killing.done():
            self._killing.result()
            raise AssertionError("nobody is killed any more")

    def check_replicas(self, accounts: Iterable[str]) -> None:
        """Every replica shows the same of each account, at the newest state there is. Nobody is
        killed meanwhile.
        """
        self.wait(self._check_replicas(list(accounts)))

    def close(self) -> None:
        """Stop everything. Raises what killing ended with."""
        self.wait(self._stop())
        self._loop.close()

    async def _start(self) -> None:
        await self._cluster.launch()
        await self._cluster.wait_ready()
        self._client = self._cluster.client(deadline_s=DEADLINE_S)
        self._whole = asyncio.Lock()  # held by who needs all nodes, or takes one away
        self._killing = asyncio.create_task(self._kill_now_and_then())

    async def _stop(self) -> None:
        self._killing.cancel()
        await asyncio.wait([self._killing])
        await self._client.close()
        await self._cluster.stop()

    async def _kill_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(self._random.uniform(*UP_S))
            async with self._whole:
                leaders = list((await self._cluster.leaders()).values())  # tidy: a plain dict
                node = self._random.choice([*leaders, *self._cluster.nodes])
                self._cluster.kill(node)
                self.kills += 1
                await asyncio.sleep(self._random.uniform(*DOWN_S))
                self._cluster.start(node)
                await self._cluster.wait_ready()

    async def _check_replicas(self, accounts: list[str]) -> None:
        async with self._whole, Doors(self._cluster) as doors:
            for account in accounts:
                located = await self._client.locate(account)
                await account_snapshot.take(doors.router, located.shard, account)

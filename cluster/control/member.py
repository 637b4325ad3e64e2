"""A storage node as a member of its cluster: the node, its map kept new, and the controller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from mailraft.cluster.control.admin import Admin
from mailraft.cluster.control.driver import Controller
from mailraft.cluster.control.following import MapFollower
from mailraft.cluster.control.jobs import Jobs
from mailraft.cluster.control.metagroup import MetaGroup
from mailraft.cluster.errors import TooOldError
from mailraft.cluster.maps import ClusterMaps
from mailraft.cluster.meta.machine import MetaStateMachine
from mailraft.node.server import NodeOptions, NodeServer
from mailraft.node.services.base import Service


class Member:
    """Implements compose.Server. `failed` is done without a reason once the node has left."""

    def __init__(self, options: NodeOptions, maps: ClusterMaps) -> None:
        self.node = NodeServer(
            options=options, maps=maps, meta=MetaStateMachine(), extra=self._services
        )
        self.failed, self._address = self.node.failed, options.listen_address
        node, credentials = self.node, options.credentials
        self._meta = MetaGroup(maps, lambda: node.meta, wall_ms=node.wall_ms)
        self.controller = Controller(maps, self._meta, credentials, now_s=node.now_s)
        self._follower = MapFollower(
            maps, self._meta, credentials, now_s=node.now_s, ended=self._leave
        )
        self._tasks: list[asyncio.Task[None]] = []

    def checks(self) -> Mapping[str, str]:
        return self.node.checks()

    async def start(self) -> str:
        await self._follower.catch_up()
        if self.failed.done():  # it has left, or is too old: there is nothing to serve
            return self._address
        address = await self.node.start()
        for run in (self._follower.run, self.controller.run):
            self._tasks.append(self._begin(run))
        return address

    async def stop(self, grace_s: float) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.node.stop(grace_s)

    def _services(self) -> Sequence[Service]:
        jobs = Jobs(self._meta, self.controller, now_s=self.node.now_s)
        return [Admin(self._meta, self.controller, jobs).service(), jobs.service()]

    def _begin(self, run: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Task[None]:
        task = asyncio.create_task(run())
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A bug in one of them must not go unseen: the process ends with it."""
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.failed.done():
            self.failed.set_exception(error)

    def _leave(self, error: TooOldError | None) -> None:
        if self.failed.done():
            return
        if error is None:
            self.failed.set_result(None)
        else:
            self.failed.set_exception(error)

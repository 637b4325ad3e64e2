"""How new what the controller knows is, for who needs it no older than his call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import cast

from mailraft.cluster.control.driver import Controller
from mailraft.cluster.control.metagroup import MetaGroup
from mailraft.cluster.control.observed import Observed
from mailraft.cluster.maps import ClusterMaps
from mailraft.node.interfaces import Peer
from mailraft.v1 import admin_pb2, cluster_pb2
from mailraft.wire.credentials import Insecure


class _Maps:
    def peers(self) -> Sequence[Peer]:
        return ()


class _Meta:
    """A meta group whose next read waits for `go`."""

    term, leads = 1, True

    def __init__(self) -> None:
        self.reading, self.go = asyncio.Event(), asyncio.Event()

    async def read(self, *, deadline_s: float) -> None:
        self.reading.set()
        await self.go.wait()


class _Controller(Controller):
    """Sees a cluster whose map has the epoch `epoch` now."""

    epoch = 0

    def _look(self, view: object) -> Observed:
        told = cluster_pb2.ClusterMap(epoch=self.epoch)
        return Observed(told, admin_pb2.Settings(), (), {}, {})


def _controller(meta: _Meta) -> _Controller:
    maps, group = cast(ClusterMaps, _Maps()), cast(MetaGroup, meta)
    return _Controller(maps, group, Insecure(), now_s=time.monotonic)


async def test_a_look_is_one_that_began_after_the_call() -> None:
    """The one that is under way does not count: it may have asked before a node joined."""
    meta = _Meta()
    controller = _controller(meta)
    tick = asyncio.create_task(controller._tick())
    await meta.reading.wait()
    looked = asyncio.create_task(controller.look(deadline_s=time.monotonic() + 5))
    await asyncio.sleep(0)
    meta.go.set()
    await tick
    await asyncio.sleep(0.02)
    assert controller.seen is not None
    assert not looked.done()
    controller.epoch = 7
    await controller._tick()
    seen = await looked
    assert seen is not None
    assert seen.map.epoch == 7


async def test_a_look_that_never_ends_is_given_up() -> None:
    """Nothing old is told instead."""
    meta = _Meta()
    meta.go.set()
    controller = _controller(meta)
    await controller._tick()
    assert controller.seen is not None
    assert await controller.look(deadline_s=time.monotonic() + 0.05) is None

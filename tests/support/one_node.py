"""A whole storage node in this process: store, consensus with one voter, services, a real port.

Its wall clock is the test's, and upkeep is done when the test asks for it. Nothing in it moves but
while somebody waits for a call.
"""

from __future__ import annotations

import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

from grpc_driver import GrpcDriver, Loop
from mailbox_audit import audit
from mailbox_driver import START_MS
from mailraft.client import AsyncClient
from mailraft.cluster import mapfile
from mailraft.cluster.maps import ClusterMaps
from mailraft.node.engine import keys
from mailraft.node.housekeeper import Housekeeper
from mailraft.node.mailstore import chores
from mailraft.node.server import NodeOptions, NodeServer
from mailraft.v1 import cluster_pb2
from mailraft.wire.credentials import Insecure

T = TypeVar("T")

SHARD = 1
DEADLINE_S = 20.0
TURNS_MAX = 10_000  # of upkeep that is due at one time: past it it never ends
MEMORY = Path("/dev/shm")  # what a flush costs is no part of the contract


class _Node(NodeServer):
    """With a clock that is set."""

    clock_ms = START_MS

    def wall_ms(self) -> int:
        return self.clock_ms


class OneNode:
    """Implements grpc_driver.Server."""

    def __init__(self) -> None:
        parent = MEMORY if MEMORY.is_dir() else None
        self._folder = tempfile.TemporaryDirectory(prefix="mailraft-node-", dir=parent)
        self._latest_ms = START_MS
        self._loop = Loop()
        self._client, self._node = self.wait(self._start())

    @property
    def client(self) -> AsyncClient:
        return self._client

    def driver(self, kind: type[GrpcDriver] = GrpcDriver) -> GrpcDriver:
        """A new one, with accounts of its own, at the latest time that any had."""
        self._node.clock_ms = self._latest_ms
        return kind(self)

    def wait(self, call: Coroutine[Any, Any, T]) -> T:
        return self._loop.wait(call)

    def now_ms(self) -> int:
        return self._node.clock_ms

    def at(self, time_ms: int) -> None:
        self._node.clock_ms = time_ms
        self._latest_ms = max(self._latest_ms, time_ms)

    def work(self) -> int:
        return self.wait(self._work())

    def audit(self) -> None:
        """Of all accounts that ever were on this node."""
        store = self._node._store
        assert store is not None
        view = store.view(SHARD)
        found = set()
        for key, _ in view.scan(keys.blob(0, 0), keys.request_bucket(0)):
            place = keys.U64.unpack(key[3:11])[0], keys.U32.unpack(key[11:])[0]
            if store.body(SHARD, *place) is not None:
                found.add(place)
        free = keys.free_body(0)[:3]
        found |= {keys.free_body_of(key)[1:] for key, _ in view.scan(free, keys.after(free))}
        audit(view, found)

    def close(self) -> None:
        """Stop it and remove its folder."""
        self.wait(self._stop())
        self._loop.close()
        self._folder.cleanup()

    async def _start(self) -> tuple[AsyncClient, _Node]:
        # The port is known once it listens, and the map tells it then.
        only = cluster_pb2.Node(id=1, name="n1", address="127.0.0.1:0", weight_milli=1000)
        found = mapfile.make([only], 1)
        node = _Node(
            options=NodeOptions(
                data_dir=Path(self._folder.name) / "data",
                listen_address="127.0.0.1:0",
                credentials=Insecure(),
                registry=CollectorRegistry(),
            ),
            maps=ClusterMaps(found, 1),
        )
        found.nodes[0].address = await node.start()
        assert node._keeping is not None
        node._keeping.cancel()
        address = found.nodes[0].address
        return AsyncClient(address, insecure=True, deadline_s=DEADLINE_S), node

    async def _stop(self) -> None:
        await self._client.close()
        await self._node.stop(0.1)

    async def _work(self) -> int:
        node = self._node
        keeper = Housekeeper(
            node.replicas, now_s=node.now_s, wall_ms=node.wall_ms, settle=node.settle
        )
        for turns in range(TURNS_MAX):
            await keeper.turn()
            views = [replica.view for replica in node.replicas()]
            if not any(chores.due_commands(view, node.wall_ms(), 1) for view in views):
                return turns
        raise AssertionError("work that is due never ends")

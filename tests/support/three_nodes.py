"""Three real nodes in this process, on the test's loop: gRPC, RocksDB, consensus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from mailraft.client import AsyncClient
from mailraft.cluster import mapfile, ports
from mailraft.cluster.maps import ClusterMaps
from mailraft.node.consensus.settings import Settings
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import Applied, Effect, Entry, Put
from mailraft.node.metrics import SnapshotMetrics
from mailraft.node.server import NodeOptions, NodeServer
from mailraft.v1 import cluster_pb2
from mailraft.wire.credentials import Insecure

SHARD = 1
CAUGHT_UP_S = 20.0


class Nodes:
    """Three nodes with one shard, on this loop."""

    def __init__(
        self, folder: Path, settings: Settings | None = None, *, slow_call_ms: int = 0
    ) -> None:
        self._folder, self._settings = folder, settings or Settings()
        self._slow_call_ms = slow_call_ms
        nodes = [
            cluster_pb2.Node(
                id=number, name=f"n{number}", address=f"{ports.LOOPBACK}:{port}", weight_milli=1000
            )
            for number, port in enumerate(ports.choose(3), 1)
        ]
        self.map = mapfile.make(nodes, 1)
        self.map.ClearField("meta")  # a file that does not change
        self.running: dict[int, NodeServer] = {}
        self.registries: dict[int, CollectorRegistry] = {}

    def folder(self, number: int) -> Path:
        """Where a node keeps everything."""
        return self._folder / f"n{number}"

    async def start(self, number: int) -> None:
        """Start one, or start it again."""
        self.registries[number] = CollectorRegistry()
        node = NodeServer(
            options=NodeOptions(
                data_dir=self.folder(number),
                listen_address=self.map.nodes[number - 1].address,
                credentials=Insecure(),
                consensus=self._settings,
                registry=self.registries[number],
                slow_call_ms=self._slow_call_ms,
            ),
            maps=ClusterMaps(self.map, number),
        )
        await node.start()
        self.running[number] = node

    async def stop(self, number: int) -> None:
        """Stop one in good order."""
        await self.running.pop(number).stop(0.1)

    @property
    def leader(self) -> int:
        """The node that leads; 0: none."""
        for number, node in self.running.items():
            if next(iter(node.replicas())).leadership.leading:
                return number
        return 0

    def applied(self, number: int) -> tuple[int, int, bytes]:
        """Index, term and digest of what a node has applied."""
        return self.store(number).applied(SHARD)

    def store(self, number: int) -> Store:
        """Of a running node."""
        store = self.running[number]._store
        assert store is not None
        return store

    def base_index(self, number: int) -> int:
        """Where a node's log begins."""
        return self.store(number).load(SHARD).base.index

    def metrics(self) -> list[SnapshotMetrics]:
        """Of the senders of all running nodes."""
        senders = [node._snapshots for node in self.running.values()]
        return [sender.metrics for sender in senders if sender is not None]

    def alike(self) -> bool:
        """Every running node has applied the same, to the last byte."""
        return len({self.applied(number) for number in self.running}) == 1

    def client(self) -> AsyncClient:
        """Of the running nodes."""
        return AsyncClient(self.map.nodes[next(iter(self.running)) - 1].address, insecure=True)


async def until(condition: Callable[[], bool], within_s: float = CAUGHT_UP_S) -> None:
    """Wait for it."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110  # nothing tells a test of it
            await asyncio.sleep(0.02)


async def deliver(mail: AsyncClient, count: int) -> None:
    """One after the other."""
    for number in range(count):
        await mail.deliver(b"Subject: %d\r\n\r\n" % number, to=["alice"])


@asynccontextmanager
async def all_up(folder: Path, messages: int = 0) -> AsyncIterator[Nodes]:
    """Three nodes of which one leads; alice has so many messages on each, if any."""
    found = Nodes(folder)
    try:
        for number in (1, 2, 3):
            await found.start(number)
        await until(lambda: found.leader != 0)
        if messages:
            async with found.client() as mail:
                await mail.create_account("alice")
                await deliver(mail, messages)
            await until(found.alike)
        yield found
    finally:
        for number in list(found.running):
            await found.stop(number)


def break_apply(nodes: Nodes, number: int) -> None:
    """From now on this node's state machine writes one byte wrong in each entry that writes."""
    replica = next(iter(nodes.running[number].replicas()))
    machine = replica.machine

    class Broken:
        encode = staticmethod(machine.encode)

        @staticmethod
        def apply(view: object, entry: Entry) -> Applied:
            done = machine.apply(view, entry)  # type: ignore[arg-type]
            effects: list[Effect] = list(done.effects)
            for at, effect in enumerate(effects):
                if isinstance(effect, Put) and effect.value:
                    flipped = bytes((effect.value[-1] ^ 1,))
                    effects[at] = Put(effect.key, effect.value[:-1] + flipped)
                    break
            return Applied(tuple(effects), done.replies)

    replica.machine = Broken()

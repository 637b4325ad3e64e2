"""A network between nodes that can be cut and slowed down: a TCP proxy for every pair of them.

Each node is told to reach its peers by proxies; clients and the router have the true addresses, so
a node that is cut off from its peers still has clients. A direction
that is cut holds back its bytes, as a network that drops packets does to TCP: connections stay and
are silent; handshakes of new ones come to nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine, Iterable
from pathlib import Path
from random import Random

from mailraft.cluster import ports
from mailraft.cluster.addresses import split_address
from mailraft.cluster.child import Child
from mailraft.cluster.local import LocalCluster, LocalOptions

CHUNK_BYTES = 64 * 1024
# Chunks that wait on one connection for their time; past it the sender is read no further.
CHUNKS_MAX = 256
Direction = tuple[int, int]
"""From node, to node."""


class Network:
    """Who hears whom, and how late."""

    def __init__(self, seed: int = 1) -> None:
        self._cut: set[Direction] = set()
        self._changed = asyncio.Condition()
        self._chance = Random(seed)
        self._delay_max_s = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []

    async def cut(self, directions: Iterable[Direction]) -> None:
        """Exactly these hear nothing from now on."""
        async with self._changed:
            self._cut = set(directions)
            self._changed.notify_all()

    async def heal(self) -> None:
        await self.cut(())

    def delay(self, most_s: float) -> None:
        """Every piece takes up to so long, drawn anew for each."""
        self._delay_max_s = most_s

    def listen(self, source: int, target: int, address: str) -> str:
        """The address of a new proxy for connections that `source` opens to `target`."""
        listening = socket.create_server((ports.LOOPBACK, 0), backlog=64)
        self._sockets.append(listening)
        self._begin(self._serve(listening, (source, target), address))
        return f"{ports.LOOPBACK}:{listening.getsockname()[1]}"

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listening in self._sockets:
            listening.close()

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, listening: socket.socket, way: Direction, address: str) -> None:
        listening.setblocking(False)
        loop = asyncio.get_running_loop()
        while True:
            incoming, _ = await loop.sock_accept(listening)
            self._begin(self._join(incoming, way, address))

    async def _join(self, incoming: socket.socket, way: Direction, address: str) -> None:
        reader, writer = await asyncio.open_connection(sock=incoming)
        writers = [writer]
        try:
            onward_reader, onward = await asyncio.open_connection(*split_address(address))
            writers.append(onward)
            pumps = {
                asyncio.ensure_future(self._pump(reader, onward, way)),
                asyncio.ensure_future(self._pump(onward_reader, writer, way[::-1])),
            }
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass  # the node does not run: the connection ends, as it would without us
        finally:
            for each in writers:
                each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Direction
    ) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_MAX)

        async def send() -> None:
            while True:
                due_s, data = await waiting.get()
                await asyncio.sleep(due_s - loop.time())
                async with self._changed:
                    await self._changed.wait_for(lambda: way not in self._cut)
                writer.write(data)
                await writer.drain()
                if not data:
                    return

        sending = asyncio.ensure_future(send())
        try:
            with contextlib.suppress(OSError):
                data = b"-"
                while data and not sending.done():
                    data = await reader.read(CHUNK_BYTES)
                    due_s = loop.time() + self._chance.random() * self._delay_max_s
                    await waiting.put((due_s, data))
            with contextlib.suppress(OSError):
                await sending
        finally:
            sending.cancel()


class ProxiedCluster(LocalCluster):
    """A local cluster whose nodes reach each other through `network` only."""

    def __init__(self, folder: Path, options: LocalOptions) -> None:
        super().__init__(folder, options)
        self.network = Network()

    async def stop(self) -> None:
        await super().stop()
        await self.network.close()

    def _make_node(self, node: int) -> Child:
        child = super()._make_node(node)
        reach = ", ".join(
            f'{peer.id} = "{self.network.listen(node, peer.id, peer.address)}"'
            for peer in self.map.nodes
            if peer.id != node
        )
        config = self._home(node) / "node.toml"
        config.write_text(f"{config.read_text('utf-8')}reach = {{ {reach} }}\n", "utf-8")
        return child


def both_ways(ones: Iterable[int], others: Iterable[int]) -> set[Direction]:
    """Every direction between one of these and one of those."""
    right = list(others)
    pairs = {(a, b) for a in ones for b in right}
    return pairs | {(b, a) for a, b in pairs}

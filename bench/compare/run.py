"""One run: every server and client up, one slice of each peer after the other, row by row."""

from __future__ import annotations

import asyncio
import subprocess
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from bench.compare import alone, machine
from bench.compare.daemon import make_folder
from bench.compare.dovecot import DovecotServer
from bench.compare.etcd import EtcdServer
from bench.compare.interface import Server
from bench.compare.mailraft_peer import MailraftServer
from bench.compare.nats_jetstream import NatsServer
from bench.compare.postgres import PostgresServer
from bench.compare.results import Found, Results, Scale
from bench.compare.rows import OURS, Row
from bench.compare.work import Slice
from bench.compare.worker import Worker

WARM_UP_S = 1.0
# The last part takes at most a quarter of an hour, and all of them 45 minutes.
START_BEFORE_S = 1_680.0
VERSION_DEADLINE_S = 10.0


def servers() -> list[Server]:
    """Of all peers, ours first."""
    return [MailraftServer(), EtcdServer(), PostgresServer(), NatsServer(), DovecotServer()]


class Run:
    """`tell` is called after each part with what there is so far."""

    def __init__(
        self,
        folder: Path,
        peers: Sequence[Server],
        rows: Sequence[Row],
        scale: Scale,
        tell: Callable[[Results], None],
    ) -> None:
        self._folder, self._scale, self._tell = folder, scale, tell
        self._servers = {server.name: server for server in peers}
        self._rows = {row.name: row for row in rows}
        self._workers: dict[str, Worker] = {}
        self.results = Results(scale)
        self._began_s = time.monotonic()

    async def everything(self) -> Results:
        """All rows. One that fails is told, and the others go on."""
        async with AsyncExitStack() as stack:
            await self._start(stack)
            # While little is stored: behind gigabytes etcd takes half a minute to start again.
            await self._alone("failover")
            works = dict.fromkeys(row.work for row in self._rows.values() if row.work)
            for name in works:
                await self._part(name, partial(self._slices, name))
            await self._alone("router", "tls")
        if "device" in self._rows:
            await self._part("device", self._device)
        if {"size", "restart"} & self._rows.keys():
            folder = make_folder(self._folder / "stored")
            await self._part("stored", lambda: alone.stored(folder, self._scale))
        return self.results

    async def _part(self, name: str, measure: Callable[[], Awaitable[Found]]) -> None:
        print(name, flush=True)
        try:
            if time.monotonic() > self._began_s + START_BEFORE_S:
                raise TimeoutError("no time was left")
            self.results.samples.update(await measure())
        except Exception as error:  # noqa: BLE001  # half an hour of other rows is worth having
            traceback.print_exc()
            self.results.failed[name] = f"{type(error).__name__}: {error}"
        self.results.took_s = time.monotonic() - self._began_s
        self._tell(self.results)

    async def _start(self, stack: AsyncExitStack) -> None:
        for name, server in self._servers.items():
            began_s = time.monotonic()
            stack.push_async_callback(server.stop)
            await server.start(make_folder(self._folder / name))
            worker = self._workers[name] = Worker(name)
            stack.push_async_callback(worker.stop)
            large = self._scale.large_mailbox if "page" in self._rows else 0
            await worker.start(server.address, large)
            version = await asyncio.to_thread(_version, server.version_command)
            self.results.peers[name] = f"{server.title} ({version})" if version else server.title
            print(f"{name} is up and filled: {time.monotonic() - began_s:.0f} s", flush=True)

    async def _slices(self, name: str) -> Found:
        """Each round one slice of each peer; who begins changes."""
        peers = [peer for peer in self._servers if name in self._workers[peer].works]
        for peer in peers:
            await self._workers[peer].run(name, min(WARM_UP_S, self._scale.slice_s))
        found = self.results.slices.setdefault(name, {})
        for number in range(self._scale.rounds):
            first = number % len(peers)
            for peer in (*peers[first:], *peers[:first]):
                found.setdefault(peer, []).append(await self._slice(name, peer))
        figures: Found = {}
        for row in self._rows.values():
            if row.work == name and row.figure is not None:
                figures[row.name] = {
                    peer: [row.figure(each) for each in slices] for peer, slices in found.items()
                }
        return figures

    async def _slice(self, name: str, peer: str) -> Slice:
        pids = self._servers[peer].pids()
        written, cpu_s = machine.written_bytes(self._folder), machine.cpu_s(pids)
        done = await self._workers[peer].run(name, self._scale.slice_s)
        after = machine.written_bytes(self._folder)
        used_s = machine.cpu_s(pids) - cpu_s
        bytes_ = None if written is None or after is None else after - written
        measured = Slice(done, used_s, bytes_)
        print(
            f"  {name:12} {peer:9} {measured.per_s:8,.0f}/s, p50 {done.p50_ms:.2f} ms,"
            f" CPU of 1,000 {measured.cpu_s_per_1000:.3f} s"
            + (f", {done.failed} calls failed" if done.failed else ""),
            flush=True,
        )
        return measured

    async def _alone(self, *parts: str) -> None:
        """Rows for which all peers are up, and that slices do not show."""
        ours, etcd = self._servers[OURS], self._servers.get("etcd")
        assert isinstance(ours, MailraftServer)
        assert etcd is None or isinstance(etcd, EtcdServer)
        scale, folder, workers = self._scale, self._folder, self._workers
        measures: dict[str, Callable[[], Awaitable[Found]]] = {
            "failover": lambda: alone.failovers(ours, etcd, scale),
            "router": lambda: alone.router(ours, scale),
            "tls": lambda: alone.tls(workers[OURS], folder, scale),
        }
        for name in parts:
            if any(row.startswith(name) for row in self._rows):  # tls: of tls1 and tls128
                await self._part(name, measures[name])

    async def _device(self) -> Found:
        """Each peer with no other up and nothing stored: what is written is its own."""
        found: dict[str, list[float]] = {}
        for name, known in self._servers.items():
            if "bulk" not in self._workers[name].works:
                continue
            server = type(known)()
            async with alone.running(server, self._folder / f"{name}-alone") as worker:
                found[name] = await alone.device(server, worker, self._folder, self._scale)
        return {"device": found}


def _version(command: Sequence[str]) -> str:
    """The first line that a program says of itself."""
    if not command:
        return ""
    said = subprocess.run(
        command, capture_output=True, text=True, timeout=VERSION_DEADLINE_S, check=False
    )
    return next(iter(said.stdout.splitlines()), "").strip()

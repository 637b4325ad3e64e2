"""What a node tells an operator of its load and its speed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from mailraft.internal.v1 import inspect_service_pb2, inspect_service_pb2_grpc
from mailraft.node.hot import HotMeter, Top
from mailraft.node.interfaces import ClusterView, Peer
from mailraft.wire import errors
from mailraft.wire.credentials import AnyCredentials, open_channel
from mailraft.wire.observed import pseudonym

HOT_COUNT, HOT_COUNT_MAX = 10, 100
ROUNDS, ROUNDS_MAX = 20, 50
# Between two writes or calls, so that a test of a busy node is no load of its own.
PAUSE_S = 0.01
PING_S_MAX = 2.0
BLOCK = bytes(4096)
PROBE_FILE = "perf-check.tmp"

Context = grpc.aio.ServicerContext[Any, Any]


class InspectService(inspect_service_pb2_grpc.InspectServiceServicer):
    """Implements InspectService of mailraft.internal.v1. account_key: as log lines have it."""

    def __init__(
        self,
        view: ClusterView,
        hot: HotMeter,
        credentials: AnyCredentials,
        folder: Path,
        account_key: bytes,
    ) -> None:
        self._view, self._hot, self._credentials = view, hot, credentials
        self._folder, self._account_key = folder, account_key
        self._measuring = False

    async def Hot(  # noqa: N802  # the name of the RPC
        self, request: inspect_service_pb2.HotRequest, context: Context
    ) -> inspect_service_pb2.HotResponse:
        told = self._hottest(request.count, lambda name: pseudonym(name, self._account_key))
        return inspect_service_pb2.HotResponse(hottest=told)

    async def HotNamed(  # noqa: N802  # the name of the RPC
        self, request: inspect_service_pb2.HotNamedRequest, context: Context
    ) -> inspect_service_pb2.HotNamedResponse:
        return inspect_service_pb2.HotNamedResponse(hottest=self._hottest(request.count, str))

    async def Ping(  # noqa: N802  # the name of the RPC
        self, request: inspect_service_pb2.PingRequest, context: Context
    ) -> inspect_service_pb2.PingResponse:
        return inspect_service_pb2.PingResponse()

    async def Measure(  # noqa: N802  # the name of the RPC
        self, request: inspect_service_pb2.MeasureRequest, context: Context
    ) -> inspect_service_pb2.MeasureResponse:
        if self._measuring:
            await errors.abort(context, errors.OverloadedError("another measurement runs here"))
        self._measuring = True
        rounds = min(request.rounds or ROUNDS, ROUNDS_MAX)
        told = inspect_service_pb2.MeasureResponse(node_id=self._view.node)
        try:
            told.sync_us.extend(await asyncio.to_thread(synced_writes_us, self._folder, rounds))
            for peer in self._view.peers():
                if peer.node != self._view.node:
                    told.peers.append(await self._peer(peer, rounds))
        except OSError as error:
            await errors.abort(context, errors.DiskFullError(f"a synced write: {error.strerror}"))
        finally:
            self._measuring = False
        return told

    def _hottest(self, wanted: int, name: Callable[[str], str]) -> inspect_service_pb2.Hottest:
        count = min(wanted or HOT_COUNT, HOT_COUNT_MAX)
        window = self._hot.latest()

        def most(top: Top, name: Callable[[str], str] = str) -> list[inspect_service_pb2.HotItem]:
            return [
                inspect_service_pb2.HotItem(name=name(key), count=met)
                for key, met in top.counts.most_common(count)
            ]

        return inspect_service_pb2.Hottest(
            node_id=self._view.node,
            interval_ms=round(window.length_s * 1000),
            total=window.total,
            accounts=most(window.accounts, name),
            shards=most(window.shards),
            methods=most(window.methods),
        )

    async def _peer(self, peer: Peer, rounds: int) -> inspect_service_pb2.PeerMeasured:
        told = inspect_service_pb2.PeerMeasured(node_id=peer.node)
        async with open_channel(peer.address, self._credentials) as channel:
            stub = inspect_service_pb2_grpc.InspectServiceStub(channel)
            request = inspect_service_pb2.PingRequest()
            try:
                await stub.Ping(request, timeout=PING_S_MAX)  # opens the connection
                for _ in range(rounds):
                    began_ns = time.monotonic_ns()
                    await stub.Ping(request, timeout=PING_S_MAX)
                    told.round_trip_us.append((time.monotonic_ns() - began_ns) // 1000)
                    await asyncio.sleep(PAUSE_S)
            except grpc.aio.AioRpcError as error:
                told.error = error.code().name
        return told


def synced_writes_us(folder: Path, rounds: int) -> list[int]:
    """What each of some small writes took until it was on disk. Blocks; leaves nothing behind."""
    path, found = folder / PROBE_FILE, []
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for _ in range(rounds):
            began_ns = time.monotonic_ns()
            os.write(file, BLOCK)
            os.fdatasync(file)
            found.append((time.monotonic_ns() - began_ns) // 1000)
            time.sleep(PAUSE_S)
    finally:
        os.close(file)
        path.unlink()
    return found

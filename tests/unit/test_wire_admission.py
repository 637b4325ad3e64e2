"""Admission: so many calls at once and no more; who comes later is told when to come back."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from mailraft.wire import errors
from mailraft.wire.admission import RETRY_AFTER_MAX_MS, RETRY_AFTER_MIN_MS, Admission
from mailraft.wire.credentials import Insecure, add_port, open_channel

API, PEERS = "mailraft.v1.Test", "mailraft.internal.v1.Test"


def _same(data: bytes) -> bytes:
    return data


class Service:
    """Calls that stay open until they are let go."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.read_bytes = 0

    async def unary(self, request: bytes, _: Any) -> bytes:
        self.read_bytes += len(request)
        await self.let_go.wait()
        return request

    async def stream(self, request: bytes, _: Any) -> AsyncIterator[bytes]:
        yield request
        await self.let_go.wait()


@asynccontextmanager
async def served(admission: Admission) -> AsyncIterator[tuple[Service, grpc.aio.Channel]]:
    """A server that has it."""
    service, server = Service(), grpc.aio.server(interceptors=[admission])
    for name in (API, PEERS):
        handlers: dict[str, Any] = {
            "Unary": grpc.unary_unary_rpc_method_handler(service.unary),
            "Stream": grpc.unary_stream_rpc_method_handler(service.stream),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    port = add_port(server, "127.0.0.1:0", Insecure())
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}", Insecure()) as channel:
            yield service, channel
    finally:
        await server.stop(None)


async def until(reached: Callable[[], bool]) -> None:
    """Return when it is so."""
    while not reached():  # noqa: ASYNC110 - the server has no event for it
        await asyncio.sleep(0.01)


async def test_calls_above_the_bound_are_refused_at_once_with_a_delay() -> None:
    """OVERLOADED, spread over time; what is in stays in, and makes room when it is done."""
    admission = Admission(2, 1)
    async with served(admission) as (service, channel), asyncio.timeout(5):
        call: Any = channel.unary_unary(f"/{API}/Unary", _same, _same)
        begun = [asyncio.ensure_future(call(b"x")) for _ in range(2)]
        await until(lambda: admission.calls == 2)
        delays_ms = set()
        for _ in range(20):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(b"too much")
            told = errors.from_rpc_error(caught.value)
            assert isinstance(told, errors.OverloadedError)
            delays_ms.add(told.retry_after_ms)
        assert len(delays_ms) > 5
        low_ms, high_ms = RETRY_AFTER_MIN_MS / 2, RETRY_AFTER_MAX_MS * 1.5
        assert all(low_ms <= (each or 0) <= high_ms for each in delays_ms)
        service.let_go.set()
        assert await asyncio.gather(*begun) == [b"x", b"x"]
        assert await call(b"y") == b"y"
        assert service.read_bytes == 3
        assert (admission.calls, admission.refused) == (0, 20)


async def test_streams_have_a_bound_of_their_own_and_nodes_have_none() -> None:
    """Streams that stay open take no place of calls; what nodes tell each other passes."""
    admission = Admission(1, 1)
    async with served(admission) as (_, channel), asyncio.timeout(5):
        streams: Any = channel.unary_stream(f"/{API}/Stream", _same, _same)
        first = streams(b"x")
        assert await first.read() == b"x"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await streams(b"x").read()
        assert isinstance(errors.from_rpc_error(caught.value), errors.OverloadedError)
        call: Any = channel.unary_unary(f"/{API}/Unary", _same, _same)
        waiting = call(b"x")
        await until(lambda: admission.calls == 1)
        peers: Any = channel.unary_stream(f"/{PEERS}/Stream", _same, _same)
        open_ = [peers(b"x") for _ in range(3)]
        assert [await each.read() for each in open_] == [b"x"] * 3
        for each in (first, waiting, *open_):
            each.cancel()
        await until(lambda: not admission.streams and not admission.calls)


def test_many_who_come_back_as_told_are_few_at_a_time() -> None:
    """Callers that are always refused, on a clock of our own: a hundred times as many are refused
    ten times as often, up to the longest delay; and one alone comes back soon.
    """

    def refusals_a_second(callers: int) -> float:
        now_s, waiting = 0.0, [(0.0, number) for number in range(callers)]
        admission = Admission(0, 0, now=lambda: now_s)
        heapq.heapify(waiting)
        while now_s < 40:
            now_s, number = waiting[0]
            if now_s < 20:  # until it has settled
                admission.refused = 0
            delay_s = admission.retry_after_ms() / 1000
            heapq.heapreplace(waiting, (now_s + delay_s, number))
        return admission.refused / 20

    assert refusals_a_second(1) < 20
    assert refusals_a_second(100) < 150
    assert refusals_a_second(1_000) < 450
    assert refusals_a_second(10_000) < 2_500
    idle = Admission(0, 0, now=lambda: 0.0)
    assert idle.retry_after_ms() <= RETRY_AFTER_MIN_MS * 1.5

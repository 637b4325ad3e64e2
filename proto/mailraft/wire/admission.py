"""Admission: at most so many calls of the API at once, the next is told to come back later.

A server that takes everything serves nothing in time: what it works on is what its callers have
given up already. Refusing costs a small part of serving.
"""

from __future__ import annotations

import inspect
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from mailraft.wire import errors
from mailraft.wire.handlers import Handler, Wrapped, function_of, unread, with_function

if TYPE_CHECKING:
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    Interceptor = grpc.aio.ServerInterceptor

_PACKAGE = "/mailraft.v1."
# When to come back: the later, the more are refused. With n callers that come back as told,
# there are about 10 * sqrt(n) refusals a second: they cost little, however many callers there are.
RETRY_AFTER_MIN_MS, RETRY_AFTER_MAX_MS = 100, 5_000
_MS_PER_REFUSAL_A_SECOND = 10
_RATE_OVER_S = 2.0


class Admission(Interceptor):
    """An interceptor. Streams, which stay open, have a bound of their own; calls between nodes,
    health and reflection have none. now: a monotonic clock, in seconds.
    """

    def __init__(
        self, calls_max: int, streams_max: int, *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.calls = self.streams = self.refused = 0
        self._calls_max, self._streams_max = calls_max, streams_max
        self._now = now
        self._lately = 0.0  # refusals, those that are longer ago counting less
        self._refused_s = float("-inf")
        self._wrapped = Wrapped(self._counting)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(_PACKAGE):
            return handler
        streaming = handler.request_streaming or handler.response_streaming
        if self._full(streaming=streaming):
            return unread(handler, self._refuse)
        return self._wrapped.of(handler_call_details.method, handler)

    def _counting(self, _: str, handler: Handler) -> Handler:
        inner = function_of(handler)
        streaming = handler.request_streaming or handler.response_streaming
        wrap = self._generator if inspect.isasyncgenfunction(inner) else self._coroutine
        return with_function(handler, wrap(inner, streaming=streaming))

    def _coroutine(self, inner: Callable[..., Any], *, streaming: bool) -> Callable[..., Any]:
        async def bounded(request: Any, context: Any) -> Any:
            with self._counted(streaming=streaming):
                return await inner(request, context)

        return bounded

    def _generator(self, inner: Callable[..., Any], *, streaming: bool) -> Callable[..., Any]:
        async def bounded(request: Any, context: Any) -> AsyncIterator[Any]:
            with self._counted(streaming=streaming):
                async for response in inner(request, context):
                    yield response

        return bounded

    async def _refuse(self, _: Any, context: Any) -> None:
        error = errors.OverloadedError(
            f"{self.calls} calls and {self.streams} streams are open",
            retry_after_ms=self.retry_after_ms(),
        )
        await errors.abort(context, error)

    def retry_after_ms(self) -> int:
        """One more is refused: when it shall come back. Spread, so that not all come at once."""
        now_s = self._now()
        self._lately = 1.0 + self._lately * math.exp((self._refused_s - now_s) / _RATE_OVER_S)
        self._refused_s = now_s
        self.refused += 1
        after_ms = _MS_PER_REFUSAL_A_SECOND * self._lately / _RATE_OVER_S
        after_ms = min(max(after_ms, RETRY_AFTER_MIN_MS), RETRY_AFTER_MAX_MS)
        return round(after_ms * random.uniform(0.5, 1.5))

    def _full(self, *, streaming: bool) -> bool:
        if streaming:
            return self.streams >= self._streams_max
        return self.calls >= self._calls_max

    @contextmanager
    def _counted(self, *, streaming: bool) -> Iterator[None]:
        self.streams += streaming
        self.calls += not streaming
        try:
            yield
        finally:
            self.streams -= streaming
            self.calls -= not streaming

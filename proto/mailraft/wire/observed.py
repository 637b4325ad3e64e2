"""One call as its server sees it: what it asked for, how long it took, what it waited for.

An interceptor begins a ServedCall for each call; whoever makes it wait says so
(`waited("flush", 0.2)`), wherever that is in the code; at its end watchers are told. So metrics,
slow log and log lines know of calls, and no handler knows of them.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import inspect
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import grpc

from mailraft.v1 import common_pb2
from mailraft.wire import errors, incidents, tracing
from mailraft.wire.handlers import Handler, Wrapped, function_of, with_function

_PACKAGE = "/mailraft.v1."
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
# How a call ends that was refused, or whose caller went away.
_EXPECTED = (grpc.aio.BaseError, asyncio.CancelledError, GeneratorExit)


@dataclass(slots=True)
class ServedCall:
    """`waits`: seconds by what was waited for; of parts that ran beside each other the longest."""

    method: str  # MessageService/GetMessage
    request: Any = None  # None: of a stream
    level: str = "none"
    streaming: bool = False
    code: str = "OK"
    took_s: float = 0.0
    waits: dict[str, float] = field(default_factory=dict)
    # Parts that have an answer of their own: how many, by kind, level and code.
    items: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    shard: int | None = None
    trace_id: str = ""
    _longest_s: float = 0.0

    @property
    def request_id(self) -> str:
        """What its caller would repeat it by, in hex; of many deliveries the first one's."""
        request = self.request
        for delivery in getattr(request, "deliveries", ())[:1]:
            request = delivery
        found: bytes = getattr(request, "request_id", b"")
        return found.hex()

    @property
    def account_id(self) -> str:
        """Whose mail it is about, if it names one account. May be an address: for no log as it is
        (see pseudonym()).
        """
        found: str = getattr(self.request, "account_id", "")
        return found

    def waited(self, reason: str, wait_s: float) -> None:
        self.waits[reason] = max(wait_s, self.waits.get(reason, 0.0))

    def committed(self, shard: int, waits: dict[str, float]) -> None:
        """What the stages of one entry took; those of the slowest entry of a call count."""
        total_s = sum(waits.values())
        if total_s >= self._longest_s:
            self._longest_s, self.shard = total_s, shard
            self.waits.update(waits)


def pseudonym(account_id: str, key: bytes) -> str:
    """What stands for an account in logs: the same in all that have the key, nothing without it."""
    return hmac.digest(key, account_id.encode(), "sha256").hex()[:16]


_current: ContextVar[ServedCall | None] = ContextVar("mailraft_served_call", default=None)


def current() -> ServedCall | None:
    """The call that is being served here, if any."""
    return _current.get()


def waited(reason: str, wait_s: float) -> None:
    """The call that is being served waited for something."""
    call = _current.get()
    if call is not None:
        call.waited(reason, wait_s)


@contextmanager
def waiting(reason: str, now: Callable[[], float]) -> Iterator[None]:
    """Around a wait, by any clock."""
    began_s = now()
    try:
        yield
    finally:
        waited(reason, now() - began_s)


def answered(kind: str, level: str, code: int, count: int = 1) -> None:
    """Parts of the call that is being served have their own answer: a gRPC code by its number."""
    call = _current.get()
    if call is not None:
        call.items[kind, level, _CODES.get(code, "UNKNOWN")] += count


Watcher = Callable[[ServedCall], None]


class Observe(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # no class at run time takes any
    """Tells watchers of every call when it ends, and of streams also when they begin.

    It sees the refusals of those behind it, and is told of those before it (`refused`). What it
    lets nobody see is an exception: its caller gets a number, and the log has it. Watchers are
    quick and do not raise.
    """

    def __init__(self, ended: Sequence[Watcher], stream_began: Sequence[Watcher] = ()) -> None:
        self._ended, self._stream_began = tuple(ended), tuple(stream_began)
        self._wrapped = Wrapped(self._watched)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # Handler | None, which grpc-stubs does not know
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # an unknown method: what strangers make up is nobody's label
        return self._wrapped.of(handler_call_details.method, handler)

    def refused(self, path: str, code: str) -> None:
        """A call that ended before it got here."""
        for watcher in self._ended:
            watcher(ServedCall(_short(path), code=code))

    def _watched(self, path: str, handler: Handler) -> Handler:
        method, inner = _short(path), function_of(handler)
        streaming = handler.request_streaming or handler.response_streaming
        if inspect.isasyncgenfunction(inner):
            watched = self._generator(method, inner)
        else:
            watched = self._coroutine(method, inner, streaming=streaming)
        return with_function(handler, watched)

    def _coroutine(
        self, method: str, inner: Callable[..., Any], *, streaming: bool
    ) -> Callable[..., Any]:
        async def watched(request: Any, context: Any) -> Any:
            call = self._begin(method, request, streaming=streaming)
            began_s = time.monotonic()
            try:
                with tracing.served(method, context):
                    call.trace_id = tracing.trace_id()
                    return await inner(request, context)
            except _EXPECTED as error:
                call.code = _code(error, context)
                raise
            except Exception as error:  # noqa: BLE001 - nothing may escape: gRPC would log its text
                failed = _failure(error, method)
                call.code = failed.code.name
                await errors.abort(context, failed)
            finally:
                self._end(call, began_s)

        return watched

    def _generator(self, method: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        async def watched(request: Any, context: Any) -> AsyncIterator[Any]:
            call = self._begin(method, request, streaming=True)
            began_s = time.monotonic()
            try:
                async for response in inner(request, context):
                    yield response
            except _EXPECTED as error:
                call.code = _code(error, context)
                raise
            except Exception as error:  # noqa: BLE001 - as above
                failed = _failure(error, method)
                call.code = failed.code.name
                await errors.abort(context, failed)
            finally:
                self._end(call, began_s)

        return watched

    def _begin(self, method: str, request: Any, *, streaming: bool) -> ServedCall:
        call = ServedCall(method, streaming=streaming)
        if streaming:
            for watcher in self._stream_began:
                watcher(call)
        else:
            call.request, call.level = request, level_of(request)
        _current.set(call)  # gRPC runs each call in a task of its own: nothing to put back
        return call

    def _end(self, call: ServedCall, began_s: float) -> None:
        call.took_s = time.monotonic() - began_s
        for watcher in self._ended:
            watcher(call)


def _failure(error: Exception, method: str) -> errors.MailraftError:
    if isinstance(error, errors.MailraftError):
        return error
    if isinstance(error, NotImplementedError):  # of generated code: nobody serves the method
        return errors.UnimplementedError(f"{method} is not served here")
    return incidents.told(error, method)


def level_of(request: Any) -> str:
    """What a request asks for, in lower case; default: it leaves that to the cluster."""
    options = getattr(request, "read_options", None)
    if options is not None:
        return _level(common_pb2.Consistency, "CONSISTENCY_", options.consistency)
    options = getattr(request, "write_options", None)
    if options is not None:
        return _level(common_pb2.AckLevel, "ACK_LEVEL_", options.ack)
    return "none"


@functools.lru_cache(maxsize=64)  # for every part of every batch
def _level(kind: Any, prefix: str, number: int) -> str:
    if not number:
        return "default"
    try:
        name: str = kind.Name(number)
    except ValueError:  # a number that somebody made up
        return "unknown"
    return name.removeprefix(prefix).lower()


def _short(path: str) -> str:
    return path.removeprefix(_PACKAGE).removeprefix("/")


def _code(error: BaseException, context: Any) -> str:
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "CANCELLED"
    code = context.code()
    name = code.name if isinstance(code, grpc.StatusCode) else _CODES.get(code or 0, "UNKNOWN")
    return "UNKNOWN" if name == "OK" else name

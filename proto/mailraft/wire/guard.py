"""The interceptor at every port: who calls is known, and what it may take, before a byte of its
request is parsed. Put first.

It receives requests itself, as bytes (to gRPC each call is a stream of messages), so that what a
caller may not do costs it more than us: nothing is parsed for a role that may not call, or beyond
what it may send, and nobody holds a call open by sending a byte a minute.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from mailraft.v1 import batch_pb2, delivery_pb2
from mailraft.wire import access, errors, limits
from mailraft.wire.access import Decision, Principal, Role
from mailraft.wire.accounts import Narrowed, narrowed
from mailraft.wire.callers import Callers, Open, Share
from mailraft.wire.credentials import MESSAGE_ROOM_BYTES
from mailraft.wire.draining import drain
from mailraft.wire.handlers import Function, Handler, Wrapped, function_of, received_by

if TYPE_CHECKING:
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    Interceptor = grpc.aio.ServerInterceptor

# A request comes whole within this, or not at all.
RECEIVE_S = 30.0
# An upload that we waited for so long in all must have brought so much.
UPLOAD_SLOW_S = 30.0
UPLOAD_BYTES_PER_S_MIN = 32 * 1024
# A caller that sends too much waits at most so long for the next message of its stream to be taken.
PAUSE_MAX_S = 5.0


@dataclass(frozen=True, slots=True)
class _Method:
    path: str
    handler: Handler
    inner: Function

    @property
    def streaming(self) -> bool:
        found: bool = self.handler.request_streaming or self.handler.response_streaming
        return found

    def parsed(self, raw: bytes) -> Any:
        """Raises BadFieldError. A handler that parses nothing (it refuses) gets the bytes."""
        if self.handler.request_deserializer is None:
            return raw
        try:
            return self.handler.request_deserializer(raw)
        except (DecodeError, ValueError):
            raise errors.BadFieldError(f"not a request of {self.path}") from None


class Guard(Interceptor):
    """Lets through what the table of roles, the accounts of the certificate and the limits of its
    caller allow.

    record: is told of every refusal, and of every action of an operator. refused: is told of every
    call that ends here, by method and code. Both are quick and do not raise.
    """

    def __init__(
        self,
        record: Callable[[Decision], None],
        callers: Callers,
        refused: Callable[[str, str], None] = lambda _path, _code: None,
    ) -> None:
        self._record, self._callers, self._refused = record, callers, refused
        self._wrapped = Wrapped(self._guarding)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # nothing is served by this name
        return self._wrapped.of(handler_call_details.method, handler)

    def _guarding(self, path: str, handler: Handler) -> Handler:
        inner = function_of(handler)
        method = _Method(path, handler, inner)
        wrap = self._generator if inspect.isasyncgenfunction(inner) else self._coroutine
        return received_by(handler, wrap(method))

    def _coroutine(self, method: _Method) -> Function:
        async def guarded(_: object, context: Any) -> Any:
            opened, asked = await self._asked(method, context)
            try:
                response = None
                if asked.request is not None:
                    response = await method.inner(asked.request, context)
                return asked.restored(response)
            finally:
                opened.close()

        return guarded

    def _generator(self, method: _Method) -> Function:
        async def guarded(_: object, context: Any) -> AsyncIterator[Any]:
            opened, asked = await self._asked(method, context)
            try:
                async for response in method.inner(asked.request, context):
                    yield response
            finally:
                opened.close()

        return guarded

    async def _asked(self, method: _Method, context: Any) -> tuple[Open, Narrowed]:
        """What a call asks for; its end is to be told. Ends the call itself if it may not."""
        caller, opened, raw = None, None, b""
        try:
            caller = shown = access.authenticated(context)
            metadata = context.invocation_metadata() or ()
            caller = access.admitted(method.path, shown, metadata)
            access.call_for(caller)
            if access.TABLE.get(method.path) == access.OPERATE:
                self._record(Decision(method.path, caller, context.peer()))
            share, bytes_max = self._callers.share(shown), _bytes_max(shown)
            opened = self._callers.open(share, streaming=method.streaming)
            if method.handler.request_streaming:
                return opened, Narrowed(self._incoming(method, context, share, bytes_max), 0, _same)
            raw = await _received(context, share)
            _check_size(raw, bytes_max)
            self._callers.take(share, "bytes", len(raw))
            opened.hold(len(raw))
            return opened, self._narrowed(method, raw, caller, share, context)
        except errors.MailraftError as error:
            raw = b""  # the exception of abort holds this frame for a while
            self._tell(method.path, caller, context, error)
            if opened is None:
                await drain(_unparsed(context))
            else:
                opened.close()
            await errors.abort(context, error)
        except BaseException:
            if opened is not None:
                opened.close()
            raise

    def _incoming(
        self, method: _Method, context: Any, share: Share | None, bytes_max: int | None
    ) -> Incoming:
        requests = Incoming(method.parsed, context, self._callers, share)
        requests.bytes_max = bytes_max
        if share is not None and not method.handler.response_streaming:
            requests.bytes_per_s_min = UPLOAD_BYTES_PER_S_MIN
        return requests

    def _narrowed(
        self,
        method: _Method,
        raw: bytes,
        caller: Principal | None,
        share: Share | None,
        context: Any,
    ) -> Narrowed:
        request = method.parsed(raw)
        if isinstance(request, delivery_pb2.DeliverMessagesRequest):
            recipients = sum(len(each.recipients) for each in request.deliveries)
            self._callers.take(share, "recipients", recipients)
        elif isinstance(request, batch_pb2.ExecuteRequest):
            self._callers.take(share, "calls", max(0, len(request.items) - 1))
        if caller is None or not caller.accounts.limited or request is raw:
            return Narrowed(request, 0, _same)
        asked = narrowed(method.path, request, caller.accounts)
        if asked.refused:
            why = f"{asked.refused} parts are about accounts that the certificate is not for"
            self._record(Decision(method.path, caller, context.peer(), why))
        return asked

    def _tell(
        self, path: str, caller: Principal | None, context: Any, error: errors.MailraftError
    ) -> None:
        self._refused(path, error.code.name)
        if isinstance(error, errors.PermissionDeniedError | errors.UnauthenticatedError):
            self._record(Decision(path, caller, context.peer(), error.message))


async def _received(context: Any, share: Share | None) -> bytes:
    """The one message of a call. Raises DeadlineExceededError, BadFieldError."""
    try:
        async with asyncio.timeout(RECEIVE_S):
            if share is None:
                raw = await context.read()
            else:
                async with share.receiving:
                    raw = await context.read()
    except TimeoutError:
        raise errors.DeadlineExceededError(
            f"the request did not come within {RECEIVE_S:.0f} s"
        ) from None
    if not isinstance(raw, bytes):
        raise errors.BadFieldError("the call ended without a request")
    return raw


def _bytes_max(shown: Principal | None) -> int | None:
    """Of a message. gRPC's own limit is that of nodes, which send each other more; None: no other
    than that.
    """
    if shown is not None and shown.role is Role.NODE:
        return None
    return limits.RPC_MAX_BYTES + MESSAGE_ROOM_BYTES


def _check_size(raw: bytes, bytes_max: int | None) -> None:
    if bytes_max is not None and len(raw) > bytes_max:
        raise errors.LimitReachedError(
            f"a message of {len(raw)} bytes, at most {bytes_max} are taken",
            metadata={"limit": "message_bytes", "max": str(bytes_max)},
        )


async def _unparsed(context: Any) -> AsyncIterator[bytes]:
    while isinstance(raw := await context.read(), bytes):
        yield raw


class Incoming:
    """The messages of a caller's stream.

    Raises, besides what reading does, BadFieldError, LimitReachedError and DeadlineExceededError.
    """

    bytes_per_s_min = 0
    bytes_max: int | None = None

    def __init__(
        self,
        parsed: Callable[[bytes], Any],
        context: Any,
        callers: Callers,
        share: Share | None,
    ) -> None:
        self._parsed, self._context = parsed, context
        self._callers, self._share = callers, share
        self._ended = False
        self._bytes, self._waited_s = 0, 0.0

    def __aiter__(self) -> Incoming:
        return self

    async def __anext__(self) -> Any:
        if self._ended:
            raise StopAsyncIteration
        try:
            raw = await self._next()
        except asyncio.CancelledError:
            self._ended = True  # gRPC still waits for it: nobody else may read
            raise
        if not isinstance(raw, bytes):
            self._ended = True
            raise StopAsyncIteration
        _check_size(raw, self.bytes_max)
        return self._parsed(raw)

    async def _next(self) -> Any:
        if self._share is None:
            return await self._context.read()
        began_s = time.monotonic()
        raw = await self._context.read()
        self._waited_s += time.monotonic() - began_s
        if isinstance(raw, bytes):
            self._bytes += len(raw)
            due_bytes = self.bytes_per_s_min * (self._waited_s - UPLOAD_SLOW_S)
            if self._bytes < due_bytes:
                raise errors.DeadlineExceededError(
                    f"less than {self.bytes_per_s_min} bytes a second came"
                )
            pause_s = self._callers.pause_s(self._share, len(raw))
            if pause_s:
                await asyncio.sleep(min(pause_s, PAUSE_MAX_S))
        return raw


def _same(response: Any) -> Any:
    return response

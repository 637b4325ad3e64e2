"""What a server's interceptors have to know of gRPC's handlers: the function inside, and how to put
another one around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

Handler = Any  # grpc.RpcMethodHandler, generic only in its stubs
Function = Callable[..., Any]

_MAKE = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def function_of(handler: Handler) -> Function:
    """What serves the call: a coroutine function, or an async generator function."""
    found: Function = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    return found


def with_function(handler: Handler, function: Function) -> Handler:
    """The same call, served by another function of the same kind."""
    made = _MAKE[handler.request_streaming, handler.response_streaming]
    return made(function, handler.request_deserializer, handler.response_serializer)


def received_by(handler: Handler, function: Function) -> Handler:
    """The same call, served by a function that takes its messages itself, as bytes, by
    `context.read()`; to gRPC it is a stream of requests.
    """
    made = _MAKE[True, handler.response_streaming]
    return made(function, None, handler.response_serializer)


def unread(handler: Handler, function: Function) -> Handler:
    """The same call, answered without its request being parsed: for functions that refuse it."""
    return _MAKE[handler.request_streaming, handler.response_streaming](function)


class Wrapped:
    """Handlers around others, made once each: gRPC asks at every call, and for the same ones."""

    def __init__(self, wrap: Callable[[str, Handler], Handler]) -> None:
        self._wrap = wrap
        self._made: dict[str, tuple[Handler, Handler]] = {}  # by path; bounded by what is served

    def of(self, path: str, handler: Handler) -> Handler:
        made = self._made.get(path)
        if made is None or made[0] is not handler:
            made = self._made[path] = handler, self._wrap(path, handler)
        return made[1]

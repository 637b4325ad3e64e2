"""What services share: what the composition root hands in, and how a call gets to its handler.

A handler is `async (request, Call) -> response`, or an async generator for a stream of responses.
It raises MailraftError, or Refused of the mailstore; whoever runs it (gRPC here, BatchService)
turns that into a status. So a call in a batch and a call alone run the same code.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
)
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any, Final, Protocol, cast

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from mailraft.internal.v1 import command_pb2
from mailraft.node.agreement import Digests
from mailraft.node.interfaces import ClusterView, GroupId, ReplicaId
from mailraft.node.mailstore.errors import Refused
from mailraft.node.quorum_reads import Position
from mailraft.node.shard import ReadPoint, Replica
from mailraft.v1 import cluster_pb2, common_pb2
from mailraft.wire import access, errors, incidents, limits, metadata
from mailraft.wire.deadlines import passed_on
from mailraft.wire.draining import drain
from mailraft.wire.ready import Ready

from . import convert

_SERIALIZED: Final = methodcaller("SerializeToString")  # of a message, and of what is Ready

# A reply, what grpc adds and the status of a batch's other items stay below limits.RPC_MAX_BYTES.
REPLY_MAX_BYTES = limits.RPC_MAX_BYTES - 512 * 1024
# A caller of a stream without an end that takes nothing for so long is told and let go.
SLOW_READER_S = 30.0


class Shards(Protocol):
    """What services get from the composition root."""

    @property
    def cluster(self) -> ClusterView: ...

    @property
    def node_name(self) -> str: ...

    def replica_for_account(self, account_id: str) -> Replica:
        """This node's replica of the account's shard.

        Raises StaleRouteError with the current epoch when there is none here.
        """

    def replicas(self) -> Iterable[Replica]:
        """Every replica of a mail shard here, in any order."""

    @property
    def meta(self) -> Replica | None:
        """The replica of the meta group here, if there is one."""

    def body(self, group: GroupId, index: int, ordinal: int) -> bytes | None:
        """A packed body as it is stored (mailraft.wire.bodies); None when it is not there."""

    def digests(self, group: GroupId) -> Digests:
        """Of this node's replica: ascending, the newest applied entry's last."""

    def differing(self, group: GroupId) -> Collection[ReplicaId]:
        """Replicas of a group here that were found to have another state than their peers."""

    def position(self, group: GroupId) -> Position | None:
        """How far the replica here is; None where none runs."""

    async def other_positions(
        self, own: Position, group: GroupId, count: int, *, deadline_s: float
    ) -> list[Position]:
        """Of the first `count` other voters that answer; fewer when not so many do in time."""

    def policy(self) -> cluster_pb2.LevelPolicy:
        """Which levels the cluster allows, and its defaults; unset fields where it says nothing."""

    def now_s(self) -> float:
        """The monotonic clock that Replica takes deadlines on."""

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch."""

    def stamp_ms(self) -> int:
        """The same, for a command of a leader. Raises NoLeaderError while this clock is off."""

    def settle(self, command: command_pb2.Command) -> None:
        """Put into a command what the cluster's settings have to say to it."""

    def admit(self, replica: Replica, command: command_pb2.Command) -> None:
        """Raises DiskFullError for a command that there is no room for (node/disk_space.py)."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call on its way through a handler.

    points: of a batch, by shard: where its LINEARIZABLE reads may read (levels.asked_together).
    """

    deadline_s: float  # on Shards.now_s
    points: Mapping[GroupId, ReadPoint | errors.MailraftError] = field(default_factory=dict)


class Accepted(Exception):  # no error: an answer
    """A mutation at level ACCEPTED: all that its response holds is how it was served."""

    def __init__(self, served: common_pb2.Served) -> None:
        super().__init__()
        self.served = served


Unary = Callable[[Any, Call], Awaitable[Message | Ready]]
Stream = Callable[[Any, Call], AsyncIterator[Message]]
Duplex = Callable[[AsyncIterator[Any]], AsyncGenerator[Message, None]]
# The header, which names the account, and what comes behind it.
Upload = Callable[[Any, AsyncIterator[Any]], Awaitable[Message]]


@dataclass(frozen=True, slots=True)
class Service:
    """The handlers of one service of mailraft.v1, by the names of their methods.

    A method that is in none of them answers NOT_IMPLEMENTED, with the plain words of `later`.
    """

    descriptor: ServiceDescriptor
    unary: Mapping[str, Unary] = field(default_factory=dict)
    streams: Mapping[str, Stream] = field(default_factory=dict)
    duplex: Mapping[str, Duplex] = field(default_factory=dict)
    uploads: Mapping[str, Upload] = field(default_factory=dict)
    later: Mapping[str, str] = field(default_factory=dict)


async def answer(
    method: MethodDescriptor, unary: Unary, request: Any, call: Call
) -> Message | Ready:
    """The response of a handler."""
    try:
        return await unary(request, call)
    except Accepted as accepted:
        response: Any = message_factory.GetMessageClass(method.output_type)()
        response.served.CopyFrom(accepted.served)
        return cast("Message", response)


def generic_handler(service: Service, shards: Shards) -> grpc.GenericRpcHandler[Any, Any]:
    """What a grpc.aio server needs to serve it. Fails if a handler's name is no method's."""
    methods = service.descriptor.methods_by_name
    unknown = {
        *service.unary,
        *service.streams,
        *service.duplex,
        *service.uploads,
        *service.later,
    } - set(methods)
    assert not unknown, f"{service.descriptor.full_name} has no {sorted(unknown)}"
    handlers = {name: _method_handler(service, shards, method) for name, method in methods.items()}
    return grpc.method_handlers_generic_handler(service.descriptor.full_name, handlers)


def not_implemented(method: MethodDescriptor, later: str) -> errors.UnimplementedError:
    return errors.UnimplementedError(f"{method.name} is not there yet: {later or 'planned'}")


def to_error(error: Exception, what: str) -> errors.MailraftError:
    """What the caller is told of an exception. A bug is logged, under a number that it gets."""
    if isinstance(error, errors.MailraftError):
        return error
    if isinstance(error, Refused):
        return convert.refused(error)
    return incidents.told(error, what)


# ---- from gRPC to a handler ----------------------------------------------------------------------


def _method_handler(
    service: Service, shards: Shards, method: MethodDescriptor
) -> grpc.RpcMethodHandler[Any, Any]:
    read = message_factory.GetMessageClass(method.input_type).FromString
    write = message_factory.GetMessageClass(method.output_type).SerializeToString
    if method.name in service.streams:
        stream = service.streams[method.name]
        return grpc.unary_stream_rpc_method_handler(_streaming(stream, shards, method), read, write)
    if method.name in service.duplex:
        duplex = _conversing(service.duplex[method.name], method)
        return grpc.stream_stream_rpc_method_handler(duplex, read, write)
    if method.name in service.unary:
        handle = _answering(service.unary[method.name], shards, method)
        return grpc.unary_unary_rpc_method_handler(handle, read, _SERIALIZED)
    if method.name in service.uploads:
        upload = _taking(service.uploads[method.name], method)
        return grpc.stream_unary_rpc_method_handler(upload, read, write)
    error = not_implemented(method, service.later.get(method.name, ""))

    async def refuse(_request: object, context: grpc.aio.ServicerContext[Any, Any]) -> Message:
        return await errors.abort(context, error)

    kind = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streaming, method.server_streaming]
    return kind(refuse, read, write)


def _answering(unary: Unary, shards: Shards, method: MethodDescriptor) -> Callable[..., Any]:
    async def handle(
        request: Message, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Message | Ready:
        try:
            _check_account(request, context)
            return await answer(method, unary, request, Call(_deadline_s(context, shards)))
        except Exception as error:  # noqa: BLE001 - to_error logs what is a bug
            failed = to_error(error, method.full_name)
        return await errors.abort(context, failed)

    return handle


def _streaming(stream: Stream, shards: Shards, method: MethodDescriptor) -> Callable[..., Any]:
    async def answer(
        request: Message, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Message]:
        try:
            _check_account(request, context)
            async for response in stream(request, Call(_deadline_s(context, shards))):
                yield response
            return
        except Exception as error:  # noqa: BLE001 - to_error logs what is a bug
            failed = to_error(error, method.full_name)
        await errors.abort(context, failed)

    return answer


def _conversing(duplex: Duplex, method: MethodDescriptor) -> Callable[..., Any]:
    async def answer(
        requests: AsyncIterator[Message], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        responses = duplex(requests)
        try:
            async for response in responses:
                async with asyncio.timeout(SLOW_READER_S):
                    await context.write(response)
            return
        except TimeoutError:
            failed: errors.MailraftError = errors.OverloadedError(
                f"{method.name}: what was told was not read for {SLOW_READER_S:.0f} s"
            )
        except Exception as error:  # noqa: BLE001 - to_error logs what is a bug
            failed = to_error(error, method.full_name)
        finally:
            await responses.aclose()
        await errors.abort(context, failed)

    return answer


def _taking(upload: Upload, method: MethodDescriptor) -> Callable[..., Any]:
    async def answer(
        requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> Message:
        try:
            first = await anext(requests, None)
            if first is None or first.WhichOneof("part") != "header":
                raise errors.BadFieldError(fields={"header": "the first message must be it"})
            _check_account(first.header, context)
            access.check_account(first.header.account_id)
            return await upload(first.header, requests)
        except Exception as error:  # noqa: BLE001 - to_error logs what is a bug
            failed = to_error(error, method.full_name)
        await drain(requests)
        return await errors.abort(context, failed)

    return answer


def _deadline_s(context: grpc.aio.ServicerContext[Any, Any], shards: Shards) -> float:
    remaining_s: float | None = context.time_remaining()
    if remaining_s is not None and remaining_s <= 0:
        raise errors.DeadlineExceededError
    return shards.now_s() + passed_on(remaining_s)


def _check_account(request: Message, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """x-mailraft-account, on which a proxy may have decided, must name the account of field 1."""
    for key, value in context.invocation_metadata() or ():
        if key != metadata.ACCOUNT_KEY:
            continue
        try:
            told = metadata.decode_account(value if isinstance(value, str) else value.decode())
        except ValueError:
            told = None
        if told is None or told != getattr(request, "account_id", None):
            what = "must equal account_id, and is not sent with calls of many accounts"
            raise errors.BadFieldError(
                f"{metadata.ACCOUNT_KEY} {what}", fields={metadata.ACCOUNT_KEY: what}
            )

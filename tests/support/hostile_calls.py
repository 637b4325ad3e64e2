"""Every call of every service, with a payload wherever bytes or text can be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from mailraft.internal.v1 import peer_service_pb2
from mailraft.v1 import (
    account_pb2,
    admin_pb2,
    batch_pb2,
    blob_pb2,
    cluster_pb2,
    job_pb2,
    mailbox_pb2,
    message_service_pb2,
)

CALL_DEADLINE_S = 4.0
CALLS_AT_ONCE = 32
DEPTH_MAX = 6
_FILES = (
    account_pb2,
    admin_pb2,
    batch_pb2,
    blob_pb2,
    cluster_pb2,
    job_pb2,
    mailbox_pb2,
    message_service_pb2,
    peer_service_pb2,
    health_pb2,
    reflection_pb2,
)
SERVICES: list[ServiceDescriptor] = [
    service for file in _FILES for service in file.DESCRIPTOR.services_by_name.values()
]


@dataclass(frozen=True, slots=True)
class Filling:
    """What a message is filled with. known: fields by name that keep a value of their own, so that
    a call gets further than its first check. choice: which one of every oneof.
    """

    payload: bytes
    text: str
    known: Mapping[str, str | bytes] = field(default_factory=dict)
    choice: int = 0

    def message(self, kind: Descriptor, depth: int = 0) -> Message:
        """A message with everything in it that fits."""
        message = message_factory.GetMessageClass(kind)()
        left_out = {
            each.name
            for oneof in kind.oneofs
            for number, each in enumerate(oneof.fields)
            if number != self.choice % len(oneof.fields)
        }
        for each in kind.fields:
            if each.name not in left_out:
                self._fill(message, each, depth)
        return message

    def _fill(self, message: Message, each: FieldDescriptor, depth: int) -> None:
        inner = each.message_type
        if inner is None:
            value = self._scalar(each)
            if each.is_repeated:
                getattr(message, each.name).append(value)
            else:
                setattr(message, each.name, value)
        elif inner.GetOptions().map_entry:
            if inner.fields_by_name["value"].type == FieldDescriptor.TYPE_STRING:
                getattr(message, each.name)[self.text] = self.text
        elif depth < DEPTH_MAX:
            filled = self.message(inner, depth + 1)
            if each.is_repeated:
                getattr(message, each.name).append(filled)
            else:
                getattr(message, each.name).CopyFrom(filled)

    def _scalar(self, each: FieldDescriptor) -> str | bytes | int:
        if each.name in self.known:
            return self.known[each.name]
        match each.type:
            case FieldDescriptor.TYPE_STRING:
                return self.text
            case FieldDescriptor.TYPE_BYTES:
                return self.payload
            case FieldDescriptor.TYPE_BOOL:
                return False
            case _:
                return 1


def choices(kind: Descriptor, depth: int = 0) -> int:
    """How many fillings it takes to have had every field of every oneof."""
    found = max((len(oneof.fields) for oneof in kind.oneofs), default=1)
    for each in kind.fields:
        if each.message_type is not None and depth < DEPTH_MAX:
            found = max(found, choices(each.message_type, depth + 1))
    return found


def requests(kind: Descriptor, filling: Filling) -> Iterator[bytes]:
    """Serialized messages of a kind, each with another choice."""
    for choice in range(choices(kind)):
        chosen = Filling(filling.payload, filling.text, filling.known, choice)
        yield chosen.message(kind).SerializeToString()


# What grpc.aio says at the client when it was sending still while its call was refused.
_CUT_OFF = "Internal error from Core"


@dataclass(frozen=True, slots=True)
class Answer:
    """How a call ended; OK too if it goes on."""

    path: str
    code: grpc.StatusCode
    details: str

    @property
    def is_clear(self) -> bool:
        """Not that of a handler that fell over."""
        fell = self.code in {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
        return not fell or self.details == _CUT_OFF


async def send(
    channel: grpc.aio.Channel,
    path: str,
    messages: Sequence[bytes],
    metadata: Sequence[tuple[str, str | bytes]] = (),
) -> Answer:
    """Send messages, whatever the call wants; take one reply."""
    untyped: Any = channel  # its stubs know neither bytes as they are nor EOF
    method = untyped.stream_stream(path)
    call = method(iter(messages), timeout=CALL_DEADLINE_S, metadata=tuple(metadata))
    try:
        if await call.read():
            return Answer(path, grpc.StatusCode.OK, "")
        return Answer(path, await call.code(), await call.details())
    except grpc.aio.AioRpcError as error:
        return Answer(path, error.code(), error.details() or "")
    finally:
        call.cancel()


async def send_instead(channel: grpc.aio.Channel, payloads: Sequence[bytes]) -> list[Answer]:
    """Send payloads instead of messages, to every method; to a stream all in one too."""
    calls: list[tuple[str, Sequence[bytes]]] = []
    for path, method in _methods():
        calls += [(path, [each]) for each in payloads]
        if method.client_streaming:
            calls.append((path, payloads))
    return await _at_once(channel, calls)


async def send_within(channel: grpc.aio.Channel, filling: Filling) -> list[Answer]:
    """Send filled messages, to every method; to a stream all in one too."""
    calls: list[tuple[str, Sequence[bytes]]] = []
    for path, method in _methods():
        filled = list(requests(method.input_type, filling))
        calls += [(path, [each]) for each in filled]
        if method.client_streaming:
            calls.append((path, filled))
    return await _at_once(channel, calls)


def _methods() -> Iterator[tuple[str, MethodDescriptor]]:
    for service in SERVICES:
        for method in service.methods:
            yield f"/{service.full_name}/{method.name}", method


async def _at_once(
    channel: grpc.aio.Channel, calls: Sequence[tuple[str, Sequence[bytes]]]
) -> list[Answer]:
    at_once = asyncio.Semaphore(CALLS_AT_ONCE)

    async def one(path: str, messages: Sequence[bytes]) -> Answer:
        async with at_once:
            return await send(channel, path, messages)

    return list(await asyncio.gather(*(one(path, messages) for path, messages in calls)))

"""BatchService: many unary calls in one, through the same handlers, an outcome each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from mailraft.v1 import batch_pb2
from mailraft.wire import errors, limits, observed, tracing
from mailraft.wire.ready import Ready, tag, varint

from . import delivery, levels, validate
from .base import REPLY_MAX_BYTES, Call, Service, Shards, Unary, answer, not_implemented, to_error

# How results begin in the response, and what each may hold in a result.
_RESULT = tag(batch_pb2.ExecuteResponse.DESCRIPTOR.fields_by_name["results"])
_RESULTS = {field.name: tag(field) for field in batch_pb2.BatchResult.DESCRIPTOR.fields}
# What answers in place of a read, and of a mutation, that the reply has no room for.
_FULL, _DONE = (
    batch_pb2.BatchResult(error=error.to_status()).SerializeToString()
    for error in (errors.ReplyFullError(), errors.CommitUnknownError(limits.NO_ROOM))
)
_FIELD_BYTES = 8  # around a result
# What the reads of a batch may answer before others get a turn of the event loop.
TURN_MAX_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class _Method:
    descriptor: MethodDescriptor
    unary: Unary | None
    later: str
    reads: bool
    path: str  # as spans and metrics have it


def _methods(service: Service) -> Iterator[tuple[str, _Method]]:
    for name, method in service.descriptor.methods_by_name.items():
        asked = method.input_type
        reads = "read_options" in asked.fields_by_name
        unary, later = service.unary.get(name), service.later.get(name, "")
        path = f"{service.descriptor.name}/{name}"
        yield asked.full_name, _Method(method, unary, later, reads, path)


@dataclass(slots=True)
class _Item:
    """One call of a batch, and its outcome."""

    name: str
    request: Any  # None: it holds none
    traceparent: str
    reads: bool
    result: bytes = b""  # a BatchResult


class Batch:
    def __init__(self, shards: Shards, services: Iterable[Service]) -> None:
        self._shards = shards
        by_request = dict(each for service in services for each in _methods(service))
        self._methods: dict[str, _Method] = {}
        for field in batch_pb2.BatchItem.DESCRIPTOR.oneofs_by_name["request"].fields:
            assert field.message_type is not None
            self._methods[field.name] = by_request[field.message_type.full_name]

    def service(self) -> Service:
        return Service(
            batch_pb2.DESCRIPTOR.services_by_name["BatchService"],
            unary={"Execute": self.Execute},
        )

    async def Execute(self, request: batch_pb2.ExecuteRequest, call: Call) -> Ready:
        """An ExecuteResponse."""
        if not 1 <= len(request.items) <= limits.BATCH_ITEMS_MAX:
            raise validate.bad("items", f"1 to {limits.BATCH_ITEMS_MAX}")
        _check_counts(request)
        room = _Room()
        items: list[_Item] = []
        reads: list[_Item] = []
        async with asyncio.TaskGroup() as group:
            for each in request.items:
                name = each.WhichOneof("request") or ""
                asked = getattr(each, name) if name else None
                reading = bool(name) and self._methods[name].reads
                item = _Item(name, asked, each.traceparent, reading)
                items.append(item)
                if reading:
                    reads.append(item)
                else:
                    group.create_task(self._run(item, call, room))
            if reads:
                await self._read(reads, call, room)
        _shorten(items)
        return Ready(part for item in items for part in _field(_RESULT, item.result))

    async def _read(self, reads: Sequence[_Item], call: Call, room: _Room) -> None:
        """Most reads wait for nothing but what they wait for together. So they run one after the
        other, which costs less than a task for each; beside one that waits the next goes on.
        """
        asked = (item.request for item in reads)
        together = await levels.asked_together(self._shards, asked, call)
        left = deque(reads)

        async def work() -> None:
            while left:
                await self._run(left.popleft(), together, room)

        async with asyncio.TaskGroup() as group:
            while left:
                group.create_task(work())
                await asyncio.sleep(0)

    async def _run(self, item: _Item, call: Call, room: _Room) -> None:
        code = 0
        try:
            if item.request is None:
                raise validate.bad("items", "each holds one request")
            method = self._methods[item.name]
            with tracing.below(item.traceparent, method.path):
                response = await self._answer(method, item.request, call, room)
            item.result = b"".join(_field(_RESULTS[item.name], response))
        except Exception as error:  # noqa: BLE001 - to_error logs what is a bug
            status = to_error(error, f"a batch's {item.name}").to_status()
            item.result = b"".join(_field(_RESULTS["error"], status.SerializeToString()))
            code = status.code
        observed.answered(item.name or "none", observed.level_of(item.request), code)

    async def _answer(self, method: _Method, request: Message, call: Call, room: _Room) -> bytes:
        if method.unary is None:
            raise not_implemented(method.descriptor, method.later)
        if not method.reads:
            return (
                await answer(method.descriptor, method.unary, request, call)
            ).SerializeToString()
        await room.turn()
        response = (await method.unary(request, call)).SerializeToString()
        room.take(len(response))
        return response


class _Room:
    """What the reads of one batch may still answer, in all and in this turn of the event loop."""

    def __init__(self) -> None:
        self._left_bytes = REPLY_MAX_BYTES
        self._turn_bytes = 0

    async def turn(self) -> None:
        while self._turn_bytes >= TURN_MAX_BYTES:
            if (
                self._turn_bytes < 2 * REPLY_MAX_BYTES
            ):  # the first to wait: it ends the turn for all
                self._turn_bytes = 2 * REPLY_MAX_BYTES
                asyncio.get_running_loop().call_soon(self._next_turn)
            await asyncio.sleep(0)
        if self._left_bytes <= 0:
            raise errors.ReplyFullError

    def take(self, size_bytes: int) -> None:
        self._turn_bytes += size_bytes
        if size_bytes > self._left_bytes:
            self._left_bytes = 0
            raise errors.ReplyFullError
        self._left_bytes -= size_bytes

    def _next_turn(self) -> None:
        self._turn_bytes = 0


def _shorten(items: Sequence[_Item]) -> None:
    """What the reply has no room for is left out, from the last on: reads first (REPLY_FULL), then
    mutations. Those are done: COMMIT_UNKNOWN has them asked again by request_id.
    """
    over = sum(len(item.result) + _FIELD_BYTES for item in items) - limits.RPC_MAX_BYTES
    for reads, instead in ((True, _FULL), (False, _DONE)):
        for item in reversed(items):
            if over <= 0:
                return
            if item.reads is reads and len(item.result) > len(instead):
                over -= len(item.result) - len(instead)
                item.result = instead


def _field(begin: bytes, message: bytes) -> tuple[bytes, bytes, bytes]:
    """A message as a field of another, in pieces."""
    return begin, varint(len(message)), message


def _check_counts(request: batch_pb2.ExecuteRequest) -> None:
    """Mutations are always answered, so what they answer is bounded beforehand."""
    delivery.check_counts(
        item.deliver_messages for item in request.items if item.HasField("deliver_messages")
    )
    appended = sum(len(item.append_messages.messages) for item in request.items)
    if appended > validate.RECIPIENTS_PER_CALL_MAX:
        raise validate.bad("items", f"at most {validate.RECIPIENTS_PER_CALL_MAX} appended messages")

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

from . import delivery, levels, validate
from .base import REPLY_MAX_BYTES, Call, Service, Shards, Unary, answer, not_implemented, to_error

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
    """One call of a batch, and where its outcome goes."""

    name: str
    request: Any  # None: it holds none
    traceparent: str
    result: batch_pb2.BatchResult


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

    async def Execute(
        self, request: batch_pb2.ExecuteRequest, call: Call
    ) -> batch_pb2.ExecuteResponse:
        if not 1 <= len(request.items) <= limits.BATCH_ITEMS_MAX:
            raise validate.bad("items", f"1 to {limits.BATCH_ITEMS_MAX}")
        _check_counts(request)
        response = batch_pb2.ExecuteResponse()
        room = _Room()
        reads: list[_Item] = []
        async with asyncio.TaskGroup() as group:
            for each in request.items:
                name = each.WhichOneof("request") or ""
                asked = getattr(each, name) if name else None
                item = _Item(name, asked, each.traceparent, response.results.add())
                if name and self._methods[name].reads:
                    reads.append(item)
                else:
                    group.create_task(self._run(item, call, room))
            if reads:
                await self._read(reads, call, room)
        return response

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
            getattr(item.result, item.name).CopyFrom(response)
        except Exception as error:  # noqa: BLE001 - to_error logs what is a bug
            item.result.error.CopyFrom(to_error(error, f"a batch's {item.name}").to_status())
            code = item.result.error.code
        observed.answered(item.name or "none", observed.level_of(item.request), code)

    async def _answer(self, method: _Method, request: Message, call: Call, room: _Room) -> Message:
        if method.unary is None:
            raise not_implemented(method.descriptor, method.later)
        if not method.reads:
            return await answer(method.descriptor, method.unary, request, call)
        await room.turn()
        response = await method.unary(request, call)
        room.take(response.ByteSize())
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


def _check_counts(request: batch_pb2.ExecuteRequest) -> None:
    """Mutations are always answered, so what they answer is bounded beforehand."""
    delivery.check_counts(
        item.deliver_messages for item in request.items if item.HasField("deliver_messages")
    )
    appended = sum(len(item.append_messages.messages) for item in request.items)
    if appended > validate.RECIPIENTS_PER_CALL_MAX:
        raise validate.bad("items", f"at most {validate.RECIPIENTS_PER_CALL_MAX} appended messages")

"""BatchService: many unary calls in one, through the same handlers, an outcome each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from mailraft.v1 import batch_pb2
from mailraft.wire import errors, limits, observed, tracing

from . import delivery, validate
from .base import REPLY_MAX_BYTES, Call, Service, Unary, answer, not_implemented, to_error

# What the reads of a batch may answer before others get a turn of the event loop.
TURN_MAX_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class _Method:
    descriptor: MethodDescriptor
    unary: Unary | None
    later: str

    @property
    def path(self) -> str:
        """As spans and metrics have it."""
        service = self.descriptor.containing_service
        assert service is not None
        return f"{service.name}/{self.descriptor.name}"

    @property
    def reads(self) -> bool:
        return "read_options" in self.descriptor.input_type.fields_by_name


class Batch:
    def __init__(self, services: Iterable[Service]) -> None:
        by_request = {
            method.input_type.full_name: _Method(
                method, service.unary.get(name), service.later.get(name, "")
            )
            for service in services
            for name, method in service.descriptor.methods_by_name.items()
        }
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
        await asyncio.gather(
            *(self._run(item, response.results.add(), call, room) for item in request.items)
        )
        return response

    async def _run(
        self, item: batch_pb2.BatchItem, result: batch_pb2.BatchResult, call: Call, room: _Room
    ) -> None:
        name, code = item.WhichOneof("request"), 0
        try:
            if name is None:
                raise validate.bad("items", "each holds one request")
            method = self._methods[name]
            with tracing.below(item.traceparent, method.path):
                response = await self._answer(method, getattr(item, name), call, room)
            getattr(result, name).CopyFrom(response)
        except Exception as error:  # noqa: BLE001 - to_error logs what is a bug
            result.error.CopyFrom(to_error(error, f"a batch's {name}").to_status())
            code = result.error.code
        level = observed.level_of(getattr(item, name)) if name is not None else "none"
        observed.answered(name or "none", level, code)

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

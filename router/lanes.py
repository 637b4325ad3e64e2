"""The coalescing lanes to the nodes: deliveries, and small unary calls through BatchService.

A shard in trouble gets lanes of its own for a while: a call whose answer hangs on one shard would
hold up every other item that travels with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from google.protobuf.message import Message

from mailraft.router.coalesce import Coalescer, LaneCounts
from mailraft.router.fleet import Fleet
from mailraft.router.methods import METHODS, Method
from mailraft.router.table import Place
from mailraft.v1 import batch_pb2, common_pb2, delivery_pb2
from mailraft.wire import errors, tracing

TROUBLE_S = 2.0
# Idle lanes are dropped when there are more than this; they cost nothing to make again.
LANES_KEPT = 512
_NO_SHARD = -1

_DELIVER = METHODS["/mailraft.v1.MessageService/DeliverMessages"]
_EXECUTE = METHODS["/mailraft.v1.BatchService/Execute"]

ReadResult = Message | errors.MailraftError
DeliverLane = Coalescer[delivery_pb2.Delivery, delivery_pb2.DeliveryResult]
ReadLane = Coalescer["Read", ReadResult]


class Read(NamedTuple):
    """One unary call on its way into a batch."""

    method: Method
    request: Message
    size_bytes: int
    traceparent: str = ""


class Lanes:
    """Every lane, by node and by what may travel together."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._deliver: dict[tuple[str, bytes, int], DeliverLane] = {}
        self._read: dict[tuple[str, int, int], ReadLane] = {}
        self._trouble_until_s: dict[int, float] = {}
        self.counts = LaneCounts()  # of all lanes together, also of those that are dropped

    def deliver(
        self, place: Place, shard: int, write_options: common_pb2.WriteOptions | None
    ) -> DeliverLane:
        """Deliveries with equal options to one node."""
        options = write_options.SerializeToString(deterministic=True) if write_options else b""
        key = (place.address, options, self._lane_shard(shard))
        lane = self._deliver.get(key)
        if lane is None:
            _drop_idle(self._deliver)

            async def send(
                items: Sequence[delivery_pb2.Delivery], deadline_s: float
            ) -> Sequence[delivery_pb2.DeliveryResult]:
                return await self._send_deliveries(place, items, write_options, deadline_s)

            lane = Coalescer(send, counts=self.counts)
            self._deliver[key] = lane
        return lane

    def read(self, place: Place, shard: int, company: int) -> ReadLane:
        """Calls of one level to one node: what one waits for, those beside it wait for too."""
        key = (place.address, company, self._lane_shard(shard))
        lane = self._read.get(key)
        if lane is None:
            _drop_idle(self._read)

            async def send(items: Sequence[Read], deadline_s: float) -> Sequence[ReadResult]:
                return await self._send_reads(place, items, deadline_s)

            lane = self._read[key] = Coalescer(send, counts=self.counts)
        return lane

    def trouble(self, shard: int) -> None:
        """A shard does not answer as it should."""
        self._trouble_until_s[shard] = asyncio.get_running_loop().time() + TROUBLE_S

    async def close(self) -> None:
        for deliver_lane in self._deliver.values():
            await deliver_lane.close()
        for read_lane in self._read.values():
            await read_lane.close()

    # ---- inside ----------------------------------------------------------------------------------

    def _lane_shard(self, shard: int) -> int:
        if not self._trouble_until_s:
            return _NO_SHARD
        until_s = self._trouble_until_s.get(shard)
        if until_s is None:
            return _NO_SHARD
        if until_s <= asyncio.get_running_loop().time():
            del self._trouble_until_s[shard]
            return _NO_SHARD
        return shard

    async def _send_deliveries(
        self,
        place: Place,
        items: Sequence[delivery_pb2.Delivery],
        write_options: common_pb2.WriteOptions | None,
        deadline_s: float,
    ) -> Sequence[delivery_pb2.DeliveryResult]:
        request = delivery_pb2.DeliverMessagesRequest(deliveries=items, write_options=write_options)
        response = await self._fleet.node(place).unary(
            _DELIVER, request, _remaining(deadline_s), self._fleet.metadata(), request.ByteSize()
        )
        assert isinstance(response, delivery_pb2.DeliverMessagesResponse)
        for result in response.results[:1]:
            for recipient in result.recipients[:1]:
                self._fleet.told_epoch(recipient.served.map_epoch)
        return response.results[:]

    async def _send_reads(
        self, place: Place, items: Sequence[Read], deadline_s: float
    ) -> Sequence[ReadResult]:
        node, metadata = self._fleet.node(place), self._fleet.metadata()
        if len(items) == 1:
            only = items[0]
            timeout_s = _remaining(deadline_s)
            if only.traceparent:
                metadata = (*metadata, (tracing.TRACEPARENT_KEY, only.traceparent))
            return [
                await node.unary(only.method, only.request, timeout_s, metadata, only.size_bytes)
            ]
        request = batch_pb2.ExecuteRequest(
            items=[batch_pb2.BatchItem(**_field(item)) for item in items]
        )
        response = await node.unary(
            _EXECUTE, request, _remaining(deadline_s), metadata, request.ByteSize()
        )
        assert isinstance(response, batch_pb2.ExecuteResponse)
        return [opened(result) for result in response.results]


def opened(result: batch_pb2.BatchResult) -> ReadResult:
    """The response in a batch's result, or its error."""
    field = result.WhichOneof("result")
    if field is None:
        return errors.UnimplementedError("the server answered with a kind that is not known here")
    if field == "error":
        return errors.from_status(result.error)
    response: Message = getattr(result, field)
    return response


def _field(read: Read) -> dict[str, Any]:
    return {read.method.batch_field: read.request, "traceparent": read.traceparent}


def _remaining(deadline_s: float) -> float:
    return max(0.001, deadline_s - asyncio.get_running_loop().time())


def _drop_idle(lanes: dict[Any, Any]) -> None:
    if len(lanes) >= LANES_KEPT:
        for key in [key for key, lane in lanes.items() if lane.idle]:
            del lanes[key]

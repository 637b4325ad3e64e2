"""Dispatch: a request in, the answer of the right node out. What router and client have in common.

    dispatcher = await Dispatcher.connect(["127.0.0.1:7400"], Credentials("certs", "client"))
    result = await dispatcher.deliver(delivery, write_options, deadline_s)
    response = await dispatcher.unary(method_of(request), request, deadline_s)
    async for part in dispatcher.stream(method_of(request), request): ...

Deadlines are absolute, on the clock of the running event loop (loop.time()); None: the default of
the API. Everything raises errors of mailraft.wire.errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from mailraft.router import listing, own_map, uploads
from mailraft.router.attempts import Goal, Target
from mailraft.router.coalesce import LaneCounts
from mailraft.router.deliver import Deliverer
from mailraft.router.failures import LostError, NoAnswerError
from mailraft.router.fleet import Fleet, Refresh, fetch_map
from mailraft.router.goals import company_of, goal_of, level_of, read_anywhere, upload_goal
from mailraft.router.hedge import Hedger
from mailraft.router.lanes import Lanes, Read
from mailraft.router.methods import (
    Method,
    Route,
    batched_method,
    method_of,
    small_change,
)
from mailraft.router.pool import Pool
from mailraft.router.table import Place, RoutingTable
from mailraft.router.tries import Tries
from mailraft.v1 import batch_pb2, blob_pb2, cluster_pb2, common_pb2, delivery_pb2
from mailraft.wire import access, errors, limits, tracing
from mailraft.wire import credentials as wire_credentials

# Streams have no deadline; their first part has one, so that a dead node is left for another.
STREAM_START_S = 10.0
# Above this a read's request travels alone.
COALESCED_REQUEST_MAX_BYTES = 64 * 1024

Response = TypeVar("Response", bound=Message)
Answer = TypeVar("Answer")


class Dispatcher:
    """Finds the node for each request, batches, retries what is safe; bounded everywhere.

    cluster_map: to route by at first. refresh: where newer ones come from; without it any node is
    asked. coalesce_reads: unary reads that run at the same time travel together through
    BatchService. zone: whose replicas are near.
    """

    def __init__(
        self,
        cluster_map: cluster_pb2.ClusterMap,
        credentials: wire_credentials.AnyCredentials,
        *,
        refresh: Refresh | None = None,
        capabilities: cluster_pb2.GetCapabilitiesResponse | None = None,
        coalesce_reads: bool = True,
        options: wire_credentials.Options = (),
        zone: str = "",
    ) -> None:
        self.fleet = Fleet(cluster_map, credentials, refresh=refresh, options=options, zone=zone)
        self.hedger = Hedger()
        self.capabilities = capabilities
        self._coalesce_reads = coalesce_reads
        self._lanes = Lanes(self.fleet)
        self._deliverer = Deliverer(self.fleet, self._lanes)

    @classmethod
    async def connect(
        cls,
        addresses: Sequence[str],
        credentials: wire_credentials.AnyCredentials,
        *,
        coalesce_reads: bool = True,
        options: wire_credentials.Options = (),
        zone: str = "",
    ) -> Dispatcher:
        """Route by the map of the first server that answers, node or router."""
        pool = Pool(credentials, options)
        try:
            cluster_map = await fetch_map(pool, addresses)
        finally:
            await pool.close()
        return cls(
            cluster_map, credentials, coalesce_reads=coalesce_reads, options=options, zone=zone
        )

    @property
    def table(self) -> RoutingTable:
        return self.fleet.table

    def lane_counts(self) -> LaneCounts:
        """How well calls coalesce."""
        return self._lanes.counts

    async def close(self) -> None:
        """End every call and connection."""
        await self._lanes.close()
        await self.fleet.close()

    # ---- calls -----------------------------------------------------------------------------------

    async def deliver(
        self,
        delivery: delivery_pb2.Delivery,
        write_options: common_pb2.WriteOptions | None = None,
        deadline_s: float | None = None,
    ) -> delivery_pb2.DeliveryResult:
        """An answer for each recipient, in order; never raises what a recipient can be told."""
        return await self._deliverer.deliver(delivery, write_options, _deadline(deadline_s))

    async def unary(
        self, method: Method, request: Message, deadline_s: float | None = None
    ) -> Message:
        """The response to any unary call of the API."""
        until_s = _deadline(deadline_s)
        if isinstance(request, delivery_pb2.DeliverMessagesRequest):
            return await self._deliver_all(request, until_s)
        if isinstance(request, batch_pb2.ExecuteRequest):
            return await self._execute(request, until_s)
        if method.route is Route.EVERY_SHARD:
            now = asyncio.get_running_loop().time
            return await listing.list_accounts(self._to_node, self.table, request, until_s, now=now)
        if method.route is Route.MAP:
            own = own_map.answer(self.table, request, self.capabilities)
            if own is not None:
                return own
        return await self._to_node(method, request, until_s)

    async def ask(
        self, request: Message, kind: type[Response], deadline_s: float | None = None
    ) -> Response:
        """The response to a request, whose type tells the call; `kind` is its type."""
        response = await self.unary(method_of(request), request, deadline_s)
        assert isinstance(response, kind)
        return response

    async def stream(
        self, method: Method, request: Message, deadline_s: float | None = None
    ) -> AsyncIterator[Message]:
        """The responses of a server-streaming call.

        Another node is tried only before the first response; later a broken stream is an
        UnavailableError, and the caller resumes where it is.
        """
        if isinstance(request, cluster_pb2.WatchClusterMapRequest):
            async for update in own_map.watch(self.table, request):
                yield update
            return
        started = False
        until_s = deadline_s or asyncio.get_running_loop().time() + STREAM_START_S
        tries = Tries(self.fleet, goal_of(self.table.topology, method, request), until_s)
        while True:
            place = tries.next()
            timeout_s = _left(deadline_s)
            responses = self.fleet.node(place).stream(
                method, request, timeout_s, (*self.fleet.metadata(), *access.metadata())
            )
            try:
                async for response in _first_in_time(responses, method, tries.timeout_s()):
                    started = True
                    yield response
                return
            except LostError as error:
                if started:
                    raise errors.ShuttingDownError(f"the stream broke: {error.message}") from None
                await tries.failed(place, error)
            except errors.MailraftError as error:
                if started:
                    raise
                await tries.failed(place, error)

    async def upload(
        self,
        header: blob_pb2.UploadBlobRequest,
        chunks: AsyncIterator[blob_pb2.UploadBlobRequest],
        deadline_s: float | None = None,
    ) -> blob_pb2.UploadBlobResponse:
        """UploadBlob. Another node is tried only before the first chunk is taken."""
        account_id = header.header.account_id
        shard = self.table.topology.shard_of(account_id)
        named = bool(header.header.request_id)
        goal = upload_goal(shard, repeatable=named)
        return await uploads.upload(self.fleet, goal, header, chunks, deadline_s)

    # ---- inside ----------------------------------------------------------------------------------

    async def _to_node(self, method: Method, request: Message, deadline_s: float) -> Message:
        goal = goal_of(self.table.topology, method, request)
        tries = Tries(self.fleet, goal, deadline_s)
        size_bytes = request.ByteSize()
        together = (
            self._coalesce_reads
            and (method.coalesced or (small_change(method, request) and not tracing.recorded()))
            and goal.target is not Target.EXACT
            and size_bytes <= COALESCED_REQUEST_MAX_BYTES
        )
        anywhere = read_anywhere(goal, method)

        async def ask(place: Place) -> Message:
            with (
                tracing.span("try", {"shard": goal.shard, "node": place.address}),
                self.fleet.loads.measured(place.address, sampled=anywhere),
            ):
                if together:
                    read = Read(method, request, size_bytes, tracing.traceparent())
                    return await self._read(read, goal, tries, place)
                metadata = (*self.fleet.metadata(), *access.metadata(), *tracing.metadata())
                return await self.fleet.node(place).unary(
                    method, request, tries.timeout_s(), metadata, size_bytes
                )

        while True:
            place = tries.next()
            try:
                if anywhere and tries.first:
                    kind = method.name, level_of(request)
                    response = await self.hedger.ask(kind, place, ask, tries.spare)
                else:
                    async with tries.patience(place):
                        response = await ask(place)
            except errors.MailraftError as error:
                if isinstance(error, NoAnswerError):
                    self._lanes.trouble(goal.shard)
                await tries.failed(place, error)
                continue
            tries.succeeded(place)
            served = getattr(response, "served", None)
            if isinstance(served, common_pb2.Served):
                self.fleet.told_epoch(served.map_epoch)
            return response

    async def _read(self, read: Read, goal: Goal, tries: Tries, place: Place) -> Message:
        lane = self._lanes.read(place, goal.shard, company_of(read.request))
        until_s = asyncio.get_running_loop().time() + tries.timeout_s()
        result = await lane.submit(read, read.size_bytes, until_s)
        if isinstance(result, errors.MailraftError):
            raise result
        return result

    async def _deliver_all(
        self, request: delivery_pb2.DeliverMessagesRequest, deadline_s: float
    ) -> delivery_pb2.DeliverMessagesResponse:
        _check_count("deliveries", len(request.deliveries), limits.DELIVERIES_PER_CALL_MAX)
        recipients = sum(len(delivery.recipients) for delivery in request.deliveries)
        if recipients > limits.RECIPIENTS_PER_CALL_MAX:
            what = f"at most {limits.RECIPIENTS_PER_CALL_MAX} recipients in all"
            raise errors.BadFieldError(f"deliveries: {what}", fields={"deliveries": what})
        write_options = request.write_options if request.HasField("write_options") else None
        results = await _together(
            self._deliverer.deliver(delivery, write_options, deadline_s)
            for delivery in request.deliveries
        )
        return delivery_pb2.DeliverMessagesResponse(results=results)

    async def _execute(
        self, request: batch_pb2.ExecuteRequest, deadline_s: float
    ) -> batch_pb2.ExecuteResponse:
        _check_count("items", len(request.items), limits.BATCH_ITEMS_MAX)
        results = await _together(self._execute_one(item, deadline_s) for item in request.items)
        return batch_pb2.ExecuteResponse(results=fitting(request.items, results))

    async def _execute_one(
        self, item: batch_pb2.BatchItem, deadline_s: float
    ) -> batch_pb2.BatchResult:
        field = item.WhichOneof("request")
        if field is None:
            error = errors.BadFieldError(fields={"items": "an item without a request"})
            return batch_pb2.BatchResult(error=error.to_status())
        try:
            response = await self.unary(batched_method(field), getattr(item, field), deadline_s)
        except errors.MailraftError as error:
            return batch_pb2.BatchResult(error=error.to_status())
        result = batch_pb2.BatchResult()
        getattr(result, field).CopyFrom(response)
        return result


def fitting(
    items: Sequence[batch_pb2.BatchItem], results: Sequence[batch_pb2.BatchResult]
) -> list[batch_pb2.BatchResult]:
    """Results that stay below the reply's limit. What is past it is left out, from the last on:
    reads first (REPLY_FULL), then mutations. Those are done: COMMIT_UNKNOWN has them asked again.
    """
    fit = list(results)
    over = sum(result.ByteSize() + 8 for result in results) - limits.RPC_MAX_BYTES
    for mutations, error in (
        (False, errors.ReplyFullError()),
        (True, errors.CommitUnknownError(limits.NO_ROOM)),
    ):
        instead = batch_pb2.BatchResult(error=error.to_status())
        for place in reversed(range(len(fit))):
            if over <= 0:
                return fit
            field, size_bytes = items[place].WhichOneof("request"), fit[place].ByteSize()
            mutation = field is not None and batched_method(field).mutation
            if mutation is mutations and size_bytes > instead.ByteSize():
                over -= size_bytes - instead.ByteSize()
                fit[place] = instead
    return fit


async def _together(calls: Iterable[Coroutine[Any, Any, Answer]]) -> list[Answer]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(call) for call in calls]
    return [task.result() for task in tasks]


def _check_count(field: str, count: int, maximum: int) -> None:
    if not 1 <= count <= maximum:
        raise errors.BadFieldError(fields={field: f"1 to {maximum}, not {count}"})


def _deadline(deadline_s: float | None) -> float:
    now_s = asyncio.get_running_loop().time()
    if deadline_s is None:
        return now_s + limits.DEADLINE_DEFAULT_MS / 1000
    return min(deadline_s, now_s + limits.DEADLINE_MAX_MS / 1000)


def _left(deadline_s: float | None) -> float | None:
    if deadline_s is None:
        return None
    return max(0.001, deadline_s - asyncio.get_running_loop().time())


async def _first_in_time(
    responses: AsyncGenerator[Message, None], method: Method, timeout_s: float
) -> AsyncIterator[Message]:
    """Pass a stream on; its first part must come in time, unless it may be silent at first."""
    try:
        if method.name != "WatchShard":
            try:
                yield await asyncio.wait_for(anext(responses), timeout_s)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise NoAnswerError("the stream did not begin in time") from None
        async for response in responses:
            yield response
    finally:
        await responses.aclose()

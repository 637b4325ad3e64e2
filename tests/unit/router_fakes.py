"""Nodes that a router can talk to: real grpc.aio servers on loopback, with no store behind them."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from mailraft.router.dispatch import Dispatcher
from mailraft.router.methods import METHODS, Method, batched_method
from mailraft.router.ring import slot_ranges
from mailraft.v1 import (
    batch_pb2,
    blob_pb2,
    cluster_pb2,
    common_pb2,
    delivery_pb2,
    error_pb2,
    message_pb2,
    message_service_pb2,
)
from mailraft.wire import credentials as wire_credentials
from mailraft.wire import errors
from mailraft.wire.slots import SLOTS, slot_of

INSECURE = wire_credentials.Insecure()
Hook = Callable[[Any], Awaitable[Any]]


def method(name: str) -> Method:
    """A call of the API by its name alone."""
    return next(each for each in METHODS.values() if each.name == name)


def delivery_to(*accounts: str, request_id: bytes | None = None) -> delivery_pb2.Delivery:
    """One small mail; request_id b"" leaves it without."""
    return delivery_pb2.Delivery(
        request_id=uuid.uuid4().bytes if request_id is None else request_id,
        content=delivery_pb2.Content(raw=b"Subject: hello\r\n\r\nbody"),
        recipients=[delivery_pb2.Recipient(account_id=account) for account in accounts],
    )


class FakeNode:
    """One node: answers for the shards that its cluster says it leads.

    hooks: by method name; a hook gets the request and returns a response, returns None to go on as
    usual, or raises a MailraftError.
    """

    def __init__(self, cluster: FakeCluster, number: int) -> None:
        self.cluster, self.number = cluster, number
        self.calls: Counter[str] = Counter()
        self.deliveries_per_call: list[int] = []
        self.in_flight = self.most_in_flight = 0
        self.hooks: dict[str, Hook] = {}
        self.deadlines_s: list[float] = []
        self.maps: asyncio.Queue[cluster_pb2.ClusterMap] = asyncio.Queue()
        self.metadata: list[dict[str, Any]] = []
        self.address = ""
        self._server: grpc.aio.Server | None = None
        self._stopping: list[asyncio.Future[None]] = []

    @property
    def replica_id(self) -> int:
        """The same for all shards."""
        return self.number << 32 | 1

    async def start(self) -> None:
        """Listen, at the same port as before if there was one."""
        await asyncio.gather(*self._stopping)
        server = grpc.aio.server(options=list(wire_credentials.SERVER_OPTIONS))
        by_service: dict[str, dict[str, Any]] = {}
        for each in METHODS.values():
            by_service.setdefault(each.service, {})[each.name] = self._handler(each)
        server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(*each) for each in by_service.items())
        )
        address = self.address or "127.0.0.1:0"
        port = wire_credentials.add_port(server, address, INSECURE)
        self.address = f"127.0.0.1:{port}"
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Die: connections break."""
        server, self._server = self._server, None
        if server is not None:
            self._stopping = [asyncio.ensure_future(server.stop(None))]
        await asyncio.gather(*self._stopping)

    def _handler(self, each: Method) -> Any:
        if each.client_streaming:
            make = (
                grpc.stream_stream_rpc_method_handler
                if each.server_streaming
                else grpc.stream_unary_rpc_method_handler
            )
        elif each.server_streaming:
            make = grpc.unary_stream_rpc_method_handler
        else:
            make = grpc.unary_unary_rpc_method_handler
        behaviour: Any = self._unary(each)
        if each.client_streaming:
            behaviour = self._watch if each.server_streaming else self._upload
        elif each.name == "WatchClusterMap":
            behaviour = self._watch_map
        elif each.server_streaming:
            behaviour = self._stream(each)
        return make(
            behaviour,
            request_deserializer=each.request.FromString,
            response_serializer=each.response.SerializeToString,
        )

    def _unary(self, each: Method) -> Any:
        async def call(request: Any, context: Any) -> Any:
            self._note(each, context)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            try:
                return await self._answer(each, request)
            except errors.MailraftError as error:
                await errors.abort(context, error)
            finally:
                self.in_flight -= 1

        return call

    def _note(self, each: Method, context: Any) -> None:
        self.calls[each.name] += 1
        self.deadlines_s.append(context.time_remaining() or 0.0)
        self.metadata.append(dict(context.invocation_metadata()))

    async def _answer(self, each: Method, request: Any) -> Any:
        hook = self.hooks.get(each.name)
        if hook is not None:
            response = await hook(request)
            if response is not None:
                return response
        if isinstance(request, delivery_pb2.DeliverMessagesRequest):
            return self._deliver(request)
        if isinstance(request, batch_pb2.ExecuteRequest):
            return batch_pb2.ExecuteResponse(
                results=[await self._batched(item) for item in request.items]
            )
        if isinstance(request, message_service_pb2.GetMessageRequest):
            return self._get_message(request)
        if isinstance(request, cluster_pb2.GetClusterMapRequest):
            return cluster_pb2.GetClusterMapResponse(map=self.cluster.map())
        if each.mutation and hasattr(request, "account_id"):
            self._check_leader(request.account_id)
        return each.response()

    async def _batched(self, item: batch_pb2.BatchItem) -> batch_pb2.BatchResult:
        field = item.WhichOneof("request")
        assert field is not None
        result = batch_pb2.BatchResult()
        try:
            response = await self._answer(batched_method(field), getattr(item, field))
            getattr(result, field).CopyFrom(response)
        except errors.MailraftError as error:
            result.error.CopyFrom(error.to_status())
        return result

    def _deliver(
        self, request: delivery_pb2.DeliverMessagesRequest
    ) -> delivery_pb2.DeliverMessagesResponse:
        self.deliveries_per_call.append(len(request.deliveries))
        return delivery_pb2.DeliverMessagesResponse(
            results=[
                delivery_pb2.DeliveryResult(
                    recipients=[
                        self._recipient(delivery.request_id, recipient.account_id)
                        for recipient in delivery.recipients
                    ]
                )
                for delivery in request.deliveries
            ]
        )

    def _recipient(self, request_id: bytes, account_id: str) -> delivery_pb2.RecipientResult:
        try:
            self._check_leader(account_id)
        except errors.MailraftError as error:
            return delivery_pb2.RecipientResult(
                code=error.code.value[0], reason=error.reason, message=error.message
            )
        done = self.cluster.delivered
        message_id = done.setdefault((request_id, account_id), f"M{len(done)}")
        return delivery_pb2.RecipientResult(message_id=message_id)

    def _get_message(
        self, request: message_service_pb2.GetMessageRequest
    ) -> message_service_pb2.GetMessageResponse:
        if request.read_options.consistency == common_pb2.CONSISTENCY_LINEARIZABLE:
            self._check_leader(request.account_id)
        return message_service_pb2.GetMessageResponse(
            message=message_pb2.Message(id=request.message_id),
            served=common_pb2.Served(replica_id=self.replica_id, map_epoch=self.cluster.epoch),
        )

    def _check_leader(self, account_id: str) -> None:
        shard = self.cluster.shard_of(account_id)
        leader = self.cluster.leaders.get(shard, 0)
        if leader == self.number:
            return
        if not leader:
            raise errors.NoLeaderError
        detail = error_pb2.NotLeader(
            shard=shard,
            term=self.cluster.term,
            leader_node_id=leader if self.cluster.tells_leader else 0,
            leader_replica_id=leader << 32 | 1 if self.cluster.tells_leader else 0,
        )
        raise errors.NotLeaderError(detail=detail)

    def _stream(self, each: Method) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            self._note(each, context)
            try:
                hook = self.hooks.get(each.name)
                responses = await hook(request) if hook else [each.response()]
                for response in responses:
                    if isinstance(response, errors.MailraftError):
                        raise response
                    yield response
            except errors.MailraftError as error:
                await errors.abort(context, error)

        return call

    async def _watch_map(
        self, _: cluster_pb2.WatchClusterMapRequest, __: Any
    ) -> AsyncIterator[cluster_pb2.WatchClusterMapResponse]:
        """Tells what `tell_map` is given, and nothing by itself: tests want routes to be wrong."""
        while True:
            yield cluster_pb2.WatchClusterMapResponse(map=await self.maps.get())

    def tell_map(self, told: cluster_pb2.ClusterMap) -> None:
        """To who watches the map here."""
        self.maps.put_nowait(told)

    async def _upload(self, requests: AsyncIterator[Any], context: Any) -> Any:
        self._note(method("UploadBlob"), context)
        received = b""
        try:
            async for request in requests:
                if request.WhichOneof("part") == "header":
                    self._check_leader(request.header.account_id)
                else:
                    received += request.chunk.data
        except errors.MailraftError as error:
            await errors.abort(context, error)
        return blob_pb2.UploadBlobResponse(blob_id="B1-0", size_bytes=len(received))

    async def _watch(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self._note(method("Watch"), context)
        respond = method("Watch").response
        async for request in requests:
            response: Any = respond(account_id=request.account_id)
            response.change.subscribed = True
            response.change.state = f"node-{self.number}"
            yield response


class FakeCluster:
    """Nodes 1..n that all hold all shards; `leaders` says who leads which."""

    def __init__(self, nodes: int, shards: int) -> None:
        self.shards = shards
        self.nodes = {number: FakeNode(self, number) for number in range(1, nodes + 1)}
        self.leaders = {shard: shard % nodes + 1 for shard in range(shards)}
        self.term = self.epoch = 1
        self.tells_leader = True
        self.delivered: dict[tuple[bytes, str], str] = {}

    def shard_of(self, account_id: str) -> int:
        """As the map says."""
        slot = slot_of(account_id)
        ranges = enumerate(slot_ranges(self.shards))
        return next(shard for shard, (first, last) in ranges if first <= slot <= last)

    def account_in(self, shard: int, number: int = 0) -> str:
        """The number-th of some accounts that live in a shard."""
        names = (f"user{index}" for index in itertools.count())
        found = (name for name in names if self.shard_of(name) == shard)
        return next(itertools.islice(found, number, None))

    def leader_of(self, account_id: str) -> FakeNode:
        """The node that leads an account's shard."""
        return self.nodes[self.leaders[self.shard_of(account_id)]]

    def elect(self, shard: int, number: int) -> None:
        """Another leader, in a new term."""
        self.term += 1
        self.leaders[shard] = number

    def total(self, name: str) -> int:
        """Calls of a method at all nodes."""
        return sum(node.calls[name] for node in self.nodes.values())

    def map(self, *, hints: bool = True) -> cluster_pb2.ClusterMap:
        """What GetClusterMap answers."""
        shards = []
        for shard in range(self.shards):
            replicas = [
                cluster_pb2.Replica(
                    replica_id=node.replica_id,
                    node_id=node.number,
                    role=cluster_pb2.REPLICA_ROLE_VOTER,
                )
                for node in self.nodes.values()
            ]
            entry = cluster_pb2.Shard(id=shard, replicas=replicas)
            leader = self.leaders.get(shard, 0)
            if hints and leader:
                entry.leader.CopyFrom(
                    cluster_pb2.LeaderHint(
                        shard=shard, node_id=leader, replica_id=leader << 32 | 1, term=self.term
                    )
                )
            shards.append(entry)
        return cluster_pb2.ClusterMap(
            cluster_id="fake",
            epoch=self.epoch,
            slot_count=SLOTS,
            slots=[
                cluster_pb2.SlotRange(first_slot=first, last_slot=last, shard=shard)
                for shard, (first, last) in enumerate(slot_ranges(self.shards))
            ],
            shards=shards,
            nodes=[
                cluster_pb2.Node(id=node.number, name=f"node-{node.number}", address=node.address)
                for node in self.nodes.values()
            ],
        )


@asynccontextmanager
async def fake_cluster(nodes: int = 3, shards: int = 4) -> AsyncIterator[FakeCluster]:
    """A running cluster of fakes."""
    cluster = FakeCluster(nodes, shards)
    try:
        for node in cluster.nodes.values():
            await node.start()
        yield cluster
    finally:
        await asyncio.gather(*(node.stop() for node in cluster.nodes.values()))


@asynccontextmanager
async def dispatching(
    cluster: FakeCluster, *, hints: bool = True, **options: Any
) -> AsyncIterator[Dispatcher]:
    """A dispatcher over a cluster of fakes."""
    dispatcher = Dispatcher(cluster.map(hints=hints), INSECURE, **options)
    try:
        yield dispatcher
    finally:
        await dispatcher.close()

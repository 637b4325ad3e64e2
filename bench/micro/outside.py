"""Layers outside of a node: client, router, RPC. Nodes answer at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from bench.micro.work import BATCH, account, mails, requests
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

from mailraft.client import AsyncClient
from mailraft.cluster import mapfile
from mailraft.router.dispatch import Dispatcher
from mailraft.router.methods import METHODS
from mailraft.router.service import handlers
from mailraft.v1 import cluster_pb2, common_pb2, delivery_pb2
from mailraft.wire import tokens
from mailraft.wire.admission import Admission
from mailraft.wire.credentials import SERVER_OPTIONS, Insecure, add_port, open_channel
from mailraft.wire.observed import Observe
from mailraft.wire.rpc_metrics import RpcMetrics

NODES = (1, 2, 3)


class _Answering:
    """Stands where a Node of the pool stands."""

    suspect = False
    address = "127.0.0.1:1"
    calls_in_flight = streams = 0

    async def unary(self, method: object, request: Message, *_: object, **__: object) -> Message:
        if isinstance(request, cluster_pb2.GetClusterMapRequest):
            return cluster_pb2.GetClusterMapResponse(map=cluster_map())
        assert isinstance(request, delivery_pb2.DeliverMessagesRequest)
        return answered(request)

    async def close(self, grace_s: float | None = None) -> None:
        """Nothing is open."""


def answered(request: delivery_pb2.DeliverMessagesRequest) -> delivery_pb2.DeliverMessagesResponse:
    """As a node would: each recipient has its mail."""
    response = delivery_pb2.DeliverMessagesResponse()
    for number, delivery in enumerate(request.deliveries):
        results = response.results.add().recipients
        for _ in delivery.recipients:
            results.add(
                message_id=tokens.message_id(number),
                state=tokens.encode_state(tokens.State(0, 7, number + 1)),
                blob_id=tokens.blob_id(number, 1),
                thread_id=tokens.thread_id(number),
                served=common_pb2.Served(shard=1, index=number, committed=True),
            )
    return response


def cluster_map() -> cluster_pb2.ClusterMap:
    """Of three nodes and one shard."""
    nodes = [
        cluster_pb2.Node(id=each, name=f"n{each}", address=f"127.0.0.1:{each}", weight_milli=1000)
        for each in NODES
    ]
    return mapfile.make(nodes, 1)


def _cut_off(dispatcher: Dispatcher) -> Dispatcher:
    node: Any = _Answering()
    pool: Any = dispatcher.fleet.pool
    pool.node = lambda _address: node
    return dispatcher


class Client:
    """AsyncClient.deliver of many tasks: compressed, coalesced, dispatched, answered."""

    def __init__(self) -> None:
        self._mails = mails()
        self._client = AsyncClient("127.0.0.1:1", insecure=True)
        self._client._transport._dispatcher = _cut_off(Dispatcher(cluster_map(), Insecure()))

    async def run(self) -> int:
        deliveries = (
            self._client.deliver(next(self._mails), to=[account(number)]) for number in range(BATCH)
        )
        await asyncio.gather(*deliveries)
        return BATCH


class RouterHop:
    """A call with many deliveries, taken apart by shard and put into lanes."""

    def __init__(self) -> None:
        self._requests = requests()
        dispatcher = _cut_off(Dispatcher(cluster_map(), Insecure()))
        path = "/mailraft.v1.MessageService/DeliverMessages"
        details: Any = _Details(path)
        found = [each.service(details) for each in handlers(dispatcher, asyncio.Event())]
        found_one: Any = next(each for each in found if each is not None)
        self._handler = found_one.unary_unary
        self._method = METHODS[path]

    async def run(self) -> int:
        received = self._method.request.FromString(next(self._requests))
        answer = await self._handler(received, _Context())
        assert answer.results[0].recipients[0].message_id
        self._method.response.SerializeToString(answer)
        return BATCH


class _Details:
    def __init__(self, method: str) -> None:
        self.method, self.invocation_metadata = method, ()


class _Context:
    """What handlers ask of grpc.aio's."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def time_remaining(self) -> float:
        return 10.0

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}


class Rpc:
    """A grpc.aio call on loopback with metrics and admission around a handler that answers at once;
    both ends in this process.
    """

    def __init__(self, port: int, size: int) -> None:
        self._port, self._requests, self._size = port, requests(size), size
        self._channel: Any = open_channel(f"127.0.0.1:{port}", Insecure())
        self._call = self._channel.unary_unary(
            "/mailraft.v1.MessageService/DeliverMessages",
            request_serializer=bytes,
            response_deserializer=delivery_pb2.DeliverMessagesResponse.FromString,
        )

    async def run(self) -> int:
        await self._call(next(self._requests), timeout=10.0)
        return self._size

    async def close(self) -> None:
        await self._channel.close()


@asynccontextmanager
async def rpc(size: int) -> AsyncIterator[Rpc]:
    """A server, and the layer that calls it."""

    async def deliver(
        request: delivery_pb2.DeliverMessagesRequest, _: object
    ) -> delivery_pb2.DeliverMessagesResponse:
        return answered(request)

    server = grpc.aio.server(
        options=list(SERVER_OPTIONS),
        interceptors=[
            Observe((RpcMetrics(CollectorRegistry()).ended,)),
            Admission(1_000, 1_000),
        ],
    )
    handler = grpc.unary_unary_rpc_method_handler(
        deliver,
        delivery_pb2.DeliverMessagesRequest.FromString,
        delivery_pb2.DeliverMessagesResponse.SerializeToString,
    )
    named = {"DeliverMessages": handler}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("mailraft.v1.MessageService", named),)
    )
    port = add_port(server, "127.0.0.1:0", Insecure())
    await server.start()
    layer = Rpc(port, size)
    try:
        yield layer
    finally:
        await layer.close()
        await server.stop(None)

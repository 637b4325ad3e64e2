"""The router process: every service of the API, forwarded by the method table.

Holds no state of its own but the cluster map and connections, so any number of routers may run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry

from mailraft.router.collector import DispatchCollector
from mailraft.router.dispatch import Dispatcher
from mailraft.router.fleet import Refresh
from mailraft.router.follow import follow
from mailraft.router.health import HEALTH_SERVICE, Health
from mailraft.router.methods import METHODS, SERVICES, Method, Route, account_of
from mailraft.router.watch import Watch
from mailraft.v1 import blob_pb2, change_pb2, cluster_pb2
from mailraft.wire import access, errors
from mailraft.wire import credentials as wire_credentials
from mailraft.wire.admission import Admission
from mailraft.wire.audit import AuditLog
from mailraft.wire.callers import CallerLimits, Callers
from mailraft.wire.deadlines import passed_on
from mailraft.wire.draining import drain
from mailraft.wire.guard import Guard
from mailraft.wire.metadata import ACCOUNT_KEY, decode_account
from mailraft.wire.observed import Observe
from mailraft.wire.rpc_metrics import RpcMetrics
from mailraft.wire.slow_log import SlowLog

# What is open at once; past it OVERLOADED with a delay.
CALLS_MAX = 4_096
STREAMS_MAX = 4_096
# After "not serving" is told, new calls are taken for a moment more, until everybody knows.
DRAIN_S = 1.0
STOP_GRACE_S = 10.0

Response = TypeVar("Response")
Context = Any  # grpc.aio.ServicerContext, generic only in its stubs


class RouterServer:
    """A running router."""

    def __init__(
        self,
        server: grpc.aio.Server,
        port: int,
        dispatcher: Dispatcher,
        health: Health,
        stopping: asyncio.Event,
    ) -> None:
        self.port = port
        self.dispatcher = dispatcher
        self._server = server
        self._health, self._stopping = health, stopping
        self._following = asyncio.create_task(follow(dispatcher.fleet))

    def checks(self) -> Mapping[str, str]:
        """What must hold so that it can answer, and why it does not; empty: it does."""
        fleet = self.dispatcher.fleet
        places = fleet.table.topology.cluster_places
        lost = all(fleet.node(place).suspect for place in places)
        return {"serving": "", "nodes": "none of them answers" if places and lost else ""}

    async def wait(self) -> None:
        """Return when it has stopped."""
        await self._server.wait_for_termination()

    async def stop(self, *, drain_s: float = DRAIN_S, grace_s: float = STOP_GRACE_S) -> None:
        """Tell health watchers, take calls for drain_s more, let open ones end within grace_s.

        Streams without an end get SHUTTING_DOWN; their callers go on at another router.
        """
        self._health.not_serving()
        await asyncio.sleep(drain_s)
        self._stopping.set()
        self._following.cancel()
        await asyncio.wait([self._following])
        await self._server.stop(grace_s)
        await self.dispatcher.close()


async def serve(
    cluster_map: cluster_pb2.ClusterMap,
    credentials: wire_credentials.AnyCredentials,
    address: str,
    *,
    refresh: Refresh | None = None,
    capabilities: cluster_pb2.GetCapabilitiesResponse | None = None,
    registry: CollectorRegistry | None = None,
    slow_call_ms: int = 0,
    zone: str = "",
    calls_max: int = CALLS_MAX,
    audit_file: Path | None = None,
    connections_max: int = wire_credentials.CONNECTIONS_MAX,
    caller_limits: CallerLimits | None = None,
) -> RouterServer:
    """Start a router at host:port (port 0: any).

    refresh: where newer maps come from; without it any node is asked. capabilities: what
    GetCapabilities answers; without it a node is asked. registry: where its metrics go; None:
    nowhere. slow_call_ms: calls that take longer are logged; 0: none. zone: where it
    runs, by the nodes' names of zones. calls_max: open at once; past it OVERLOADED.
    audit_file: None: audited among the log lines. connections_max: the next is closed.
    caller_limits: of each caller; None: the defaults.
    """
    dispatcher = Dispatcher(
        cluster_map, credentials, refresh=refresh, capabilities=capabilities, zone=zone
    )
    calls = RpcMetrics(registry or CollectorRegistry())
    if registry is not None:
        registry.register(DispatchCollector(lambda: dispatcher))
    callers = Callers(caller_limits or CallerLimits())
    observe = Observe((calls.ended, SlowLog(slow_call_ms, "nodes").ended), (calls.stream_began,))
    server = grpc.aio.server(
        options=wire_credentials.server_options(connections_max),
        interceptors=[
            Guard(AuditLog(audit_file).record, callers, observe.refused),
            observe,
            Admission(calls_max, STREAMS_MAX),
        ],
    )
    health, stopping = Health(SERVICES), asyncio.Event()
    server.add_generic_rpc_handlers((*handlers(dispatcher, stopping), health.handler()))
    reflection.enable_server_reflection(
        (*SERVICES, HEALTH_SERVICE, reflection.SERVICE_NAME), server
    )
    port = wire_credentials.add_port(server, address, credentials)
    await server.start()
    return RouterServer(server, port, dispatcher, health, stopping)


def handlers(
    dispatcher: Dispatcher, stopping: asyncio.Event
) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
    """A handler for every call of the API, by the method table."""
    by_service: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
    for method in METHODS.values():
        by_service.setdefault(method.service, {})[method.name] = _handler(
            dispatcher, method, stopping
        )
    return tuple(
        grpc.method_handlers_generic_handler(service, table)
        for service, table in by_service.items()
    )


def _handler(
    dispatcher: Dispatcher, method: Method, stopping: asyncio.Event
) -> grpc.RpcMethodHandler[Any, Any]:
    make: Callable[..., grpc.RpcMethodHandler[Any, Any]]
    behavior: Callable[..., Any]
    if method.route is Route.UPLOAD:
        make, behavior = grpc.stream_unary_rpc_method_handler, _upload(dispatcher)
    elif method.route is Route.WATCH:
        make, behavior = grpc.stream_stream_rpc_method_handler, _watch(dispatcher, stopping)
    elif method.server_streaming:
        make, behavior = grpc.unary_stream_rpc_method_handler, _stream(dispatcher, method, stopping)
    else:
        make, behavior = grpc.unary_unary_rpc_method_handler, _unary(dispatcher, method)
    return make(
        behavior,
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )


def _unary(dispatcher: Dispatcher, method: Method) -> Callable[..., Any]:
    async def call(request: Message, context: Context) -> Message:
        try:
            check_account(context, request)
            return await dispatcher.unary(method, request, deadline_of(context))
        except errors.MailraftError as error:
            await errors.abort(context, error)

    return call


def _stream(dispatcher: Dispatcher, method: Method, stopping: asyncio.Event) -> Callable[..., Any]:
    async def call(request: Message, context: Context) -> AsyncIterator[Message]:
        try:
            check_account(context, request)
            responses = dispatcher.stream(method, request, _stream_deadline(context))
            if method.name.startswith("Watch"):
                responses = _until(stopping, responses)
            async for response in responses:
                yield response
        except errors.MailraftError as error:
            await errors.abort(context, error)

    return call


def _upload(dispatcher: Dispatcher) -> Callable[..., Any]:
    async def call(
        requests: AsyncIterator[blob_pb2.UploadBlobRequest], context: Context
    ) -> blob_pb2.UploadBlobResponse:
        try:
            header = await anext(requests, None)
            if header is None or header.WhichOneof("part") != "header":
                raise errors.BadFieldError(fields={"header": "the first message must be it"})
            check_account(context, header.header)
            access.check_account(header.header.account_id)
            return await dispatcher.upload(header, requests, _stream_deadline(context))
        except errors.MailraftError as error:
            await drain(requests)
            await errors.abort(context, error)

    return call


def _watch(dispatcher: Dispatcher, stopping: asyncio.Event) -> Callable[..., Any]:
    async def call(
        requests: AsyncIterator[change_pb2.WatchRequest], context: Context
    ) -> AsyncIterator[change_pb2.WatchResponse]:
        try:
            async for response in _until(stopping, Watch(dispatcher.fleet).run(requests)):
                yield response
        except errors.MailraftError as error:
            await errors.abort(context, error)

    return call


async def _until(
    stopping: asyncio.Event, responses: AsyncIterator[Response]
) -> AsyncIterator[Response]:
    """Pass a stream on; it ends with SHUTTING_DOWN when the router stops."""
    stop = asyncio.ensure_future(stopping.wait())
    following = asyncio.ensure_future(anext(responses, None))
    try:
        while True:
            await asyncio.wait({stop, following}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                raise errors.ShuttingDownError("the router stops")
            response = following.result()
            if response is None:
                return
            yield response
            following = asyncio.ensure_future(anext(responses, None))
    finally:
        stop.cancel()
        following.cancel()


def check_account(context: Context, request: Message) -> None:
    """x-mailraft-account, if it is there, must name the account of field 1."""
    for key, value in context.invocation_metadata() or ():
        if key == ACCOUNT_KEY:
            try:
                named = decode_account(value)
            except ValueError:
                named = None
            if named != account_of(request):
                raise errors.BadFieldError(
                    f"{ACCOUNT_KEY} is not the request's account",
                    fields={"account_id": f"differs from {ACCOUNT_KEY}"},
                )


def deadline_of(context: Context) -> float:
    """When a call must be answered: its own deadline, or the default; on the loop's clock."""
    return asyncio.get_running_loop().time() + passed_on(context.time_remaining())


def _stream_deadline(context: Context) -> float | None:
    remaining_s = context.time_remaining()
    if remaining_s is None:
        return None
    return asyncio.get_running_loop().time() + float(remaining_s)

"""grpc.health.v1 of a router: a name per service, and "" for all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

HEALTH_SERVICE = "grpc.health.v1.Health"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """SERVING until it is told otherwise; nothing comes back, since the process stops then."""

    def __init__(self, services: Iterable[str]) -> None:
        self._names = {"", *services}
        self._stopping = asyncio.Event()

    def not_serving(self) -> None:
        self._stopping.set()

    def handler(self) -> Any:
        """To be added to a server."""
        request = health_pb2.HealthCheckRequest.FromString
        response = health_pb2.HealthCheckResponse.SerializeToString
        calls = {
            "Check": grpc.unary_unary_rpc_method_handler(
                self.Check, request_deserializer=request, response_serializer=response
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self.Watch, request_deserializer=request, response_serializer=response
            ),
        }
        return grpc.method_handlers_generic_handler(HEALTH_SERVICE, calls)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service}")
        return health_pb2.HealthCheckResponse(status=self._status(request.service))

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Ends after NOT_SERVING, so that no watcher holds up the end of the process."""
        yield health_pb2.HealthCheckResponse(status=self._status(request.service))
        if self._stopping.is_set() and request.service in self._names:
            return
        await self._stopping.wait()
        if request.service in self._names:
            yield health_pb2.HealthCheckResponse(status=_NOT_SERVING)

    def _status(self, service: str) -> health_pb2.HealthCheckResponse.ServingStatus.ValueType:
        if service not in self._names:
            return _UNKNOWN
        return _NOT_SERVING if self._stopping.is_set() else _SERVING

"""A node and a router in this process, with certificates: the ports that strangers come to."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client import CollectorRegistry

import mailraft.internal.v1
import mailraft.v1
from mailraft.cluster import certs, mapfile
from mailraft.cluster.control.member import Member
from mailraft.cluster.maps import ClusterMaps
from mailraft.node.server import NodeOptions
from mailraft.router import service
from mailraft.v1 import cluster_pb2
from mailraft.wire.callers import CallerLimits
from mailraft.wire.credentials import CONNECTIONS_MAX, Credentials

ANSWER_S = 1.5  # a stream may stay open


@dataclass(frozen=True, slots=True)
class Ports:
    """Addresses by `node` and `router`."""

    folder: Path
    addresses: dict[str, str]

    @property
    def certs(self) -> Path:
        return self.folder / "certs"

    def audited(self, port: str) -> list[dict[str, Any]]:
        lines = (self.folder / f"{port}.audit.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@asynccontextmanager
async def serving(
    folder: Path,
    limits: CallerLimits = CallerLimits(),  # noqa: B008  # immutable
    connections_max: int = CONNECTIONS_MAX,
) -> AsyncIterator[Ports]:
    """Both serve, each with an audit log of its own."""
    certs.ensure(folder / "certs", certs.names_of([1]))
    only = cluster_pb2.Node(id=1, name="n1", address="127.0.0.1:0", weight_milli=1000)
    found = mapfile.make([only], 1)
    options = NodeOptions(
        data_dir=folder / "data",
        listen_address="127.0.0.1:0",
        credentials=Credentials(folder / "certs", "node-1"),
        registry=CollectorRegistry(),
        audit_file=folder / "node.audit.jsonl",
        caller_limits=limits,
        connections_max=connections_max,
    )
    node = Member(options, ClusterMaps(found, 1))
    found.nodes[0].address = await node.start()
    router = await service.serve(
        found,
        Credentials(folder / "certs", "router"),
        "127.0.0.1:0",
        audit_file=folder / "router.audit.jsonl",
        caller_limits=limits,
        connections_max=connections_max,
    )
    at = {"node": found.nodes[0].address, "router": f"127.0.0.1:{router.port}"}
    try:
        yield Ports(folder, at)
    finally:
        await router.stop(drain_s=0, grace_s=0.1)
        await node.stop(0.1)


def methods() -> Iterator[tuple[str, MethodDescriptor]]:
    """Every RPC of every service that there is a descriptor of, by its path."""
    files = [health_pb2, reflection_pb2]
    for package in (mailraft.v1, mailraft.internal.v1):
        names = [each.name for each in pkgutil.iter_modules(package.__path__)]
        files += [
            importlib.import_module(f"{package.__name__}.{name}")
            for name in names
            if name.endswith("_pb2")
        ]
    for file in files:
        for each in file.DESCRIPTOR.services_by_name.values():
            for method in each.methods:
                yield f"/{each.full_name}/{method.name}", method


async def answer(
    channel: grpc.aio.Channel,
    path: str,
    *metadata: tuple[str, str],
    within_s: float = ANSWER_S,
    request: bytes = b"",
) -> str:
    """How a request is answered: CODE details; of a stream that goes on: OK."""
    untyped: Any = channel
    aio: Any = grpc.aio  # its stubs do not know EOF
    call = untyped.stream_stream(path)(iter([request]), timeout=within_s, metadata=metadata)
    try:
        if await call.read() is not aio.EOF:
            return "OK"
        return f"{(await call.code()).name} {await call.details()}"
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name} {error.details()}"
    finally:
        call.cancel()

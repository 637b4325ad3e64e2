"""Traces of a process reach a collector that speaks OTLP over gRPC."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)

from mailraft.cluster import settings, traces
from mailraft.cluster.errors import SettingsError
from mailraft.wire import tracing


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []
        self.came = threading.Event()

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            named = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.names += [(named["service.name"], span.name) for span in scope.spans]
        self.came.set()
        return trace_service_pb2.ExportTraceServiceResponse()


def test_spans_arrive() -> None:
    """Under the name of their process, when it stops at the latest."""
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(1))
    serve: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    serve(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    provider = traces.provider(f"127.0.0.1:{port}", 1.0, "mailraft-1")
    tracing.enable(provider)
    try:
        with tracing.span("commit"):
            pass
    finally:
        tracing.disable()
        provider.shutdown()
    assert collector.came.wait(5)
    server.stop(0).wait()
    assert collector.names == [("mailraft-1", "commit")]


def test_a_share_of_none_begins_no_trace() -> None:
    """And one that its caller began is recorded all the same."""
    provider = traces.provider("127.0.0.1:1", 0.0, "mailraft-1")
    tracing.enable(provider)
    try:
        with tracing.span("server"):
            assert not tracing.recorded()
        with tracing.span("server", parent=f"00-{'a' * 32}-{'b' * 16}-01"):
            assert tracing.trace_id() == "a" * 32
    finally:
        tracing.disable()  # without its shutdown, which would wait for nobody


def test_only_to_a_collector_on_this_host(tmp_path: Path) -> None:
    """What it sends is in plain text."""
    path = tmp_path / "router.toml"
    path.write_text(
        'listen_address = "127.0.0.1:1"\nmap_file = "map.json"\ninsecure = true\n'
        'trace_address = "192.0.2.7:4317"\n'
    )
    with pytest.raises(SettingsError, match=r"trace_address.*: must be on loopback"):
        settings.load(settings.RouterSettings, path)

"""Where the traces of a process go: OTLP over gRPC, in the background. Needs mailraft[tracing]."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

# Spans that wait for the collector; past it they are dropped, and calls never wait.
QUEUE_SPANS_MAX = 4_096
# A collector that does not answer holds up the end of the process no longer than about this.
EXPORT_TIMEOUT_S = 2


def provider(address: str, share: float, service: str) -> TracerProvider:
    """share: of the traces that begin here. One that a caller began is its caller's decision."""
    made = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(share)),
        resource=Resource.create({"service.name": service}),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=address, insecure=True, timeout=EXPORT_TIMEOUT_S)
    made.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS_MAX))
    return made

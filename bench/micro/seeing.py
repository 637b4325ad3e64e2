"""What seeing costs: everything that one delivery does for its trace and for metrics, in one loop.

Traces: off; on and not sampled; on, sampled and thrown away by the exporter. The steps are those of
a client, a router, a leader and two followers together. Metrics: what an observed call costs its
server, without gRPC, which takes about 300 µs on its own.
"""

from __future__ import annotations

import time

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from prometheus_client import CollectorRegistry

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.messages import Appended
from mailraft.node.entry_traces import EntryTraces
from mailraft.node.timing import EntryTimes, Flushes, answered
from mailraft.v1 import delivery_pb2
from mailraft.wire import tracing
from mailraft.wire.observed import Observe
from mailraft.wire.rpc_metrics import RpcMetrics
from mailraft.wire.slow_log import SlowLog

DELIVERIES = 64
GROUP, TOKEN, INDEX = 1, 1, 1
NO_FRAME = raft_pb2.ExchangeRequest()


class Nowhere(SpanExporter):
    """Takes spans and forgets them."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to do."""


def one_delivery(
    delivery: delivery_pb2.Delivery,
    flushes: Flushes,
    leader: EntryTraces,
    others: list[EntryTraces],
) -> None:
    """Every call into tracing and timing that a delivery makes on its way, and no other work."""
    for _ in ("client", "router"):
        with (
            tracing.span("deliver", parent=delivery.traceparent),
            tracing.span("try", {"shard": 1, "node": "n1"}),
        ):
            delivery.traceparent = tracing.traceparent() or delivery.traceparent
    with tracing.span("commit", {"shard": 1, "node": "n1"}, parent=delivery.traceparent):
        now_s, trace, times = time.monotonic(), tracing.recorded(), EntryTimes()
        frame = NO_FRAME
        if trace:
            leader.proposed(GROUP, TOKEN, (trace,))
            frame = raft_pb2.ExchangeRequest()
            entry = frame.envelopes.add(group=GROUP).append_entries.entries.add()
            entry.index = INDEX
        if leader:
            leader.attach([Appended(TOKEN, GROUP, INDEX, 1)], [(2, frame)])
        flushes.written(1, times, now_s)
        flushes.flushed(1, now_s)
        times.committed_s = times.applied_s = now_s
        for follower in others:
            if frame.traces:
                follower.received(frame, now_s)
            if follower:
                follower.written(1, now_s)
                follower.flushed(1, now_s)
                follower.applied(GROUP, INDEX, now_s, now_s)
        if leader:
            leader.applied(GROUP, INDEX, now_s, now_s)
        answered(GROUP, now_s, times, now_s=now_s)


class Traced:
    """Deliveries, with traces off (no sampler) or on."""

    def __init__(self, sampler: Sampler | None) -> None:
        self._provider: TracerProvider | None = None
        if sampler is not None:
            self._provider = TracerProvider(sampler=sampler)
            self._provider.add_span_processor(SimpleSpanProcessor(Nowhere()))
        self._flushes, self._leader = Flushes(), EntryTraces(1)
        self._others = [EntryTraces(2), EntryTraces(3)]

    async def run(self) -> int:
        if self._provider is not None:
            tracing.enable(self._provider)
        try:
            for _ in range(DELIVERIES):
                one_delivery(delivery_pb2.Delivery(), self._flushes, self._leader, self._others)
        finally:
            tracing.disable()
        return DELIVERIES


class Observed:
    """Calls of a handler that does nothing, as a server that observes them runs it."""

    def __init__(self) -> None:
        calls, slow = RpcMetrics(CollectorRegistry()), SlowLog(1_000, "handler")

        async def handle(request: object, context: object) -> None: ...

        self._watched = Observe((calls.ended, slow.ended))._coroutine(
            "S/M", handle, streaming=False
        )
        self._request = delivery_pb2.DeliverMessagesRequest()

    async def run(self) -> int:
        for _ in range(DELIVERIES):
            await self._watched(self._request, None)
        return DELIVERIES


def layers() -> dict[str, Traced | Observed]:
    """By name; their costs are part of those of other layers."""
    return {
        "traces off": Traced(None),
        "traces, not sampled": Traced(ALWAYS_OFF),
        "traces, sampled": Traced(ALWAYS_ON),
        "metrics, slow log": Observed(),
    }

"""What seeing costs: everything that one delivery does for its trace and for metrics, in one loop.

    python -m bench.micro_tracing [--calls 20000]

Traces: off; on and not sampled; on, sampled and thrown away by the exporter. The steps are those of
a client, a router, a leader and two followers together. Metrics: what an observed call costs its
server, without gRPC, which takes about 300 µs on its own.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
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

ROUNDS = 5
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


def observed_call() -> Callable[[], Awaitable[Any]]:
    """A handler that does nothing, as a server that observes calls would run it."""
    calls, slow = RpcMetrics(CollectorRegistry()), SlowLog(1_000, "handler")

    async def handle(request: object, context: object) -> None: ...

    watched = Observe((calls.ended, slow.ended))._coroutine("S/M", handle, streaming=False)
    request = delivery_pb2.DeliverMessagesRequest()
    return lambda: watched(request, None)


async def best_us(call: Callable[[], Any], calls: int) -> float:
    """Of ROUNDS, a call."""
    took_s = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        for _ in range(calls):
            made = call()
            if made is not None:
                await made
        took_s.append(time.perf_counter() - began_s)
    return min(took_s) / calls * 1e6


def enable(sampler: Sampler) -> TracerProvider:
    """Traces on."""
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    tracing.enable(provider)
    return provider


async def main(calls: int) -> None:
    """Measure and print."""

    def untraced() -> None:
        delivery_pb2.Delivery()

    flushes, leader, others = Flushes(), EntryTraces(1), [EntryTraces(2), EntryTraces(3)]

    def traced() -> None:
        one_delivery(delivery_pb2.Delivery(), flushes, leader, others)

    empty_us = await best_us(untraced, calls)
    print(f"traces off: {await best_us(traced, calls) - empty_us:.1f} µs a delivery")
    for name, sampler, share in (
        ("on, not sampled", ALWAYS_OFF, 4),
        ("on, sampled", ALWAYS_ON, 20),
    ):
        provider = enable(sampler)
        took_us = await best_us(traced, max(1, calls // share))
        print(f"traces {name}: {took_us - empty_us:.1f} µs a delivery")
        tracing.disable()
        provider.shutdown()
    print(f"metrics and slow log: {await best_us(observed_call(), calls) - empty_us:.1f} µs a call")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--calls", type=int, default=20_000)
    asyncio.run(main(arguments.parse_args().calls))

"""One delivery is one trace: client, router, leader, flush, followers, commit, apply."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler

from mailraft.client import AsyncClient
from mailraft.router import service
from mailraft.wire import tracing
from mailraft.wire.credentials import Insecure
from three_nodes import Nodes, all_up, until

# What a delivery passes through, each below the one that it is a part of. Followers: two of them.
DELIVERY = """\
deliver
  try
    deliver
      try
        commit
          apply
          flush
          follower append
            follower flush
          follower append
            follower flush
          follower apply
          follower apply
          queue
          replication
"""


def traced_into(kept: InMemorySpanExporter, sampler: Sampler) -> TracerProvider:
    """A provider whose spans go there as they end."""
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    return provider


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Everything in this process is traced into it."""
    kept = InMemorySpanExporter()
    tracing.enable(traced_into(kept, ALWAYS_ON))
    yield kept
    tracing.disable()


def test_one_that_is_not_sampled() -> None:
    """Makes no span, and whoever is called is told so, and does not decide anew."""
    kept = InMemorySpanExporter()
    tracing.enable(traced_into(kept, ALWAYS_OFF))
    try:
        with tracing.span("client"):
            told = tracing.traceparent()
            assert tracing.metadata() == (("traceparent", told),)
            assert not tracing.recorded()
        assert not int(told[-2:], 16) & 1  # its flag says so
        tracing.disable()
        tracing.enable(traced_into(kept, ParentBased(ALWAYS_ON)))
        with tracing.span("server", parent=told):
            assert not tracing.recorded()
        assert kept.get_finished_spans() == ()
        with tracing.span("server", parent="x" * 1_000):  # none at all: a trace begins
            assert tracing.recorded()
    finally:
        tracing.disable()


def test_a_failure_is_told_by_its_kind(spans: InMemorySpanExporter) -> None:
    """Its text may name an account, and goes nowhere."""
    with pytest.raises(ValueError, match="alice"), tracing.span("deliver"):
        raise ValueError("no mailbox of alice")
    (span,) = spans.get_finished_spans()
    assert span.attributes == {"error": "ValueError"}
    assert "alice" not in span.to_json()


def test_off_needs_no_opentelemetry() -> None:
    """The base install has none, nor prometheus-client, and a client runs."""
    code = (
        "import sys, mailraft.client; from mailraft.wire import tracing;"
        "assert not tracing.enabled(); assert tracing.metadata() == ();"
        "exec('with tracing.span(\"x\"): pass');"
        "found = {'opentelemetry', 'prometheus_client'} & set(sys.modules);"
        "sys.exit(str(found) if found else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """All three are up, and one leads."""
    async with all_up(tmp_path) as found:
        yield found


def tree(spans: Sequence[ReadableSpan], *, times: bool) -> str:
    """Spans as lines, each indented below its parent; those beside each other by their beginning
    with `times`, else by name.
    """
    below: dict[int, list[ReadableSpan]] = {}
    known = {each.context.span_id for each in spans}
    for each in sorted(spans, key=lambda one: one.start_time or 0 if times else one.name):
        parent = each.parent.span_id if each.parent is not None else 0
        below.setdefault(parent if parent in known else 0, []).append(each)

    def lines(parent: int, depth: int) -> Iterator[str]:
        for each in below.get(parent, ()):
            took_ms = ((each.end_time or 0) - (each.start_time or 0)) / 1e6
            said = " ".join(f"{key}={value!s}" for key, value in (each.attributes or {}).items())
            yield "  " * depth + each.name + (f"  {took_ms:.2f} ms  {said}" if times else "")
            yield from lines(each.context.span_id, depth + 1)

    return "".join(f"{line.rstrip()}\n" for line in lines(0, 0))


async def test_reads_that_share_a_call_have_a_span_each(
    nodes: Nodes, spans: InMemorySpanExporter
) -> None:
    """On the node that answers them, in the trace of who asked; alone as well."""
    async with AsyncClient(nodes.map.nodes[0].address, insecure=True, direct=True) as mail:
        await mail.create_account("alice")
        for together in (1, 8):
            spans.clear()
            await asyncio.gather(*(mail.get_account("alice") for _ in range(together)))
            found = spans.get_finished_spans()
            served = [each for each in found if each.name == "AccountService/GetAccount"]
            assert len(served) == together
            tries = {each.context.span_id: each.context.trace_id for each in found}
            for each in served:
                assert each.parent is not None
                assert tries[each.parent.span_id] == each.context.trace_id
            assert len({each.context.trace_id for each in served}) == together


async def test_one_delivery_is_one_trace(nodes: Nodes, spans: InMemorySpanExporter) -> None:
    """Every step of a delivery is a span of its caller's trace, on three nodes and a router."""
    router = await service.serve(nodes.map, Insecure(), "127.0.0.1:0")
    try:
        async with AsyncClient(f"127.0.0.1:{router.port}", insecure=True, direct=False) as mail:
            await mail.create_account("alice")
            await until(nodes.alike)
            spans.clear()
            await mail.deliver(b"Subject: traced\r\n\r\n", to=["alice"])
            expected = DELIVERY.count("\n")
            await until(lambda: len(spans.get_finished_spans()) >= expected, 5.0)
    finally:
        await router.stop(drain_s=0, grace_s=0.1)
    found = spans.get_finished_spans()
    print("\n" + tree(found, times=True))
    assert tree(found, times=False) == DELIVERY
    assert len({each.context.trace_id for each in found}) == 1

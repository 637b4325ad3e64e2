"""What mailraft.wire.tracing does once it is enabled. The only importer of OpenTelemetry's API."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mailraft.wire.tracing import TRACEPARENT_KEY, Attributes

# Longer than any version of the format says: not even looked at.
TRACEPARENT_MAX_CHARS = 128
_FORMAT = TraceContextTextMapPropagator()


class Tracer:
    """Makes spans. Whether they are recorded is for the provider and its sampler."""

    def __init__(self, provider: trace.TracerProvider | None) -> None:
        self._tracer = trace.get_tracer("mailraft", tracer_provider=provider)

    @contextmanager
    def span(self, name: str, attributes: Attributes | None, parent: str) -> Iterator[None]:
        with self._tracer.start_as_current_span(
            name,
            _context(parent) if parent else None,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as begun:
            try:
                yield
            except BaseException as error:
                # Its kind alone: its text may name somebody's account.
                begun.set_attribute("error", type(error).__name__)
                raise

    def traceparent(self) -> str:
        current = trace.get_current_span()
        return _told(current) if current.get_span_context().is_valid else ""

    def recorded(self) -> str:
        current = trace.get_current_span()
        return _told(current) if current.is_recording() else ""

    def past(
        self,
        parent: str,
        name: str,
        began_ago_s: float,
        ended_ago_s: float,
        attributes: Attributes | None,
    ) -> str:
        now_ns = time.time_ns()
        made = self._tracer.start_span(
            name,
            _context(parent),
            attributes=attributes,
            start_time=now_ns - int(began_ago_s * 1e9),
        )
        made.end(now_ns - int(ended_ago_s * 1e9))
        return _told(made)


def _context(parent: str) -> Context:
    """What a traceparent says; nothing if it is none: the span then begins a trace."""
    usable = len(parent) <= TRACEPARENT_MAX_CHARS
    return _FORMAT.extract({TRACEPARENT_KEY: parent} if usable else {}, Context())


def _told(span: trace.Span) -> str:
    it = span.get_span_context()
    return f"00-{it.trace_id:032x}-{it.span_id:016x}-{it.trace_flags:02x}"

"""Traces (OpenTelemetry). Off unless a process enables them, and then nearly free.

A trace travels as W3C Trace Context text (`traceparent`): in the metadata of a call, and in a
delivery itself, since clients and routers put deliveries of many callers into one call. The base
install has no OpenTelemetry; only `enable` needs it (mailraft[tracing], or the caller's own).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from mailraft.wire.open_telemetry import Tracer

TRACEPARENT_KEY = "traceparent"

Attributes = dict[str, str | int | float | bool]

_OFF: AbstractContextManager[None] = nullcontext()
_tracer: Tracer | None = None


def enable(provider: TracerProvider | None = None) -> None:
    """From now on calls of this process make spans, with this provider or OpenTelemetry's global
    one. Raises ImportError where OpenTelemetry is not installed.
    """
    global _tracer  # noqa: PLW0603  # one a process, as OpenTelemetry's own
    from mailraft.wire.open_telemetry import Tracer  # noqa: PLC0415  # an extra

    _tracer = Tracer(provider)


def disable() -> None:
    """No span is made any more."""
    global _tracer  # noqa: PLW0603
    _tracer = None


def enabled() -> bool:
    return _tracer is not None


def span(
    name: str, attributes: Attributes | None = None, *, parent: str = ""
) -> AbstractContextManager[None]:
    """A span around a block: below `parent` (a traceparent), else below the one that is open."""
    if _tracer is None:
        return _OFF
    return _tracer.span(name, attributes, parent)


def below(parent: str, name: str) -> AbstractContextManager[None]:
    """A span around what somebody asks for who sent a traceparent along; empty: none."""
    if _tracer is None or not parent:
        return _OFF
    return _tracer.span(name, None, parent)


def served(method: str, context: Any) -> AbstractContextManager[None]:
    """A span around the handler of a call, if its caller sent a trace along."""
    if _tracer is None:
        return _OFF
    for key, value in context.invocation_metadata() or ():
        if key == TRACEPARENT_KEY:
            return _tracer.span(method, None, str(value))
    return _OFF


def traceparent() -> str:
    """Of the span that is open here, for whoever is called, who does not decide anew whether this
    is recorded; empty: no span is open.
    """
    return "" if _tracer is None else _tracer.traceparent()


def recorded() -> str:
    """The traceparent of the span that is open here; empty: nothing is recorded."""
    return "" if _tracer is None else _tracer.recorded()


def trace_id() -> str:
    """Of the span that is open here; empty: nothing is recorded."""
    return recorded()[3:35]


def metadata() -> tuple[tuple[str, str], ...]:
    """What goes along with a call."""
    told = traceparent()
    return ((TRACEPARENT_KEY, told),) if told else ()


def past(
    parent: str,
    name: str,
    began_s: float,
    ended_s: float,
    *,
    now_s: float,
    attributes: Attributes | None = None,
) -> str:
    """A span that is over, by times of a clock that now says now_s; answers its traceparent."""
    if _tracer is None or not parent:
        return ""
    return _tracer.past(parent, name, now_s - began_s, now_s - ended_s, attributes)

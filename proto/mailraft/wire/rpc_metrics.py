"""What a server tells Prometheus of its calls. Only processes import this: it needs the extra
mailraft[router].

Labels are bounded: `method` and `item` by the methods that are served, `level` and `code` by the
contract, `reason` by what the code of this tree waits for.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from mailraft.wire.observed import ServedCall

# From a read in memory to the longest deadline there is.
CALL_BUCKETS_S = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0),
)


class RpcMetrics:
    """Told by observed.Observe."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "mailraft_rpc_seconds",
            "Time of one unary call, by method and the level that it asks for (default: it leaves "
            "that to the cluster; none: it has none). Its count is the rate of calls.",
            ("method", "level"),
            buckets=CALL_BUCKETS_S,
            registry=registry,
        )
        self._errors = Counter(
            "mailraft_rpc_errors_total",
            "Calls that ended with another status than OK, by gRPC's name of it.",
            ("method", "level", "code"),
            registry=registry,
        )
        self._waits = Counter(
            "mailraft_rpc_wait_seconds_total",
            "What calls waited for: queue (for a turn), flush (of this disk), replication (for a "
            "majority), apply, level (for replicas beyond a majority), read index.",
            ("reason",),
            registry=registry,
        )
        self._items = Counter(
            "mailraft_rpc_items_total",
            "Parts of calls that have an answer of their own: reads of a batch by method, and "
            "recipients of deliveries (recipient), by level and code.",
            ("item", "level", "code"),
            registry=registry,
        )
        self._streams = Gauge(
            "mailraft_rpc_streams_open",
            "Streaming calls that are open.",
            ("method",),
            registry=registry,
        )

    def ended(self, call: ServedCall) -> None:
        if call.streaming:
            self._streams.labels(call.method).dec()
        else:
            self._seconds.labels(call.method, call.level).observe(call.took_s)
        if call.code != "OK":
            self._errors.labels(call.method, call.level, call.code).inc()
        for item, count in call.items.items():
            self._items.labels(*item).inc(count)
        for reason, wait_s in call.waits.items():
            self._waits.labels(reason).inc(wait_s)

    def stream_began(self, call: ServedCall) -> None:
        self._streams.labels(call.method).inc()

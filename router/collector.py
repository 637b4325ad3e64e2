"""What a router, or a client that asks for it, tells Prometheus of how it reaches the nodes.

Read when it is asked for. Needs prometheus-client, which is no part of the base install.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mailraft.router.coalesce import LaneCounts
from mailraft.router.dispatch import Dispatcher


class DispatchCollector(Collector):
    """Of one dispatcher; None as long as there is none. `prefix`: mailraft_router, or
    mailraft_client.
    """

    def __init__(
        self, dispatcher: Callable[[], Dispatcher | None], prefix: str = "mailraft_router"
    ) -> None:
        self._dispatcher, self._prefix = dispatcher, prefix

    def collect(self) -> Iterable[Metric]:
        dispatcher = self._dispatcher()
        lanes = LaneCounts() if dispatcher is None else dispatcher.lane_counts()
        epoch = 0 if dispatcher is None else dispatcher.table.epoch
        yield self._counter("batch_calls", "Calls that carried coalesced items.", lanes.calls)
        yield self._counter(
            "batch_items",
            "Deliveries and reads that travelled in them; by batch_calls: the size of a batch.",
            lanes.items,
        )
        yield self._counter("batch_refused", "Items refused: too much waited.", lanes.refused)
        yield self._gauge("batch_items_max", "Items of the largest batch so far.", lanes.largest)
        if dispatcher is not None:
            yield from self._extra_calls(dispatcher)
        yield self._gauge("map_epoch", "Of the cluster map in use.", epoch)

    def _extra_calls(self, dispatcher: Dispatcher) -> Iterable[Metric]:
        fleet, hedger = dispatcher.fleet, dispatcher.hedger
        retries = CounterMetricFamily(
            f"{self._prefix}_retries",
            "Tries after the first of a call, by why the one before failed.",
            labels=("reason",),
        )
        for reason, count in fleet.extra.retries.items():
            retries.add_metric((reason,), count)
        yield retries
        yield self._counter(
            "retries_refused",
            "Calls that ended without another try: the budget was spent.",
            fleet.extra.budget.refused,
        )
        yield self._counter("hedges", "Slow reads that were asked twice.", hedger.budget.spent)
        yield self._counter("hedges_won", "Of them the second replica was first.", hedger.won)
        yield self._counter(
            "hedges_refused",
            "Slow reads that were not: the budget was spent.",
            hedger.budget.refused,
        )
        yield self._counter(
            "stale_routes",
            "Calls that a node refused because its map is newer.",
            fleet.stale_routes,
        )

    def _counter(self, name: str, documentation: str, value: float) -> Metric:
        return CounterMetricFamily(f"{self._prefix}_{name}", documentation, value)

    def _gauge(self, name: str, documentation: str, value: float) -> Metric:
        return GaugeMetricFamily(f"{self._prefix}_{name}", documentation, value)

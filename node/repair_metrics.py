"""What a node tells Prometheus of its scrub and its repairs."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mailraft.node.repair import Repairs
from mailraft.node.scrub import Scrub


class RepairCollector(Collector):
    """Of one node."""

    def __init__(self, scrub: Scrub, repairs: Repairs) -> None:
        self._scrub, self._repairs = scrub, repairs

    def collect(self) -> Iterable[Metric]:
        state, figures = self._scrub.state, self._repairs.figures
        yield GaugeMetricFamily(
            "mailraft_scrub_completed_timestamp_seconds",
            "When a scrub last had read all that is stored here; 0: never yet.",
            state.completed_ms / 1000,
        )
        yield GaugeMetricFamily(
            "mailraft_scrub_pass_bytes", "Read by the pass under way.", state.read_bytes
        )
        yield GaugeMetricFamily(
            "mailraft_scrub_running", "1 while a pass is under way.", int(self._scrub.running)
        )
        yield CounterMetricFamily(
            "mailraft_scrub_errors", "Damage that scrubs have found here.", state.errors
        )
        yield GaugeMetricFamily(
            "mailraft_repair_waiting",
            "Replicas that are set aside, and not begun to be fetched again.",
            len(self._repairs.waiting()),
        )
        yield GaugeMetricFamily(
            "mailraft_repair_running",
            "Replicas that are being fetched again from their peers: they do not vote.",
            len(self._repairs.fetching()),
        )
        yield GaugeMetricFamily(
            "mailraft_repair_kept",
            "1 while damaged data are kept aside, until their repair is complete.",
            int(bool(self._repairs.kept)),
        )
        yield CounterMetricFamily(
            "mailraft_repairs_completed", "Repairs that were completed.", figures.completed
        )

"""What a node tells Prometheus. Per-shard figures are read when they are asked for, not kept.

Labels are bounded: `shard` by the replicas on this node, `node` by their peers, `outcome` by what
is listed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mailraft.node.consensus.host import Host
from mailraft.node.interfaces import GroupId, node_of
from mailraft.node.shard import Replica

# From a fast NVMe flush to a disk that is about to lose its leaderships.
FLUSH_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class NodeMetrics:
    """The figures of one node; registered where the process is put together."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.flush_seconds = Histogram(
            "mailraft_flush_seconds",
            "Time of one flush of the write-ahead log, seconds.",
            buckets=FLUSH_BUCKETS_S,
            registry=registry,
        )
        self.entries = Counter(
            "mailraft_proposals_total",
            "Entries proposed here, by what became of them: appended, rejected, discarded.",
            ("shard", "outcome"),
            registry=registry,
        )
        self.leader_changes = Counter(
            "mailraft_leader_changes_total",
            "Times that the leader of a shard changed, as its replica here saw it.",
            ("shard",),
            registry=registry,
        )
        self.snapshots = Counter(
            "mailraft_snapshots_arrived_total",
            "Snapshots that arrived, by what became of them: installed, dropped.",
            ("shard", "outcome"),
            registry=registry,
        )
        self.diverged = Gauge(
            "mailraft_shard_diverged_replicas",
            "Replicas whose state was found to differ from that of their peers. Not 0: act.",
            ("shard",),
            registry=registry,
        )
        self.compared_index = Gauge(
            "mailraft_shard_compared_index",
            "The applied index at which the replica here was last compared with its peers.",
            ("shard",),
            registry=registry,
        )
        self.clock_skew = Gauge(
            "mailraft_clock_skew_seconds",
            "How far this node's wall clock is ahead of the median of its peers. Past 300, or "
            "below -300, it leads nothing.",
            registry=registry,
        )


@dataclass(slots=True)
class SnapshotMetrics:
    """Of all snapshots that this node has sent."""

    sent: int = 0
    failed: int = 0
    sent_bytes: int = 0
    held_loop_ms_max: float = 0.0


class ShardCollector(Collector):
    """Of every replica on this node, and of the snapshots it sent."""

    def __init__(
        self, host: Host, replicas: Mapping[GroupId, Replica], snapshots: SnapshotMetrics
    ) -> None:
        self._host, self._replicas, self._snapshots = host, replicas, snapshots

    def collect(self) -> Iterable[Metric]:
        return self._gauges()

    def _gauges(self) -> Iterator[Metric]:
        leading = _gauge("leader", "1 where this node leads the shard, else 0.")
        term = _gauge("term", "Raft term of the shard, as its replica here knows it.")
        lag = _gauge("lag_entries", "Entries that are committed and not applied here yet.")
        last = _gauge("last_index", "Index of the last entry in the log here.")
        waiting = _gauge("commands_waiting", "Commands that wait for their entry here.")
        age = _gauge("heard_age_seconds", "Seconds since the leader was heard; 0 on the leader.")
        still = _gauge("entries_open", "Entries proposed here that are not applied yet.")
        size = _gauge("log_bytes", "About what the log here takes, without bodies.")
        stopped = _gauge("stopped", "1 where the replica here has stopped itself. Not 0: act.")
        behind = GaugeMetricFamily(
            "mailraft_shard_follower_lag_entries",
            "On the leader: entries that are not on the disk of the replica on this node yet.",
            labels=["shard", "node"],
        )
        for group, replica in self._replicas.items():
            label = [str(group)]
            stopped.add_metric(label, int(replica.stopped))
            status = self._host.status(group)
            if status is None:
                continue
            leading.add_metric(label, int(status.leading))
            term.add_metric(label, status.term)
            lag.add_metric(label, max(0, status.commit_index - replica.applied_index))
            last.add_metric(label, status.last_index)
            waiting.add_metric(label, replica.commands_waiting)
            age.add_metric(label, replica.heard_age_ms() / 1000)
            still.add_metric(label, replica.entries_open)
            size.add_metric(label, self._host.log_bytes(group))
            for other, index in self._host.progress(group).items():
                behind.add_metric(
                    [str(group), str(node_of(other))], max(0, status.last_index - index)
                )
        yield from (leading, term, lag, last, waiting, age, still, size, stopped, behind)
        yield from self._sent()

    def _sent(self) -> Iterator[Metric]:
        sent = CounterMetricFamily("mailraft_snapshots_sent", "Snapshots sent whole.")
        sent.add_metric([], self._snapshots.sent)
        failed = CounterMetricFamily("mailraft_snapshots_failed", "Snapshots that broke off.")
        failed.add_metric([], self._snapshots.failed)
        size = CounterMetricFamily("mailraft_snapshot_sent_bytes", "Bytes of snapshots sent.")
        size.add_metric([], self._snapshots.sent_bytes)
        held = GaugeMetricFamily(
            "mailraft_snapshot_held_loop_seconds", "Longest time a snapshot held the loop."
        )
        held.add_metric([], self._snapshots.held_loop_ms_max / 1000)
        yield from (sent, failed, size, held)


def _gauge(name: str, documentation: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"mailraft_shard_{name}", documentation, labels=["shard"])

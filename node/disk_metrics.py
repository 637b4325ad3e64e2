"""What a node tells Prometheus of its disk: RocksDB's own figures, read when they are asked for.

Labels are bounded: `family` by the column families.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mailraft.node.engine.store import Store


@dataclass(frozen=True, slots=True)
class _Figure:
    """One of RocksDB's properties. Of the whole database it tells the same for every family."""

    property: str
    name: str
    documentation: str
    by_family: bool = True


_FIGURES = (
    _Figure(
        "rocksdb.is-write-stopped",
        "write_stopped",
        "1 while RocksDB takes no write (too much waits for compaction): the node stands still.",
        by_family=False,
    ),
    _Figure(
        "rocksdb.actual-delayed-write-rate",
        "write_limit_bytes_per_second",
        "What RocksDB slows writes down to; 0 while it does not.",
        by_family=False,
    ),
    _Figure(
        "rocksdb.num-running-compactions",
        "compactions_running",
        "Compactions that run now.",
        by_family=False,
    ),
    _Figure(
        "rocksdb.estimate-pending-compaction-bytes",
        "compaction_pending_bytes",
        "About what compaction still has to rewrite.",
    ),
    _Figure("rocksdb.num-files-at-level0", "level0_files", "Tables that no compaction has taken."),
    _Figure("rocksdb.total-sst-files-size", "table_bytes", "Tables on disk."),
    _Figure("rocksdb.total-blob-file-size", "blob_bytes", "Blob files: where bodies lie."),
    _Figure(
        "rocksdb.live-blob-file-garbage-size",
        "blob_garbage_bytes",
        "In blob files, of bodies that nothing refers to any more.",
    ),
    _Figure("rocksdb.cur-size-all-mem-tables", "memtable_bytes", "Written lately, in memory."),
)


class DiskCollector(Collector):
    """Of one store, and of the file system that it is on."""

    def __init__(
        self, store: Store, loop_lag_ms: Callable[[], float], full: Callable[[], bool]
    ) -> None:
        self._store, self._loop_lag_ms, self._full = store, loop_lag_ms, full

    def collect(self) -> Iterable[Metric]:
        told = self._store.figures([each.property for each in _FIGURES])
        for figure in _FIGURES:
            name, labels = f"mailraft_disk_{figure.name}", ["family"] if figure.by_family else []
            gauge = GaugeMetricFamily(name, figure.documentation, labels=labels)
            families = told.get(figure.property, {})
            if figure.by_family:
                for family, value in families.items():
                    gauge.add_metric([family], value)
            elif families:
                gauge.add_metric([], max(families.values()))
            yield gauge
        usage = self._store.disk_usage()
        yield GaugeMetricFamily(
            "mailraft_disk_free_bytes",
            "What this process may still take of its file system.",
            usage.free_bytes,
        )
        yield GaugeMetricFamily(
            "mailraft_disk_total_bytes", "Size of the file system.", usage.total_bytes
        )
        yield GaugeMetricFamily(
            "mailraft_disk_full",
            "1 while what is free is below the reserve: this node takes no new mail as a leader.",
            int(self._full()),
        )
        yield GaugeMetricFamily(
            "mailraft_loop_lag_seconds",
            "How late the event loop ran at worst in the last five seconds: every call waits so "
            "long on top.",
            self._loop_lag_ms() / 1000,
        )

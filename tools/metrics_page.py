"""docs/metrics.md: every metric of every process, from what they register."""

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry

from mailraft.node.disk_metrics import DiskCollector
from mailraft.node.engine.backend import DiskUsage
from mailraft.node.metrics import NodeMetrics, ShardCollector, SnapshotMetrics
from mailraft.node.repair import RepairFigures
from mailraft.node.repair_metrics import RepairCollector
from mailraft.node.scrub import ScrubState
from mailraft.router.coalesce import LaneCounts
from mailraft.router.collector import DispatchCollector
from mailraft.wire.rpc_metrics import RpcMetrics

PAGE = """\
# Metrics

{generated}

A process with `metrics_address` serves them at `/metrics` for Prometheus, next to those of every
Python process (`process_*`, `python_*`). Times are in seconds, sizes in bytes; names that end in
`_total` only rise. How to look at them, and what to do when: [observability](observability.md).

Labels are bounded: `method` and `item` by the methods that are served, `level` and `code` by the
contract, `reason` by the code, `shard` by the replicas on a node, `node` by their peers, `family`
by the column families of RocksDB. No label holds an account, a mailbox or an address.
"""
CHAPTERS = (
    "Every process, of the calls it serves",
    "Node",
    "Router",
    "Client, if it registers them",
)


def chapters() -> list[CollectorRegistry]:
    """What each kind of process registers beyond what all do, in the order of CHAPTERS."""
    calls, node, router, client = (CollectorRegistry() for _ in CHAPTERS)
    RpcMetrics(calls)
    NodeMetrics(node)
    # Nothing is asked of these but which figures there are.
    host, store = SimpleNamespace(), SimpleNamespace(figures=lambda _: {}, disk_usage=_no_disk)
    node.register(ShardCollector(cast("Any", host), {}, SnapshotMetrics()))
    node.register(DiskCollector(cast("Any", store), lambda: 0.0, lambda: False))
    node.register(RepairCollector(cast("Any", _scrub()), cast("Any", _repairs())))
    dispatcher = cast("Any", _dispatcher())
    router.register(DispatchCollector(lambda: dispatcher))
    client.register(DispatchCollector(lambda: dispatcher, "mailraft_client"))
    return [calls, node, router, client]


def _no_disk() -> DiskUsage:
    return DiskUsage(0, 0)


def _scrub() -> SimpleNamespace:
    return SimpleNamespace(state=ScrubState(), running=False)


def _repairs() -> SimpleNamespace:
    return SimpleNamespace(figures=RepairFigures(), waiting=list, fetching=list, kept="")


def _dispatcher() -> SimpleNamespace:
    budget = SimpleNamespace(spent=0, refused=0)
    return SimpleNamespace(
        fleet=SimpleNamespace(extra=SimpleNamespace(retries={}, budget=budget), stale_routes=0),
        hedger=SimpleNamespace(won=0, budget=budget),
        table=SimpleNamespace(epoch=0),
        lane_counts=LaneCounts,
    )


def names() -> set[str]:
    """Every name that a query may use."""
    return {sample for registry in chapters() for row in _rows(registry) for sample in row[0]}


def table(registry: CollectorRegistry) -> Iterator[tuple[str, ...]]:
    """Rows: name, type, labels, meaning."""
    for samples, kind, labels, meaning in _rows(registry):
        shown = ", ".join(f"`{label}`" for label in labels)
        yield f"`{samples[0]}`", kind, shown, meaning


def _rows(registry: CollectorRegistry) -> Iterable[tuple[list[str], str, list[str], str]]:
    for metric in registry.collect():
        labels = _labels(registry, metric)
        suffixes = {"counter": ["_total"], "histogram": ["", "_bucket", "_count", "_sum"]}
        samples = [metric.name + each for each in suffixes.get(metric.type, [""])]
        yield samples, metric.type, labels, metric.documentation


def _labels(registry: CollectorRegistry, metric: Any) -> list[str]:
    # Of a metric that is kept, and not made when it is asked for, its keeper knows them.
    known = metric if hasattr(metric, "_labelnames") else registry._names_to_collectors[metric.name]
    return list(getattr(known, "_labelnames", ()))

"""What `mailraft top` shows of one moment: for a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mailraft.cluster.cli import describe
from mailraft.cluster.cli.output import printable
from mailraft.cluster.picture import Picture
from mailraft.cluster.scrape import Between
from mailraft.v1 import admin_pb2, cluster_pb2, job_pb2

# Of many shards those that need looking at come first; the others are counted.
SHARDS_SHOWN_MAX = 24
JOBS_SHOWN_MAX = 8
_COLOURS = {"OK": "green", "DEGRADED": "yellow", "UNAVAILABLE": "red"}


@dataclass(frozen=True, slots=True)
class Moment:
    """`load`: of the processes whose /metrics are read, by name."""

    picture: Picture
    jobs: Sequence[job_pb2.Job]
    load: Mapping[str, Between]


def described(moment: Moment) -> dict[str, object]:
    """As one JSON document."""
    picture = moment.picture
    return {
        "status": picture.word,
        "epoch": picture.told.epoch,
        "nodes": [
            {**describe.node(each), "load": _load(moment.load.get(each.node.name))}
            for each in picture.nodes
        ],
        "router": _load(moment.load.get("router")),
        "shards": [describe.shard(picture, each) for each in picture.told.shards],
        "jobs": [describe.job(picture, each) for each in moment.jobs],
        "alarms": [describe.alarm(each) for each in picture.told.alarms],
    }


def drawn(moment: Moment) -> RenderableType:
    """As a screen."""
    picture = moment.picture
    head = Text.assemble(
        (f" {picture.word} ", f"bold reverse {_COLOURS[picture.word]}"),
        f"  {picture.summary.partition(' ')[2]}",
    )
    router = Text(_router(moment.load.get("router")))
    parts: list[RenderableType] = [head, router, _nodes(moment), _shards(moment)]
    if moment.jobs:
        parts.append(_jobs(picture, moment.jobs))
    if picture.told.alarms:
        parts.append(_alarms(picture.told.alarms))
    return Group(*parts)


def _load(between: Between | None) -> dict[str, float] | None:
    """A process' calls and flushes; None where they are not known."""
    if between is None or not between.known:
        return None
    return {
        "calls_per_s": round(between.rate("mailraft_rpc_seconds_count"), 1),
        "errors_per_s": round(between.rate("mailraft_rpc_errors_total"), 2),
        "p50_ms": round(between.quantile_s("mailraft_rpc_seconds", 0.5) * 1000, 1),
        "p99_ms": round(between.quantile_s("mailraft_rpc_seconds", 0.99) * 1000, 1),
        "flush_p99_ms": round(between.quantile_s("mailraft_flush_seconds", 0.99) * 1000, 1),
    }


def _router(between: Between | None) -> str:
    load = _load(between)
    if load is None:
        return "router: not known (see --metrics)"
    return f"router: {load['calls_per_s']:.0f} calls/s, p99 {load['p99_ms']:.1f} ms"


def _nodes(moment: Moment) -> RenderableType:
    headers = ("NODE", "ZONE", "STATE", "LEADS", "HOLDS", "DISK", "FREE", "CALLS/S", "ERR/S")
    table = _table((*headers, "P50", "P99", "FLUSH", "LAG"), right_from=3)
    for each in moment.picture.nodes:
        load = _load(moment.load.get(each.node.name))
        names = ("calls_per_s", "errors_per_s", "p50_ms", "p99_ms", "flush_p99_ms")
        figures = [f"{load[name]:g}" for name in names] if load is not None else ["-"] * len(names)
        state = describe.node_state(each) if each.reachable else "SILENT"
        table.add_row(
            each.node.name,
            each.node.zone or "-",
            Text(state, "green" if state == "active" else "red" if state == "SILENT" else "yellow"),
            str(each.leaders),
            str(each.replicas),
            describe.size(each.disk_used_bytes),
            f"{each.disk_free_bytes / max(1, each.disk_total_bytes):.0%}",
            *figures,
            str(each.loop_lag_ms),
        )
    return Panel(table, title="nodes (P50, P99, FLUSH p99, LAG in ms)", title_align="left")


def _shards(moment: Moment) -> RenderableType:
    picture = moment.picture
    shards = sorted(picture.told.shards, key=lambda each: (_is_well(each), each.shard.id))
    headers = ("SHARD", "STATE", "LEADER", "TERM", "COMMITTED", "ENTRIES/S", "LOG")
    table = _table((*headers, "LIVE", "BEHIND"), right_from=3)
    for each in shards[:SHARDS_SHOWN_MAX]:
        leader = each.shard.leader.node_id
        state = describe.shard_state(each)
        behind = describe.behind(each)
        table.add_row(
            describe.shard_name(each.shard.id),
            Text(state, "green" if state == "ok" else "red"),
            picture.name(leader) if leader else Text("none", "red"),
            str(each.shard.leader.term),
            str(each.commit_index),
            *_growth(moment, each),
            describe.live(each),
            str(max((entries or 0 for entries in behind.values()), default=0)),
        )
    hidden = len(shards) - SHARDS_SHOWN_MAX
    title = "shards" + (f" ({hidden} more, all well)" if hidden > 0 else "")
    return Panel(table, title=title, title_align="left")


def _growth(moment: Moment, status: cluster_pb2.ShardStatus) -> tuple[str, str]:
    """Entries a second and the log's size, as its leader's node tells them."""
    name, shard = moment.picture.name(status.shard.leader.node_id), str(status.shard.id)
    load = moment.load.get(name)
    if load is None or not load.known:
        return "-", "-"
    size = load.after.total("mailraft_shard_log_bytes", shard=shard)
    return f"{load.rate('mailraft_shard_last_index', shard=shard):.1f}", describe.size(int(size))


def _jobs(picture: Picture, jobs: Sequence[job_pb2.Job]) -> RenderableType:
    table = _table(("JOB", "WHAT", "STATE", "STEPS", "NOW"))
    for each in jobs[:JOBS_SHOWN_MAX]:
        steps = f"{each.progress.steps_done}/{each.progress.steps_total}"
        what, state = describe.job_what(picture, each.spec), describe.job_state(each)
        table.add_row(each.id, what, state, steps, printable(each.activity))
    return Panel(table, title=f"jobs ({len(jobs)} open)", title_align="left")


def _alarms(alarms: Sequence[admin_pb2.Alarm]) -> RenderableType:
    table = _table(("ALARM", "SEVERITY", "WHAT"))
    for each in alarms:
        severity = describe.severity(each)
        colour = "red" if severity == "critical" else "yellow"
        table.add_row(each.id, Text(severity, colour), printable(each.message))
    return Panel(table, title="alarms", title_align="left", border_style="red")


def _table(headers: Sequence[str], *, right_from: int | None = None) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for at, header in enumerate(headers):
        right = right_from is not None and at >= right_from
        table.add_column(header, justify="right" if right else "left", no_wrap=True)
    return table


def _is_well(status: cluster_pb2.ShardStatus) -> bool:
    return status.available and not status.under_replicated

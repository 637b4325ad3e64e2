"""deploy/observability/dashboard.json: a Grafana dashboard, panel by panel as listed here."""

import json
from dataclasses import dataclass
from typing import Any

COLUMNS, WIDTH, HEIGHT = 3, 8, 8  # of Grafana's 24 columns


@dataclass(frozen=True)
class Panel:
    """queries: legend to PromQL."""

    title: str
    unit: str
    queries: dict[str, str]


def _quantile(share: float, name: str, by: str) -> str:
    return f"histogram_quantile({share}, sum by ({by}, le) (rate({name}_bucket[$__rate_interval])))"


def _rate(name: str, by: str) -> str:
    return f"sum by ({by}) (rate({name}[$__rate_interval]))"


ROWS: dict[str, list[Panel]] = {
    "Calls": [
        Panel("Calls", "reqps", {"{{method}}": _rate("mailraft_rpc_seconds_count", "method")}),
        Panel(
            "Latency, p99",
            "s",
            {"{{method}} {{level}}": _quantile(0.99, "mailraft_rpc_seconds", "method, level")},
        ),
        Panel(
            "Errors",
            "reqps",
            {"{{method}} {{code}}": _rate("mailraft_rpc_errors_total", "method, code")},
        ),
        Panel(
            "Refused in a call that is OK",
            "reqps",
            {
                "{{item}} {{code}}": "sum by (item, code) "
                '(rate(mailraft_rpc_items_total{code!="OK"}[$__rate_interval]))'
            },
        ),
        Panel(
            "What calls wait for",
            "s",
            {"{{reason}}": _rate("mailraft_rpc_wait_seconds_total", "reason")},
        ),
        Panel(
            "Items in a batch, mean",
            "short",
            {
                "{{instance}}": f"{_rate('mailraft_router_batch_items_total', 'instance')} / "
                f"{_rate('mailraft_router_batch_calls_total', 'instance')}"
            },
        ),
        Panel(
            "Retries, hedges, stale routes",
            "ops",
            {
                "retry: {{reason}}": _rate("mailraft_router_retries_total", "reason"),
                "hedge": "sum(rate(mailraft_router_hedges_total[$__rate_interval]))",
                "hedge won": "sum(rate(mailraft_router_hedges_won_total[$__rate_interval]))",
                "stale route": "sum(rate(mailraft_router_stale_routes_total[$__rate_interval]))",
            },
        ),
        Panel("Streams", "short", {"{{method}}": "sum by (method) (mailraft_rpc_streams_open)"}),
    ],
    "Shards": [
        Panel("Shards led", "short", {"{{instance}}": "sum by (instance) (mailraft_shard_leader)"}),
        Panel(
            "Shards without a leader",
            "short",
            {"shards": "count(max by (shard) (mailraft_shard_leader) == 0) or vector(0)"},
        ),
        Panel(
            "Changes of leader in 5 minutes",
            "short",
            {"shard {{shard}}": "max by (shard) (increase(mailraft_leader_changes_total[5m])) > 0"},
        ),
        Panel(
            "Followers behind",
            "short",
            {
                "shard {{shard}} on node {{node}}": "topk(10, max by (shard, node) "
                "(mailraft_shard_follower_lag_entries))"
            },
        ),
        Panel(
            "Entries proposed",
            "ops",
            {"{{outcome}}": _rate("mailraft_proposals_total", "outcome")},
        ),
        Panel(
            "Commands that wait",
            "short",
            {"shard {{shard}}": "topk(10, max by (shard) (mailraft_shard_commands_waiting))"},
        ),
        Panel("Log", "bytes", {"{{instance}}": "sum by (instance) (mailraft_shard_log_bytes)"}),
        Panel(
            "Snapshots sent",
            "Bps",
            {"{{instance}}": _rate("mailraft_snapshot_sent_bytes_total", "instance")},
        ),
        Panel(
            "Diverged or stopped replicas",
            "short",
            {
                "diverged": "sum(mailraft_shard_diverged_replicas) or vector(0)",
                "stopped": "sum(mailraft_shard_stopped) or vector(0)",
            },
        ),
    ],
    "Disk": [
        Panel(
            "Flush, p99",
            "s",
            {"{{instance}}": _quantile(0.99, "mailraft_flush_seconds", "instance")},
        ),
        Panel(
            "Flushes", "ops", {"{{instance}}": _rate("mailraft_flush_seconds_count", "instance")}
        ),
        Panel(
            "Writes held",
            "short",
            {
                "{{instance}} stopped": "mailraft_disk_write_stopped",
                "{{instance}} limited": "mailraft_disk_write_limit_bytes_per_second > 0",
            },
        ),
        Panel(
            "Waits for compaction",
            "bytes",
            {"{{instance}}": "sum by (instance) (mailraft_disk_compaction_pending_bytes)"},
        ),
        Panel(
            "Bodies",
            "bytes",
            {
                "{{instance}}": "sum by (instance) (mailraft_disk_blob_bytes)",
                "{{instance}} garbage": "sum by (instance) (mailraft_disk_blob_garbage_bytes)",
            },
        ),
        Panel(
            "Free",
            "percentunit",
            {"{{instance}}": "mailraft_disk_free_bytes / mailraft_disk_total_bytes"},
        ),
    ],
    "Processes": [
        Panel("Event loop late", "s", {"{{instance}}": "mailraft_loop_lag_seconds"}),
        Panel("Clock ahead", "s", {"{{instance}}": "mailraft_clock_skew_seconds"}),
        Panel(
            "Memory",
            "bytes",
            {"{{instance}}": 'process_resident_memory_bytes{job="mailraft"}'},
        ),
    ],
}


def queries() -> list[str]:
    """Every query of it, as Prometheus takes it."""
    return [
        query.replace("$__rate_interval", "1m")
        for panels in ROWS.values()
        for panel in panels
        for query in panel.queries.values()
    ]


def dashboard() -> str:
    """The file's content."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": top, "w": COLUMNS * WIDTH, "h": 1}
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place})
        top += 1
        for at, each in enumerate(row):
            place = {
                "x": at % COLUMNS * WIDTH,
                "y": top + at // COLUMNS * HEIGHT,
                "w": WIDTH,
                "h": HEIGHT,
            }
            panels.append({"id": len(panels) + 1, "gridPos": place, **_timeseries(each)})
        top += -(-len(row) // COLUMNS) * HEIGHT
    made = {
        "title": "mailraft",
        "uid": "mailraft",
        "schemaVersion": 39,
        "tags": ["mailraft"],
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "type": "datasource",
                    "query": "prometheus",
                    "label": "Source",
                }
            ]
        },
        "panels": panels,
    }
    return json.dumps(made, indent=1) + "\n"


def _timeseries(panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": source,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(65 + at), "datasource": source, "expr": query, "legendFormat": legend}
            for at, (legend, query) in enumerate(panel.queries.items())
        ],
    }

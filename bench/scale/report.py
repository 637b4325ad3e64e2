"""docs/scale.md and its plots, from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.scale.data import Data
from bench.scale.measure import (
    BASE,
    CONCURRENCIES,
    KIB,
    MIB,
    NODES,
    PAGE,
    SHARDS,
    SIZES,
    SLICE_S,
    SLICES,
    Cost,
    Seen,
    Setting,
    callers,
)

from bars import Chart, round_ticks, svg

LATENCY_TICKS_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000)
MICROSECONDS_TICKS = (1, 10, 100, 1_000, 10_000)
MAILBOX_SERIES = ("page of 50, newest first", "one message by id", "append")


@dataclass(frozen=True, slots=True)
class Varied:
    """One number of BASE with each of its values."""

    title: str
    unit: str
    settings: Sequence[Setting]
    name: Callable[[Setting], str]


def size_name(size_bytes: int) -> str:
    return f"{size_bytes // MIB} MiB" if size_bytes >= MIB else f"{size_bytes // KIB} KiB"


VARIED = (
    Varied(
        "Nodes",
        "nodes",
        [replace(BASE, nodes=each) for each in NODES],
        lambda each: f"{each.nodes} ({each.replicas} replicas)",
    ),
    Varied(
        "Shards",
        "shards",
        [replace(BASE, shards=each) for each in SHARDS],
        lambda each: f"{each.shards}",
    ),
    Varied(
        "Message size",
        "mail",
        [replace(BASE, size_bytes=each, concurrency=callers(each)) for each in SIZES],
        lambda each: f"{size_name(each.size_bytes)} ({each.concurrency} in flight)",
    ),
    Varied(
        "Concurrency",
        "in flight",
        [replace(BASE, concurrency=each) for each in CONCURRENCIES],
        lambda each: f"{each.concurrency:,}",
    ),
)


def line(seen: Seen) -> str:
    """What is printed while it is measured."""
    setting = seen.setting
    where = f"{setting.nodes} nodes, {setting.shards} shards, {size_name(setting.size_bytes)}"
    told = (
        f"{name} {cost.per_s:,.0f}/s p50 {cost.p50_ms:.1f} ms, nodes {cost.nodes_ms:.2f} ms CPU"
        for name, cost in (("deliver", seen.deliver), ("fetch", seen.fetch), ("page", seen.page))
    )
    return f"{where}, {setting.concurrency} in flight: {'; '.join(told)}"


def write(data: Data, folder: Path) -> None:
    """Replace the document and its plots."""
    (folder / "scale.md").write_text(markdown(data), "utf-8")
    (folder / "scale-throughput.svg").write_text(throughput_plot(data), "utf-8")
    (folder / "scale-latency.svg").write_text(latency_plot(data), "utf-8")
    (folder / "scale-mailbox.svg").write_text(mailbox_plot(data), "utf-8")


def markdown(data: Data) -> str:
    parts = [_INTRODUCTION.format(cores=data.cores, python=data.python, load=data.load_average)]
    for varied in VARIED:
        parts += [*_table(varied, data), _READING[varied.title]]
    parts += [*_mailbox_table(data), _MAILBOX, *_idle_table(data), _IDLE]
    return "\n".join(parts)


def _table(varied: Varied, data: Data) -> Iterator[str]:
    yield f"## {varied.title}"
    yield ""
    kinds = (f"{kind}/s | p50 | p99 | CPU ms" for kind in ("delivered", "fetched", "pages"))
    yield f"| {varied.unit} | {' | '.join(kinds)} |"
    yield f"|---|{'--:|' * 12}"
    for setting in varied.settings:
        seen = data.of(setting)
        costs = " | ".join(map(_cells, (seen.deliver, seen.fetch, seen.page)))
        yield f"| {varied.name(setting)} | {costs} |"
    yield ""


def _cells(cost: Cost) -> str:
    cpu = f"{cost.nodes_ms:.2f} + {cost.client_ms:.2f}"
    return f"{cost.per_s:,.0f} | {cost.p50_ms:,.1f} | {cost.p99_ms:,.1f} | {cpu}"


def _mailbox_table(data: Data) -> Iterator[str]:
    sizes = sorted(next(iter(data.mailbox.values())))
    yield "## Messages in a mailbox"
    yield ""
    yield f"| µs | {' | '.join(f'{size:,}' for size in sizes)} |"
    yield f"|---|{'--:|' * len(sizes)}"
    for name, took_us in data.mailbox.items():
        yield f"| {name} | {' | '.join(f'{took_us[size]:,.0f}' for size in sizes)} |"
    yield ""


def _idle_table(data: Data) -> Iterator[str]:
    yield "## Doing nothing"
    yield ""
    yield "| nodes | shards | CPU of a node, % of a core | MiB of a node |"
    yield "|--:|--:|--:|--:|"
    for idle in sorted(data.clusters, key=lambda each: (each.nodes, each.shards)):
        used = f"{idle.cpu_percent:.1f} | {idle.memory_mib:,.0f}"
        yield f"| {idle.nodes} | {idle.shards} | {used} |"
    yield ""


def throughput_plot(data: Data) -> str:
    """Deliveries and fetches a second, a chart for each number that is varied."""
    charts = []
    for varied in VARIED:
        rows = [(varied.name(each), _rates(data.of(each))) for each in varied.settings]
        title = f"{varied.title}: calls a second"
        kinds = ("delivered", "fetched", "pages of 50")
        charts.append(Chart(title, kinds, rows, round_ticks(rows), ",.0f"))
    return svg(charts)


def _rates(seen: Seen) -> Sequence[float]:
    return seen.deliver.per_s, seen.fetch.per_s, seen.page.per_s


def latency_plot(data: Data) -> str:
    """The same for the latency of a delivery."""
    charts = []
    for varied in VARIED:
        rows = [
            (varied.name(each), (data.of(each).deliver.p50_ms, data.of(each).deliver.p99_ms))
            for each in varied.settings
        ]
        title = f"{varied.title}: milliseconds a delivery (logarithmic)"
        charts.append(
            Chart(title, ("p50", "p99"), rows, LATENCY_TICKS_MS, ",.1f", logarithmic=True)
        )
    return svg(charts)


def mailbox_plot(data: Data) -> str:
    """Some operations on mailboxes of each size."""
    sizes = sorted(next(iter(data.mailbox.values())))
    rows = [(f"{size:,}", [data.mailbox[name][size] for name in MAILBOX_SERIES]) for size in sizes]
    title = "Messages in the mailbox: microseconds of one operation in its node (logarithmic)"
    return svg([Chart(title, MAILBOX_SERIES, rows, MICROSECONDS_TICKS, ",.0f", logarithmic=True)])


_INTRODUCTION = f"""\
# With more of everything

Written by `make scale` (bench/scale) from what it measured, which is in [scale.json](scale.json);
[capacity.md](capacity.md) is fitted to it.

Measured on one machine with {{cores}} cores, which all nodes, the caller and its {BASE.replicas}
replicas' disk share, under Python {{python}}: **more nodes do not make this machine faster**, they
share it. So CPU is told beside the rates: milliseconds a call, of all nodes together + of the
client. Nodes with a core each do as much more as the client and the other nodes took. When it
began, {{load:.0f}} other processes wanted the {{cores}} cores: rates are lower and latencies longer
by that, CPU is not.

One number at a time is varied; the others are {BASE.nodes} nodes, {BASE.shards} shards, mails of
{size_name(BASE.size_bytes)} of which about half compresses, {BASE.concurrency} calls in flight of
one AsyncClient, TLS, QUORUM, flushed. Deliveries, fetches of one mail and pages of the newest
{PAGE} envelopes (both at SESSION) by turns, {SLICES} turns of {SLICE_S} s after one to warm up;
rates are medians, latencies in milliseconds.

![calls a second](scale-throughput.svg)

![latency of a delivery](scale-latency.svg)
"""

_READING = {
    "Nodes": """\
One node writes for itself; three keep three copies and agree on each, which is more than three
times the CPU. The fourth and fifth copy nothing more, since a shard has three replicas however many
nodes there are; but what is in flight is spread over more leaders, so that less travels together.
""",
    "Shards": """\
A shard is a log, and each has a round of its own: the same mails in more shards are more and
smaller log entries. Shards are for spreading load over nodes, not for making one faster. A few a
node are enough until a cluster grows: a shard is what moves.
""",
    "Message size": """\
Up to some tens of KiB a mail costs as much as it costs to handle one at all; from then on its bytes
count. Above 1 MiB it is uploaded in pieces first, each a log entry.
""",
    "Concurrency": """\
What is in flight at the same time travels together, is one log entry, and waits for one flush: CPU
a mail falls with the load, and latency grows more slowly than the load.
""",
}

_MAILBOX = """\
![operations on mailboxes of each size](scale-mailbox.svg)

Medians, in one node without network and consensus, places taken at random, caches warm
(bench/mailbox_size.py; `make mailbox-size` has it also cold). Nothing that a user waits for walks
through a mailbox; what grows a little is the store to look into.
"""

_IDLE = """\
What keeps groups together. Heartbeats of all groups travel in one message to each other node, so it
is nodes that cost, more than groups ([capacity.md](capacity.md#where-it-would-break)).
"""

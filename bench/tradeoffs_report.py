"""docs/tradeoffs.md and its plots, from what bench/tradeoffs_measure.py measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.failover import percentile
from bench.tradeoffs_measure import (
    ASK_DEADLINE_S,
    ASK_EVERY_S,
    BACKGROUND_WRITES_A_SECOND,
    CALLERS,
    FAULT_S,
    READS,
    ROUNDS,
    SLICE_S,
    SLICES,
    TIMES,
    WRITES,
    Availabilities,
    Availability,
    Cost,
    Costs,
    Level,
)

from bars import Chart, round_ticks, svg

SECTIONS: tuple[tuple[str, Sequence[Level]], ...] = (("Writes", WRITES), ("Reads", READS))
LATENCY_TICKS_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200)
SHARE_TICKS = (0, 25, 50, 75, 100)


@dataclass(frozen=True, slots=True)
class Measured:
    """All of it; `under`: by the name of the fault."""

    cost: Costs
    under: Mapping[str, Availabilities]


def write(measured: Measured, folder: Path) -> None:
    """Replace the document and its two plots."""
    (folder / "tradeoffs.md").write_text(markdown(measured), "utf-8")
    (folder / "tradeoffs-cost.svg").write_text(cost_plot(measured.cost), "utf-8")
    (folder / "tradeoffs-faults.svg").write_text(faults_plot(measured.under), "utf-8")


def markdown(measured: Measured) -> str:
    return "\n".join(
        [
            _INTRODUCTION.format(cores=os.cpu_count(), python=platform.python_version()),
            *cost_tables(measured.cost),
            _AVAILABILITY,
            *availability_tables(measured.under),
            _READING,
        ]
    )


def cost_tables(cost: Costs) -> list[str]:
    """One table of writes, one of reads."""
    lines: list[str] = []
    for title, levels in SECTIONS:
        lines += [
            f"### {title}",
            "",
            "| level | p50 | p99 | calls/s | slices |",
            "|---|--:|--:|--:|--:|",
            *(_cost_row(level, cost[level]) for level in levels),
            "",
        ]
    return lines


def _cost_row(level: Level, cost: Cost) -> str:
    p50_ms, p99_ms = _latency_ms(cost)
    slices = f"{min(cost.per_s):,.0f} to {max(cost.per_s):,.0f}"
    rate = f"{median(cost.per_s):,.0f}"
    return f"| {level.name} | {p50_ms:.1f} ms | {p99_ms:.1f} ms | {rate} | {slices} |"


def availability_tables(under: Mapping[str, Availabilities]) -> list[str]:
    lines: list[str] = []
    for title, levels in SECTIONS:
        lines += [
            f"### {title} under faults",
            "",
            f"| level | {' | '.join(under)} |",
            f"|---|{'--:|' * len(under)}",
            *(
                f"| {level.name} | {' | '.join(_share(under[fault], level) for fault in under)} |"
                for level in levels
            ),
            "",
        ]
    return lines


def _share(found: Availabilities, level: Level) -> str:
    each = found[level]
    return f"{each.share:.0%}, {each.silence_s:.2f} s"


def _latency_ms(cost: Cost) -> tuple[float, float]:
    ordered = sorted(cost.took_s)
    return percentile(ordered, 0.5) * 1000, percentile(ordered, 0.99) * 1000


def cost_plot(cost: Costs) -> str:
    """Latency, then throughput."""
    charts = [
        Chart(
            f"{title}: milliseconds, one caller (logarithmic)",
            ("p50", "p99"),
            [(level.name, _latency_ms(cost[level])) for level in levels],
            LATENCY_TICKS_MS,
            ".1f",
            logarithmic=True,
        )
        for title, levels in SECTIONS
    ]
    for title, levels in SECTIONS:
        rates = [(level.name, (median(cost[level].per_s),)) for level in levels]
        heading = f"{title}: calls a second, {CALLERS} callers"
        charts.append(Chart(heading, ("median slice",), rates, round_ticks(rates), ",.0f"))
    return svg(charts)


def faults_plot(under: Mapping[str, Availabilities]) -> str:
    """The share of calls that are answered, and the longest time without an answer."""

    def chart(
        title: str, of: Callable[[Availability], float], ticks: Sequence[float], shown: str
    ) -> Iterator[Chart]:
        for kind, levels in SECTIONS:
            rows = [(level.name, [of(under[fault][level]) for fault in under]) for level in levels]
            yield Chart(f"{kind} under faults: {title}", tuple(under), rows, ticks, shown)

    answered = f"% answered at the level in {ASK_DEADLINE_S:.0f} s"
    silence = f"longest time without an answer, of {FAULT_S:.0f} s"
    return svg(
        [
            *chart(answered, lambda each: each.share * 100, SHARE_TICKS, ".0f"),
            *chart(silence, lambda each: each.silence_s, range(int(FAULT_S) + 1), ".2f"),
        ]
    )


_INTRODUCTION = f"""\
# What each level costs, and what it survives

Written by `make tradeoffs`, which measures it anew (bench/tradeoffs.py). What the levels promise,
and which to take for what, is in [guarantees.md](guarantees.md); `make quorum` proves it.

Measured on one machine with {{cores}} cores, which three nodes (each a zone of its own), a router
and the callers share, under Python {{python}}. There is no network to cross, and one disk for all:
compare the figures with each other, not with those of a cluster. Machines apart add their round
trip to every level that waits for another node.

## Cost

![latency and throughput of each level](tradeoffs-cost.svg)

- **p50, p99**: of {ROUNDS} calls by one caller, the levels in turns, call by call.
- **calls/s**: of {CALLERS} callers, each one call after the other; the median of {SLICES} slices of
  {SLICE_S:.0f} s, the levels in turns. **slices**: the slowest and the fastest.
- A write is a delivery of 1 KB. A read lists 10 messages of a mailbox, beside
  {BACKGROUND_WRITES_A_SECOND} deliveries a second by the same client.
"""

_AVAILABILITY = f"""\
## Availability

![answered calls of each level under faults](tradeoffs-faults.svg)

Each level is asked every {ASK_EVERY_S * 1000:.0f} ms by a client of its own, which waits
{ASK_DEADLINE_S:.0f} s for an answer. Counted are the calls that begin within {FAULT_S:.0f} s of the
fault, {TIMES} times: the share that was answered at the level, and the longest time without such an
answer.

- **leader killed**, **follower killed**: kill -9, and down all the time.
- **leader cut off**: a partition. It hears no other node and none hears it; callers reach all.
"""

_READING = """\
## How to read it

- A leader that is killed or cut off costs writes and LINEARIZABLE reads an election, of about a
  second. QUORUM(n), SESSION, BOUNDED and LOCAL are read from the other replicas meanwhile; BOUNDED
  needs a quorum again once its bound is over.
- A follower that is killed costs only the levels that need it: REPLICAS(3), EACH_ZONE (each node is
  a zone here) and ALL are refused until it is back, and nothing is written. That holds of a leader,
  too, since there is one voter less. More voters help: of five, REPLICAS(3) can lose two.
- A silence of the whole time says that the level was refused all the time, as it has to be.
"""

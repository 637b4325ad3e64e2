"""docs/compare.md and its plots, from what one run measured. Pure but for `write`."""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from bench.compare.results import Results, Scale
from bench.compare.rows import OURS, Row, Samples, Verdict, verdicts
from bench.compare.work import Slice

from bars import Chart, round_ticks, svg

NAMES = {
    "mailraft": "mailraft",
    "etcd": "etcd",
    "postgres": "PostgreSQL",
    "nats": "NATS",
    "dovecot": "Dovecot",
    "direct": "direct",
    "plain": "plain text",
}
NOTHING = "–"
# Of the plot of aims: how near, 1 is met.
NEARNESS_TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
GIT_DEADLINE_S = 10.0


def write(rows: Sequence[Row], results: Results, folder: Path) -> None:
    """Replace the document and its plots."""
    folder.mkdir(exist_ok=True)
    text = markdown(rows, results, commit(), dt.datetime.now(dt.UTC).date())
    (folder / "compare.md").write_text(text, "utf-8")
    (folder / "compare-aims.svg").write_text(aims_plot(rows, results.samples), "utf-8")
    (folder / "compare-figures.svg").write_text(figures_plot(rows, results.samples), "utf-8")


def commit() -> str:
    """What was measured, as git names it."""
    here = Path(__file__).parent
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=GIT_DEADLINE_S,
        check=False,
    )
    return said.stdout.strip() or "no commit"


def markdown(rows: Sequence[Row], results: Results, of: str, day: dt.date) -> str:
    scale = results.scale
    introduction = _INTRODUCTION.format(
        cores=os.cpu_count(),
        python=platform.python_version(),
        day=day,
        commit=of,
        minutes=results.took_s / 60,
        peers="\n".join(f"- {title}" for title in results.peers.values()),
        rounds=scale.rounds,
        seconds=scale.slice_s,
    )
    parts = (
        introduction,
        *([] if scale == Scale() else ["**A quick run, too short to judge by.**\n"]),
        "## Aims\n",
        "![how near each aim is](compare-aims.svg)\n",
        aims_table(rows, results.samples),
        *(f"Not measured: {name}: {why}\n" for name, why in results.failed.items()),
        _AIMS_READING,
        "## Figures\n",
        "![figures of each row](compare-figures.svg)\n",
        figures_table(rows, results.samples),
        "## What it costs\n",
        costs_table(results.slices),
        _COSTS_READING,
        _NOT_EQUAL.format(
            large=scale.large_mailbox,
            failovers=scale.failovers,
            messages=scale.stored_messages,
            mail_mb=scale.stored_bytes / 1e6,
            device_mails=scale.device_mails,
        ),
    )
    return "\n".join(parts)


def aims_table(rows: Sequence[Row], samples: Samples) -> str:
    """One line an aim."""
    lines = ["| work | mailraft | peer | aim | reached | met |", "|---|--:|--:|--:|--:|---|"]
    for verdict in verdicts(rows, samples):
        row, aim = verdict.row, verdict.aim
        found = samples[row.name]
        theirs = found.get(aim.peer)
        peer = f"{_shown(row, theirs)} ({NAMES[aim.peer]})" if theirs else NOTHING
        value = NOTHING if verdict.value is None else f"{verdict.value:.2f}"
        ours = f"{_shown(row, found[OURS])} {row.unit}"
        sign = "≥" if aim.at_least else "≤"
        limit = f"{sign} {aim.limit:g}" + (" ×" if aim.peer else f" {row.unit}")
        lines.append(f"| {row.title} | {ours} | {peer} | {limit} | {value} | {_met(verdict)} |")
    return "\n".join(lines) + "\n"


def _met(verdict: Verdict) -> str:
    return {True: "yes", False: "**no**", None: "not measured"}[verdict.met]


def figures_table(rows: Sequence[Row], samples: Samples) -> str:
    """One line a row, one column a peer that has a figure in any."""
    there = [name for name in NAMES if any(name in found for found in samples.values())]
    lines = [
        f"| work | unit | {' | '.join(NAMES[name] for name in there)} |",
        f"|---|---|{'--:|' * len(there)}",
    ]
    for row in rows:
        if found := samples.get(row.name):
            cells = (_shown(row, found.get(name)) for name in there)
            lines.append(f"| {row.title} | {row.unit} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _shown(row: Row, samples: Sequence[float] | None) -> str:
    return f"{row.told(samples):,.{row.digits}f}" if samples else NOTHING


def costs_table(slices: Mapping[str, Mapping[str, Sequence[Slice]]]) -> str:
    """Of every work and peer, medians of its slices."""
    columns = (
        "work",
        "peer",
        "per second (slowest, fastest)",
        "p50",
        "p99",
        "server CPU s of 1,000",
        "device bytes of one",
        "client, of a core",
        "calls failed",
    )
    lines = [f"| {' | '.join(columns)} |", f"|---|---|{'--:|' * (len(columns) - 2)}"]
    for name, found in slices.items():
        for peer, each in found.items():
            if each:  # its client may have failed in the first
                lines.append(f"| {name} | {NAMES[peer]} | {' | '.join(_costs(each))} |")
    return "\n".join(lines) + "\n"


def _costs(slices: Sequence[Slice]) -> Iterator[str]:
    rates = sorted(each.per_s for each in slices)
    yield f"{median(rates):,.0f} ({rates[0]:,.0f} to {rates[-1]:,.0f})"
    yield f"{median(each.done.p50_ms for each in slices):.2f} ms"
    yield f"{median(each.done.p99_ms for each in slices):.1f} ms"
    yield f"{median(each.cpu_s_per_1000 for each in slices):.3f}"
    written = [each.written_per_unit for each in slices if each.written_per_unit is not None]
    yield f"{median(written):,.0f}" if written else NOTHING
    yield f"{median(each.done.client_cpu_s / each.done.took_s for each in slices):.2f}"
    yield f"{sum(each.done.failed for each in slices):,}"


def nearness(verdict: Verdict) -> float | None:
    """How near an aim is, whichever way it goes: 1 and more is met."""
    if verdict.value is None or verdict.value <= 0:
        return None
    limit = verdict.aim.limit
    return verdict.value / limit if verdict.aim.at_least else limit / verdict.value


def aims_plot(rows: Sequence[Row], samples: Samples) -> str:
    """One bar an aim."""
    bars = []
    for verdict in verdicts(rows, samples):
        near = nearness(verdict)
        if near is not None:
            against = f", {NAMES[verdict.aim.peer]}" if verdict.aim.peer else ""
            bars.append((f"{verdict.row.name}{against}", (near,)))
    heading = "How near each aim is: met from 1 on (logarithmic)"
    return svg([Chart(heading, ("reached",), bars, NEARNESS_TICKS, ".2f", logarithmic=True)])


def figures_plot(rows: Sequence[Row], samples: Samples) -> str:
    """One chart a row that has peers, one bar each."""
    charts = []
    for row in rows:
        found = samples.get(row.name, {})
        bars = [(NAMES[peer], (row.told(found[peer]),)) for peer in NAMES if found.get(peer)]
        if len(bars) > 1:
            heading = f"{row.title}, {row.unit}"
            ticks = [round(tick, 6) for tick in round_ticks(bars)]
            charts.append(
                Chart(heading, ("median of the slices",), bars, ticks, f",.{row.digits}f")
            )
    return svg(charts)


_INTRODUCTION = """\
# mailraft beside what one would pick instead

Written by `make compare` (bench/compare), which measures it anew; `make compare-deps` installs the
peers. Measured on {day} at commit {commit}, in {minutes:.0f} minutes, under Python {python}:

{peers}

All of it runs on one machine with {cores} cores, which every server shares with the client, on one
disk and without a network to cross. Figures of one run compare with each other; those of two runs,
or of two machines, do not. **A Python client is measured** on every side: one process with uvloop
for each system, so what a faster client would get out of a system is not seen here.

All servers are up all the time; the systems take turns, {rounds} slices of {seconds:g} s each, and
who begins changes. A figure is the median of its slices, a ratio the median of the rounds' ratios.
Before a slice, and after it, everything that is dirty is written, so that it counts where it
belongs. Mail is of the corpus, 1 to 16 KiB, each made a mail of its own by one line, over 64
mailboxes.
"""

_AIMS_READING = """
*reached* is the ratio to the peer, or mailraft's own figure where no peer is named. The aims are
those that were set before anything was measured.
"""

_COSTS_READING = """
- **server CPU**: user and system time of all processes of the system, standbys and router too.
- **device bytes**: sectors that the device under the data folders wrote meanwhile, whoever caused
  them; what a system writes later (compaction, checkpoints) is in the row that waits for it.
"""

_NOT_EQUAL = """
## What is equal, and what is not

Equal: fsync on everywhere, an answer only when a majority has it on disk (Dovecot: its one node),
three replicas, plain text on loopback (mailraft with `--insecure`; what TLS costs has rows of its
own), the same bytes given to each client, each client one process with one connection pool.

- **etcd**: keys and values; no mailboxes, UIDs, change feed, quota or request ids. `Put` for single
  deliveries, `Txn` of 100 Puts with 10 in flight for bulk. Values as they are: it does not
  compress. Its client knows the leader. Pages are keys only, serializable, of all members by turns.
- **PostgreSQL**: a row with mailbox, UID, flags, size and body; the client picks the UIDs, nobody
  parses the mail. `synchronous_standby_names = 'ANY 1 (s1, s2)'`, lz4 for what it compresses.
  At most 32 connections at work (not swept). Pages have UID, flags and size.
  Its reads are of the primary, which after a partition may not be it any more.
- **NATS**: a stream is a log; the mailbox is a subject. `sync_interval: always`. Its gets are
  direct, of any replica, and may be behind.
- **Dovecot**: not replicated; one node, mdbox, `mail_fsync = optimized`. 16 LMTP or 8 IMAP
  connections at work (not swept). A get is of the mailbox that its connection has
  open. Keyword changes are not flushed. It parses mail when it is first looked at; its cache is
  warm here. A page is FETCH of UID, FLAGS, INTERNALDATE, RFC822.SIZE and ENVELOPE.
- **mailraft**: three shards, as many as nodes, so that each leads one. It parses each mail as it
  comes in, keeps counters, MODSEQ, change feed, quota and request ids; its client compresses bodies
  with zstandard and its dictionary for mail, which costs the client and saves the servers.
  `deliver()` calls travel together by themselves; where that is compared with calls that do not,
  the row below has the peers' calls coalesced in the same way. Pages have envelopes, at SESSION;
  gets are LINEARIZABLE and verify the mail's SHA-256. The large mailbox has {large:,} messages.
- **failover**: {failovers} kills, by turns. mailraft's client knows nothing of the kill; etcd's
  client tries the two members that are left, every 100 ms.
- **size, restart**: a cluster of its own with {mail_mb:,.0f} MB of mail, then small messages up to
  {messages:,} in all. A restart ends when the node says that it is ready and every replica of it
  has served a linearizable read.
- **written to the device**: {device_mails:,} mails, then a checkpoint (PostgreSQL) and until the
  device is at rest; each system with nothing stored before, while no other is up.
"""

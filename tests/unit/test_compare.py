from __future__ import annotations

import asyncio
import datetime as dt
import re
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
from bench.compare import mails, report, work
from bench.compare.interface import Work
from bench.compare.results import Results, Scale
from bench.compare.rows import OURS, ROWS, Aim, Row, cpu_s_per_1000, verdicts
from bench.compare.work import Done, Slice, run, run_units

RATE = Row("rate", "some work", "mails/s", (Aim(2.0, "etcd"), Aim(1.5, "postgres")))
LATENCY = Row("wait", "some wait", "ms", (Aim(1.0, "etcd", at_least=False),), digits=2)
ABSOLUTE = Row("restart", "a restart", "s", (Aim(5.0, at_least=False),), digits=1)
TAIL = Row("tail", "a kill", "s", (Aim(1.0, "etcd", at_least=False),), share=0.95, digits=2)


def a_slice(units: int = 1_000, took_s: float = 2.0, cpu_s: float = 0.5) -> Slice:
    """One that wrote 4,000 bytes a unit, with 3 calls that failed."""
    done = Done(units, took_s, p50_ms=1.5, p99_ms=9.0, client_cpu_s=1.0, failed=3)
    return Slice(done, cpu_s, written_bytes=4_000 * units)


def test_a_ratio_is_of_the_same_round() -> None:
    """A machine that was slow for one round for both does not move the ratio."""
    assert RATE.ratio([200.0, 20.0, 240.0], [100.0, 10.0, 120.0]) == 2.0
    # Medians alone would say 1.5: the rounds differ in how they compare.
    assert RATE.ratio([100.0, 300.0, 900.0], [50.0, 200.0, 900.0]) == 1.5
    assert RATE.ratio([100.0, 200.0], [50.0]) == 3.0, "other counts: of what is told"


def test_a_tail_is_compared_by_its_percentile() -> None:
    """One bad failover of twenty is not the p95, two are."""
    fine, bad = 0.5, 9.0
    assert TAIL.told([fine] * 19 + [bad]) == fine
    assert TAIL.told([fine] * 18 + [bad] * 2) == bad
    assert TAIL.ratio([fine] * 20, [1.0] * 18 + [2.0] * 2) == 0.25


@pytest.mark.parametrize(
    ("row", "samples", "met"),
    [
        (RATE, {OURS: [200.0], "etcd": [100.0], "postgres": [134.0]}, [True, False]),
        (RATE, {OURS: [199.0], "etcd": [100.0]}, [False, None]),
        (LATENCY, {OURS: [1.0], "etcd": [1.0]}, [True]),
        (LATENCY, {OURS: [1.01], "etcd": [1.0]}, [False]),
        (ABSOLUTE, {OURS: [4.0, 5.0, 9.0]}, [True]),
        (ABSOLUTE, {OURS: [4.0, 5.1, 9.0]}, [False]),
        (RATE, {"etcd": [100.0]}, []),
    ],
)
def test_an_aim_is_met_or_not(
    row: Row, samples: dict[str, list[float]], met: list[bool | None]
) -> None:
    """At the limit it is met; against a peer that did not run it is neither."""
    assert [each.met for each in verdicts([row], {row.name: samples})] == met


def test_every_aim_of_the_table_can_be_measured() -> None:
    """An aim names a peer that its row has; a row of slices says what it takes of them."""
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert bool(row.work) == (row.figure is not None), row.name
        assert all(not aim.peer or aim.peer in row.others for aim in row.aims), row.name
        assert {OURS, *row.others} <= report.NAMES.keys()
    assert sum(len(row.aims) for row in ROWS) == 19


def test_a_report_says_what_was_reached() -> None:
    """Figure, ratio, aim and verdict stand in one line; a peer that did not run is not made up."""
    samples = {
        "rate": {OURS: [3_000.0], "etcd": [2_000.0]},
        "wait": {OURS: [0.5], "etcd": [1.0]},
        "restart": {OURS: [4.2]},
    }
    lines = report.aims_table([RATE, LATENCY, ABSOLUTE], samples).splitlines()[2:]
    assert lines == [
        "| some work | 3,000 mails/s | 2,000 (etcd) | ≥ 2 × | 1.50 | **no** |",
        "| some work | 3,000 mails/s | – | ≥ 1.5 × | – | not measured |",
        "| some wait | 0.50 ms | 1.00 (etcd) | ≤ 1 × | 0.50 | yes |",
        "| a restart | 4.2 s | – | ≤ 5 s | 4.20 | yes |",
    ]


def test_a_report_is_whole() -> None:
    """Peers with their versions, costs a unit, calls that failed, the commit and the plots."""
    results = Results(
        Scale(),
        peers={"etcd": "etcd, 3 members (etcd Version: 9)"},
        samples={"bulk": {OURS: [500.0], "etcd": [400.0]}},
        slices={"bulk": {OURS: [a_slice(), a_slice(took_s=4.0)]}},
        failed={"failover": "RuntimeError: no leader"},
        took_s=600.0,
    )
    text = report.markdown(ROWS, results, "abc123-dirty", dt.date(2026, 1, 2))
    assert "2026-01-02 at commit abc123-dirty, in 10 minutes" in text
    assert "- etcd, 3 members (etcd Version: 9)" in text
    assert "\nNot measured: failover: RuntimeError: no leader\n" in text
    costs = "| 375 (250 to 500) | 1.50 ms | 9.0 ms | 0.500 | 4,000 | 0.38 | 6 |"
    assert f"| bulk | mailraft {costs}" in text
    assert "{" not in text, "a placeholder was left"


def test_plots_show_how_near_an_aim_is_whichever_way_it_goes() -> None:
    """1 is met: twice as slow as allowed and half as fast as wanted are both 0.5."""
    samples = {"rate": {OURS: [100.0], "etcd": [100.0]}, "wait": {OURS: [2.0], "etcd": [1.0]}}
    near = [report.nearness(each) for each in verdicts([RATE, LATENCY], samples)]
    assert near == [0.5, None, 0.5]
    assert report.aims_plot([RATE, LATENCY], samples).count(">0.50<") == 2
    assert "some wait, ms" in report.figures_plot([RATE, LATENCY], samples)


def test_bars_of_a_plot_stand_apart() -> None:
    """Between each bar and the next there is room."""
    samples = {"rate": {OURS: [100.0], "etcd": [90.0], "postgres": [80.0]}}
    plot = report.figures_plot([RATE], samples)
    bars = re.findall(r'<rect x="250" y="(\d+)" width="[\d.]+" height="(\d+)"', plot)
    tops = [(int(top), int(height)) for top, height in bars if int(top) > 50]
    assert len(tops) == 3
    assert all(top + height < below for (top, height), (below, _) in pairwise(tops))


def test_costs_are_of_units() -> None:
    """CPU and bytes are told by the unit, whatever a slice did."""
    assert cpu_s_per_1000(a_slice(units=500, cpu_s=1.0)) == 2.0
    assert a_slice(units=7).written_per_unit == 4_000
    assert Slice(a_slice().done, 1.0, None).written_per_unit is None


def test_a_peer_that_failed_at_once_leaves_the_others_told() -> None:
    """Its line is left out: half an hour of other figures is worth having."""
    table = report.costs_table({"fanout": {OURS: [a_slice()], "dovecot": []}})
    assert "mailraft" in table
    assert "Dovecot" not in table


async def test_every_unit_counts_once() -> None:
    """Many tasks that end at the same time lose nothing of each other's count."""
    calls = 0

    async def call(_: int) -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.001)
        return 2

    done = await run(Work(16, call), 0.05)
    assert done.units == 2 * calls > 0
    calls = 0
    assert await run_units(Work(16, call), 100) == 2 * calls >= 100


def failing(every: int) -> Callable[[int], Awaitable[int]]:
    """A call of which one in `every` fails."""
    calls = 0

    async def call(_: int) -> int:
        nonlocal calls
        number = calls = calls + 1
        await asyncio.sleep(0)
        if number % every == 0:
            raise OSError
        return 1

    return call


async def test_a_failed_call_is_no_unit_and_is_told() -> None:
    """Errors that the client names are counted, others end the run."""
    done = await run(Work(4, failing(2)), 0.02, (OSError,))
    assert done.failed > 0
    assert abs(done.failed - done.units) <= 1
    with pytest.raises(ExceptionGroup):
        await run(Work(1, failing(2)), 0.02)


async def test_filling_does_not_go_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failed calls are tried again, but not without end: then the error comes out."""
    monkeypatch.setattr(work, "FAILED_MAX", 50)
    assert await run_units(Work(2, failing(2)), 10, (OSError,)) >= 10
    with pytest.raises(ExceptionGroup):
        await run_units(Work(1, failing(1)), 1, (OSError,))


def test_no_two_mails_are_the_same() -> None:
    """The corpus comes round again, with other first lines, evenly over the mailboxes."""
    given = mails.Mails([b"a\r\n", b"b\r\n"], mailboxes=3)
    numbers, boxes, raws = zip(*(given.next() for _ in range(6)), strict=True)
    assert numbers == (0, 1, 2, 3, 4, 5)
    assert boxes == (0, 1, 2, 0, 1, 2)
    assert len(set(raws)) == 6
    assert all(raw.endswith((b"a\r\n", b"b\r\n")) for raw in raws)


def test_mail_is_between_1_and_16_kib() -> None:
    """What is measured is what the page says."""
    loaded = mails.load()
    assert loaded
    assert all(1_024 <= len(raw) <= 16_384 for raw in loaded)
    assert 1_024 < mails.mean_bytes() < 16_384

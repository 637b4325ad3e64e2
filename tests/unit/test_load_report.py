"""docs/load-run.md from locust's statistics: percentiles, failures, retries, and what is there."""

from __future__ import annotations

import json

import pytest
from bench.load_report import Requests, Run, markdown, read_requests


def stats(name: str, took: dict[str, int], failed: int = 0) -> dict[str, object]:
    """As locust writes them: rounded milliseconds as text."""
    return {
        "name": name,
        "num_requests": sum(took.values()),
        "num_failures": failed,
        "max_response_time": 1_234.5,
        "response_times": took,
    }


@pytest.fixture
def requests() -> list[Requests]:
    """90 fast deliveries, 9 slow, 1 very slow; and fewer fetches, in another order."""
    fetch = stats("fetch", {"5": 10})
    deliver = stats("deliver", {"900": 1, "10.0": 90, "200": 9})
    return read_requests(json.dumps([fetch, deliver]))


def test_percentiles(requests: list[Requests]) -> None:
    """The smallest latency that at least so many do not pass; the kinds with the most first."""
    deliver, fetch = requests
    assert (deliver.name, deliver.count, deliver.max_ms) == ("deliver", 100, 1_234.5)
    marks = [deliver.percentile_ms(share) for share in (0.5, 0.9, 0.91, 0.99, 0.999)]
    assert marks == [10, 10, 200, 200, 900]
    assert fetch.percentile_ms(0.5) == 5
    assert Requests("none", 0, 0, 0.0, {}).percentile_ms(0.5) == 0


def test_total(requests: list[Requests]) -> None:
    """All kinds together."""
    total = Run(requests, {}, {}, 10.0, 4, 100, 100).total
    assert (total.count, total.failed, total.percentile_ms(0.05)) == (110, 0, 5)


def test_a_good_run_says_so(requests: list[Requests]) -> None:
    """Its rate, its retries, and that each mail is there once."""
    run = Run(requests, {"client NOT_LEADER": 1_200, "user OVERLOADED": 3}, {}, 11.0, 4, 100, 100)
    text = markdown(run)
    assert run.good
    assert text.startswith("# 110 requests")
    assert "| deliver | 100 | 0 | 10 | 10 | 200 | 200 | 900 | 1,234 |" in text
    assert "10 a\nsecond" in text
    assert "each is there once" in text
    assert "1,200 × client NOT_LEADER, 3 × user OVERLOADED." in text


@pytest.mark.parametrize(("failed", "found"), [(1, 100), (0, 99), (0, 101)])
def test_a_bad_run_is_not_good(requests: list[Requests], failed: int, found: int) -> None:
    """A request that failed, a mail that is lost or one that is there twice."""
    some = read_requests(json.dumps([stats("list", {"1": 5}, failed)]))
    run = Run([*requests, *some], {}, {"list: no": failed}, 10.0, 4, 100, found)
    assert not run.good
    assert (f"{found} ARE THERE" in markdown(run)) == (found != 100)
    assert f"Failures: {failed} × list: no." in markdown(run)

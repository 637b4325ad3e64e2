"""What a load run did, as a page: docs/load-run.md is one of them (make load)."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

SHARES = (0.5, 0.9, 0.95, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class Requests:
    """Of one kind. took: latency in milliseconds, as locust rounds it, to how many had it."""

    name: str
    count: int
    failed: int
    max_ms: float
    took: Mapping[int, int]

    @property
    def done(self) -> int:
        return self.count - self.failed

    def percentile_ms(self, share: float) -> int:
        """The smallest latency that at least this share of all do not pass; 0 of none."""
        seen = 0
        for latency_ms, count in sorted(self.took.items()):
            seen += count
            if seen >= share * self.count:
                return latency_ms
        return 0


@dataclass(frozen=True, slots=True)
class Run:
    """retries: by who retried and why. failed: by request and error. acknowledged, found: mails
    that were delivered.
    """

    requests: Sequence[Requests]
    retries: Mapping[str, int]
    failed: Mapping[str, int]
    took_s: float
    users: int
    acknowledged: int
    found: int

    @property
    def total(self) -> Requests:
        """All kinds together."""
        took: dict[int, int] = {}
        for each in self.requests:
            for latency_ms, count in each.took.items():
                took[latency_ms] = took.get(latency_ms, 0) + count
        return Requests(
            "all",
            sum(each.count for each in self.requests),
            sum(each.failed for each in self.requests),
            max((each.max_ms for each in self.requests), default=0.0),
            took,
        )

    @property
    def good(self) -> bool:
        """Every request succeeded in the end, and every mail is there once."""
        return not self.total.failed and self.acknowledged == self.found


def read_requests(stats: str) -> list[Requests]:
    """Of the statistics that locust writes as JSON."""
    return sorted(
        (
            Requests(
                name=each["name"],
                count=each["num_requests"],
                failed=each["num_failures"],
                max_ms=each["max_response_time"],
                took={int(float(ms)): count for ms, count in each["response_times"].items()},
            )
            for each in json.loads(stats)
        ),
        key=lambda each: -each.count,
    )


def markdown(run: Run) -> str:
    """The page."""
    return "\n".join([*_head(run), *_table(run), "", *_foot(run)])


def _head(run: Run) -> Iterator[str]:
    total = run.total
    yield f"# {total.count:,} requests of locust users"
    yield ""
    yield "Written by `make load` (bench/load.py); what the requests are, and how to run it on more"
    yield "machines, is in [load-testing.md](load-testing.md)."
    yield ""
    yield f"One machine with {os.cpu_count()} cores, which three nodes, a router and the workers of"
    yield f"locust share; TLS, flushed, QUORUM, Python {platform.python_version()}. {run.users}"
    yield f"requests in flight, {run.took_s / 60:,.0f} minutes: {total.count / run.took_s:,.0f} a"
    yield "second. Latencies are those of the callers, with all retries, in milliseconds."
    yield ""


def _table(run: Run) -> Iterator[str]:
    heads = " | ".join(f"p{share * 100:g}" for share in SHARES)
    yield f"| request | count | failed | {heads} | max |"
    yield f"|---|--:|--:|{'--:|' * len(SHARES)}--:|"
    for each in (*run.requests, run.total):
        marks = " | ".join(f"{each.percentile_ms(share):,}" for share in SHARES)
        yield f"| {each.name} | {each.count:,} | {each.failed:,} | {marks} | {each.max_ms:,.0f} |"


def _foot(run: Run) -> Iterator[str]:
    verdict = "each is there once" if run.acknowledged == run.found else f"{run.found:,} ARE THERE"
    yield f"Failed after all retries: {run.total.failed:,}. Mails acknowledged:"
    yield f"{run.acknowledged:,}; {verdict}."
    yield ""
    if run.failed:
        why = ", ".join(f"{count:,} × {why}" for why, count in sorted(run.failed.items()))
        yield f"Failures: {why}. A delivery that failed may be there."
        yield ""
    retried = ", ".join(f"{count:,} × {why}" for why, count in sorted(run.retries.items()))
    yield f"Retries, by who repeated a call and what the try before met: {retried or 'none'}."
    yield ""

"""The summary of `make quorum`: how many reads each level answered under which fault."""

from __future__ import annotations

from tests.faults.history import Kind
from tests.quorum.level_load import LEVELS, Verdict

HEADER = ("under load", "writes", *(level.name for level in LEVELS), "violations")
ROWS: list[tuple[str, ...]] = []
_totals = dict.fromkeys(LEVELS, 0)


def note(fault: str, verdict: Verdict) -> None:
    """A run: of each level the reads that were answered, and how many were refused."""
    writes = sum(
        each.acknowledged for each in verdict.history.operations if each.kind is Kind.DELIVER
    )
    counts = (f"{verdict.answered[level]} (-{verdict.refused[level]})" for level in LEVELS)
    ROWS.append((fault, str(writes), *counts, str(len(verdict.violations))))
    for level in LEVELS:
        _totals[level] += verdict.answered[level]


def table() -> list[str]:
    """The rows so far, in columns, and the totals of what was answered."""
    totals = ("all", "", *(str(_totals[level]) for level in LEVELS), "")
    lines = [HEADER, *ROWS, totals]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]

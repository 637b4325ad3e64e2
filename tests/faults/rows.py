"""One run: a cluster under load, a fault, the verdict, and its row of the summary."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tests.faults.checker import Broken, check
from tests.faults.load import Load

from mailraft.cluster.local import LocalCluster

# faults.md: a run that has less proves nothing.
ACKNOWLEDGED_MIN = 1_000
OVERLAPPING_MIN = 100
BODIES = 100
SERVES_AGAIN_S = 5.0
HEADER = ("fault", "operations", "acknowledged", "overlapping", "lost", "stale", "silence s", "")


@dataclass(frozen=True, slots=True)
class Row:
    fault: str
    operations: int
    acknowledged: int
    overlapping: int
    lost: int
    stale: int
    silence_s: float
    remark: str = ""

    def cells(self) -> tuple[str, ...]:
        counts = (self.operations, self.acknowledged, self.overlapping, self.lost, self.stale)
        return (self.fault, *map(str, counts), f"{self.silence_s:.2f}", self.remark)


ROWS: list[tuple[str, ...]] = []


def note(fault: str, remark: str) -> None:
    """A row of a fault that is judged otherwise than by a history."""
    ROWS.append((fault, *("-",) * (len(HEADER) - 2), remark))


def table() -> list[str]:
    """The rows so far, in columns."""
    lines = [HEADER, *ROWS]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


async def judge(
    fault: str, cluster: LocalCluster, load: Load, remark: str = "", *, void_below: bool = True
) -> Row:
    """Stop the load, wait until all is well again, check everything, and fill in the row."""
    await cluster.wait_ready()
    await load.more(50)
    await load.stop()
    history = load.history
    final = await load.final()
    violations = check(history, final)
    kinds = Counter(each.what for each in violations)
    row = Row(
        fault,
        len(history.operations),
        len(history.acknowledged()),
        len(history.overlapping()),
        kinds[Broken.LOST],
        kinds[Broken.STALE],
        history.longest_silence_s(),
        remark,
    )
    ROWS.append(row.cells())
    assert not violations, f"{fault}: {dict(kinds)}; first: {violations[0].text}"
    await load.check_bodies(BODIES)
    if void_below:
        assert row.acknowledged >= ACKNOWLEDGED_MIN, f"void: {row}"
        assert row.overlapping >= OVERLAPPING_MIN, f"void: {row}"
    return row

"""Background work keeps to its rate, and steps back while callers wait."""

import asyncio
import itertools
from types import SimpleNamespace

import pytest

from mailraft.node.pace import BYTES_PER_S, LATE_MS_FREE, SHARE_MIN, Pace

MIB = 1 << 20


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were slept, on a clock that only sleeping moves."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    # The module's own clock alone: the event loop keeps the real one.
    monkeypatch.setattr("mailraft.node.pace.time", SimpleNamespace(monotonic=lambda: sum(slept)))
    return slept


@pytest.mark.parametrize(
    ("late_ms", "times"),
    [
        (0.0, 1.0),
        (LATE_MS_FREE, 1.0),
        (2 * LATE_MS_FREE, 2.0),
        (10 * LATE_MS_FREE, 10.0),
        (10_000 * LATE_MS_FREE, 1 / SHARE_MIN),
    ],
)
async def test_the_later_the_loop_the_slower_and_it_always_goes_on(
    clock: list[float], late_ms: float, times: float
) -> None:
    """Lateness that callers notice costs background work its rate, down to a floor."""
    pace = Pace(lambda: late_ms, MIB)
    for _ in range(4):
        await pace.spent(MIB // 4)
    assert sum(clock) == pytest.approx(times)


async def test_it_is_at_full_rate_again_once_the_loop_is_on_time(clock: list[float]) -> None:
    """Each step goes by how late the loop is then."""
    late_ms = itertools.chain([LATE_MS_FREE * 4], itertools.repeat(0.0))
    pace = Pace(lambda: next(late_ms), MIB)
    for _ in range(3):
        await pace.spent(MIB)
    assert clock == pytest.approx([4.0, 1.0, 1.0])


@pytest.mark.parametrize("asked", [0, 10 * BYTES_PER_S])
async def test_nobody_gets_more_than_the_limit_of_the_node(clock: list[float], asked: int) -> None:
    """A caller may ask for less, never for more."""
    await Pace(lambda: 0.0, asked).spent(BYTES_PER_S)
    assert sum(clock) == pytest.approx(1.0)


async def test_many_small_rows_are_paced_by_their_number(clock: list[float]) -> None:
    """What costs turns of the loop rather than bytes is limited too."""
    await Pace(lambda: 0.0).spent(size_bytes=10, rows=500, rows_per_s=1_000)
    assert sum(clock) == pytest.approx(0.5)

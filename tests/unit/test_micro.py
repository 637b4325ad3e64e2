"""make bench-check: a layer that became dearer is told by its name."""

from __future__ import annotations

from bench.micro.__main__ import REGRESSED, measure, regressions
from bench.micro.seeing import Observed

RECORDED = {"apply": 100.0, "engine": 40.0}


class Slowed:
    """A layer that does its work four times for what it says."""

    def __init__(self, layer: Observed) -> None:
        self._layer = layer

    async def run(self) -> int:
        for _ in range(3):
            await self._layer.run()
        return await self._layer.run()


def test_a_dearer_layer_fails_by_its_name() -> None:
    """One that got cheaper, or dearer within the bound, does not."""
    assert not regressions(RECORDED, {"apply": 100.0 * REGRESSED, "engine": 1.0})
    [line] = regressions(RECORDED, {"apply": 100.0 * REGRESSED + 1, "engine": 40.0})
    assert line.startswith("apply: 1.51 times")


def test_a_layer_that_is_not_compared_fails() -> None:
    """Renaming one, or leaving it out, is no way around the check."""
    assert len(regressions(RECORDED, {"apply": 100.0, "motor": 40.0})) == 2


async def test_a_layer_that_was_slowed_is_seen() -> None:
    """Measured, not made up: the same layer once as it is and once with its work done four times,
    each against the reference in the same minute.
    """
    measured = await measure({"as it is": Observed(), "slowed": Slowed(Observed())})
    assert regressions({"observed": measured["as it is"]}, {"observed": measured["slowed"]})
    assert not regressions({"observed": measured["slowed"]}, {"observed": measured["as it is"]})

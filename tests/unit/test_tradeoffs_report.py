"""docs/tradeoffs.md from measurements: every level in every table and plot."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from bench.tradeoffs_measure import FAULTS, LEVELS, Availability, Cost
from bench.tradeoffs_report import Measured, availability_tables, cost_tables, write


@pytest.fixture
def measured() -> Measured:
    """Each level slower than the one before."""
    costs = {
        level: Cost(took_s=[0.001 * number] * 99 + [0.1], per_s=[100.0, 400.0, 300.0])
        for number, level in enumerate(LEVELS, 1)
    }
    under = {
        fault: {level: Availability(asked=200, answered=150, silence_s=1.25) for level in LEVELS}
        for fault in FAULTS
    }
    return Measured(costs, under)


def test_tables(measured: Measured) -> None:
    """Percentiles by nearest rank, the median slice between its extremes; a share and a silence."""
    costs, under = cost_tables(measured.cost), availability_tables(measured.under)
    assert "| ACCEPTED | 1.0 ms | 1.0 ms | 300 | 100 to 400 |" in costs
    assert "| LOCAL | 10.0 ms | 10.0 ms | 300 | 100 to 400 |" in costs
    assert "| level | leader killed | follower killed | leader cut off |" in under
    assert f"| ALL | {' | '.join(['75%, 1.25 s'] * len(FAULTS))} |" in under


def test_the_document_and_its_plots(measured: Measured, tmp_path: Path) -> None:
    """Every level is in each, and no bar or text leaves its plot."""
    write(measured, tmp_path)
    text = (tmp_path / "tradeoffs.md").read_text("utf-8")
    for plot in ("tradeoffs-cost.svg", "tradeoffs-faults.svg"):
        assert f"({plot})" in text
        drawn = ET.parse(tmp_path / plot).getroot()  # noqa: S314  # written above
        labels = [each.text for each in drawn.iter() if each.tag.endswith("text")]
        assert all(labels.count(level.name) for level in LEVELS)
        width = float(drawn.attrib["width"])
        for bar in (each.attrib for each in drawn.iter() if each.tag.endswith("rect")):
            assert float(bar["width"]) >= 0
            assert float(bar.get("x", 0)) + float(bar["width"]) <= width
    assert all(text.count(f"| {level.name} |") == 2 for level in LEVELS)

"""Directed scenarios and their transcripts.

MAILRAFT_REWRITE=1 writes testdata/ anew. Commit a change of it only when you understand its cause.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.sim.failover_scenarios import FAILOVER_SCENARIOS
from tests.sim.membership_scenarios import MEMBERSHIP_SCENARIOS
from tests.sim.scenarios import SCENARIOS, Scenario
from tests.sim.snapshot_scenarios import SNAPSHOT_SCENARIOS

from mailraft.node.consensus.mutants import Mutant

TESTDATA = Path(__file__).parent / "testdata"


@pytest.mark.parametrize(
    "scenario",
    [*SCENARIOS, *FAILOVER_SCENARIOS, *MEMBERSHIP_SCENARIOS, *SNAPSHOT_SCENARIOS],
    ids=lambda scenario: scenario.__name__,
)
def test_scenario(scenario: Scenario) -> None:
    """It keeps its promise (the scenario's docstring), and takes the course that was read."""
    scene = scenario(Mutant.NONE)
    promise = " ".join((scenario.__doc__ or "").split())
    told = "\n".join([f"# {promise}", "", *scene.transcript, ""])
    file = TESTDATA / f"{scenario.__name__}.txt"
    if os.environ.get("MAILRAFT_REWRITE"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(told, "utf-8")
    assert told == file.read_text("utf-8")

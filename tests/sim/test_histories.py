"""Random histories under faults. MAILRAFT_SIM_SEEDS of them, from MAILRAFT_SIM_SEED0."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sim.histories import run_history
from tests.sim.run import CHUNK, run_chunk
from tests.sim.shrink import shrink

from mailraft.node.consensus.mutants import Mutant

SEEDS = int(os.environ.get("MAILRAFT_SIM_SEEDS", "100"))
SEED0 = int(os.environ.get("MAILRAFT_SIM_SEED0", "0"))
# What a history must have seen to count, on average of a chunk.
ACKNOWLEDGED_MIN, POWER_CUTS_MIN, ELECTIONS_MIN = 100, 2, 3


@pytest.mark.parametrize("first", range(SEED0, SEED0 + SEEDS, CHUNK))
def test_every_history_is_safe_and_ends_well(first: int) -> None:
    """Election safety, log matching, state machine safety, durable majorities, linearizability,
    nothing acknowledged lost, and progress once faults stop; power cuts, partitions, loss,
    reordering, stopped nodes, wrong clocks and transfers all along.
    """
    counts, failure = run_chunk(first, end=min(first + CHUNK, SEED0 + SEEDS))
    if failure:
        pytest.fail(failure)
    histories = counts["histories"]
    assert counts["acknowledged"] >= ACKNOWLEDGED_MIN * histories, counts
    assert counts["power cuts"] >= POWER_CUTS_MIN * histories, counts
    assert counts["elections"] >= ELECTIONS_MIN * histories, counts


@pytest.mark.parametrize("seed", [223])
def test_histories_that_once_failed(seed: int) -> None:
    """223: a leader of a moment was asked when it is due, before it knew its learners' logs."""
    run_history(seed)


def test_same_seed_same_transcript_in_another_process() -> None:
    """A history is its seed: a failure can be run again anywhere (row 23)."""
    code = (
        "from tests.sim.histories import run_history; h = run_history(7); "
        "print('\\n'.join(h.world.log)); print([(o.index, o.completed) for o in h.operations])"
    )
    transcripts = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert len(transcripts[0].splitlines()) > 10
    assert transcripts[0] == transcripts[1]


def test_a_failure_is_made_small() -> None:
    """A failing seed is reported with the fewest faults that break the same property, and a
    transcript of its end.
    """
    failure = shrink(0, Mutant.COMMIT_BEFORE_OWN_FLUSH)
    assert failure is not None
    assert failure.error.startswith("durable majority: ")
    assert len(failure.plan.faults) <= 1
    assert "make sim SEEDS=1 SEED0=0" in str(failure)
    assert any("appends" in line for line in failure.transcript)

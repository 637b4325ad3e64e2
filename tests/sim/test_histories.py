"""Random histories under faults. MAILRAFT_SIM_SEEDS of them, from MAILRAFT_SIM_SEED0."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sim.histories import run_history
from tests.sim.world import PropertyError

SEEDS = int(os.environ.get("MAILRAFT_SIM_SEEDS", "200"))
SEED0 = int(os.environ.get("MAILRAFT_SIM_SEED0", "0"))
CHUNK = 25


@pytest.mark.parametrize("first", range(SEED0, SEED0 + SEEDS, CHUNK))
def test_every_history_is_safe_and_ends_well(first: int) -> None:
    """Election safety, log matching, state machine safety, linearizability, nothing acknowledged
    lost, and progress once faults stop; power cuts, partitions, loss and reordering all along."""
    for seed in range(first, min(first + CHUNK, SEED0 + SEEDS)):
        try:
            world = run_history(seed)
        except PropertyError as error:
            pytest.fail(f"seed {seed}: {error}\nmake sim SEEDS=1 SEED0={seed}")
        assert world.operations, f"seed {seed} asked for nothing"


def test_same_seed_same_transcript_in_another_process() -> None:
    """A history is its seed: a failure can be run again anywhere (row 23)."""
    code = (
        "from tests.sim.histories import run_history; w = run_history(7); "
        "print('\\n'.join(w.log)); print([(o.index, o.completed) for o in w.operations])"
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

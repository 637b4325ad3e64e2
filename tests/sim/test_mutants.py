"""Faults of stock pysyncobj, brought back one at a time: the suite must see each."""

from __future__ import annotations

import pytest
from tests.sim.histories import run_history
from mailraft.node.consensus.mutants import Mutant

SEEDS_MAX = 60

# Those that random histories find; the others have a scenario of their own (test_scenarios.py).
FOUND_BY_CHANCE = (
    Mutant.REVEAL_BEFORE_FLUSH,
    Mutant.TRUNCATE_ON_EVERY_APPEND,
    Mutant.COMMIT_BEFORE_OWN_FLUSH,
)


@pytest.mark.parametrize("mutant", FOUND_BY_CHANCE, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Mutant) -> None:
    """With the correction taken out, some history breaks a property (or the engine refuses)."""
    for seed in range(SEEDS_MAX):
        try:
            run_history(seed, mutant)
        except Exception as error:  # any loud failure counts, a property, the engine or the replica
            print(f"{mutant.name} caught at seed {seed}: {error}")
            return
    pytest.fail(f"{mutant.name} survived {SEEDS_MAX} histories")

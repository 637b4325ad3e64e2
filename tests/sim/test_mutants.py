"""Faults of stock pysyncobj, brought back one at a time: the suite must see each."""

from __future__ import annotations

import pytest
from tests.sim.mutation import caught_by

from mailraft.node.consensus.mutants import FAULTS, Mutant


@pytest.mark.parametrize("mutant", FAULTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Mutant) -> None:
    """With the correction taken out, a scenario or some history breaks a property."""
    assert next(caught_by(mutant), None) is not None, f"{mutant.name} survives"

"""Brings each fault of stock pysyncobj back, and shows what sees it: `make mutants`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO

from tests.sim.failover_scenarios import FAILOVER_SCENARIOS
from tests.sim.histories import run_history
from tests.sim.membership_scenarios import MEMBERSHIP_SCENARIOS
from tests.sim.scenarios import SCENARIOS
from tests.sim.snapshot_scenarios import SNAPSHOT_SCENARIOS

from mailraft.node.consensus.mutants import FAULTS, Mutant

SEEDS_MAX = 40


def caught_by(mutant: Mutant) -> Iterator[tuple[str, str]]:
    """(scenario or seed, property that failed): every scenario, then the first history."""
    for scenario in (*SCENARIOS, *FAILOVER_SCENARIOS, *MEMBERSHIP_SCENARIOS, *SNAPSHOT_SCENARIOS):
        failed = _failure(lambda scenario=scenario: scenario(mutant))  # type: ignore[misc]
        if failed:
            yield scenario.__name__, failed
    for seed in range(SEEDS_MAX):
        failed = _failure(lambda seed=seed: run_history(seed, mutant))  # type: ignore[misc]
        if failed:
            yield f"seed {seed}", failed
            return


def _failure(run: Callable[[], object]) -> str:
    """Any loud failure counts: a property, the engine's own checks, or pysyncobj's."""
    try:
        with redirect_stderr(StringIO()):
            run()
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}".removeprefix("PropertyError: ")
    return ""


def main() -> int:
    """A line per mutant; 1 when one survives."""
    survivors = 0
    for mutant in FAULTS:
        where, failed = next(caught_by(mutant), ("", ""))
        if not where:
            survivors += 1
            print(f"{mutant.name:26} row {mutant.row:2}  SURVIVES", flush=True)
            continue
        print(f"{mutant.name:26} row {mutant.row:2}  {where}: {failed[:140]}", flush=True)
    print(f"{len(FAULTS)} mutants, {survivors} survive")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())

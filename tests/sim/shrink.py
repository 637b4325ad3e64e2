"""From a failing seed to the fewest faults that still break the same property."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tests.sim.histories import Plan, draw_plan, run_history
from tests.sim.world import Network, World

from mailraft.node.consensus.mutants import Mutant

RUNS_MAX = 60
TRANSCRIPT_LINES = 60


@dataclass(frozen=True, slots=True)
class Failure:
    """What broke, in which plan, and what was going on."""

    plan: Plan
    error: str
    transcript: tuple[str, ...]

    def __str__(self) -> str:
        plan = self.plan
        return "\n".join(
            [
                f"seed {plan.seed}: {self.error}",
                f"again: make sim SEEDS=1 SEED0={plan.seed}",
                "the fewest faults found that break it:",
                f"  {plan.nodes} nodes, {plan.spares} spares, {plan.groups} groups",
                f"  {plan.clients} clients, flushes of {plan.flush_s} s",
                f"  {plan.network}, clocks off by {plan.clock_skew}",
                *map(str, plan.faults),
                "... its end:",
                *self.transcript,
            ]
        )


def failure_of(plan: Plan, mutants: Mutant = Mutant.NONE, *, trace: bool = False) -> Failure | None:
    """Run a plan; None when every promise is kept."""
    worlds: list[World] = []

    def watch(world: World) -> None:
        world.trace = trace
        worlds.append(world)

    try:
        run_history(plan.seed, mutants, plan=plan, watch=watch)
    except Exception as error:  # noqa: BLE001 - the engine and pysyncobj object too
        log = worlds[0].log if worlds else []
        said = f"{type(error).__name__}: {error}".removeprefix("PropertyError: ")
        return Failure(plan, said, tuple(log[-TRANSCRIPT_LINES:]))
    return None


def shrink(seed: int, mutants: Mutant = Mutant.NONE) -> Failure | None:
    """The failure of a seed, made small; None when it does not fail."""
    smallest = failure_of(draw_plan(seed), mutants)
    if smallest is None:
        return None
    runs = 0
    progress = True
    while progress and runs < RUNS_MAX:
        progress = False
        for plan in _smaller(smallest.plan):
            runs += 1
            found = failure_of(plan, mutants)
            if found is not None and _property(found) == _property(smallest):
                smallest, progress = found, True
                break
            if runs >= RUNS_MAX:
                break
    return failure_of(smallest.plan, mutants, trace=True) or smallest


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Plans with something taken away, the most first."""
    faults = plan.faults
    size = (len(faults) + 1) // 2
    while size:
        for start in range(0, len(faults), size):
            yield replace(plan, faults=faults[:start] + faults[start + size :])
        size //= 2
    if plan.groups > 1:
        yield replace(plan, groups=1)
    if plan.network != Network():
        yield replace(plan, network=Network())
    if plan.clock_skew:
        yield replace(plan, clock_skew=0.0)
    if plan.clients > 2:
        yield replace(plan, clients=2)


def _property(failure: Failure) -> str:
    return failure.error.split(":", 1)[0]

"""`complete` of a QUORUM read is a proof: model-checked over elections, crashes and new members."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from tests.sim.histories import run_history
from tests.sim.quorum_reads import QuorumReads, Rule
from tests.sim.watch import PropertyError

from mailraft.node.quorum_reads import Position, covers

SEEDS = max(20, int(os.environ.get("MAILRAFT_SIM_SEEDS", "100")) // 5)
SEED0 = int(os.environ.get("MAILRAFT_SIM_SEED0", "0"))
COMPLETE_MIN = 20  # of a history, on average: else it checks nothing
BROKEN_SEEDS = 60


def checked(seed: int, rule: Rule = covers) -> QuorumReads:
    """The reads of one history, all of them judged."""
    begun: list[QuorumReads] = []
    run_history(seed, watch=lambda world: begun.append(QuorumReads(world, rule)))
    begun[0].check()
    return begun[0]


@pytest.mark.parametrize("first", range(SEED0, SEED0 + SEEDS, 10))
def test_a_complete_read_shows_all_that_was_acknowledged(first: int) -> None:
    """Whoever leads, crashes, joins or leaves meanwhile."""
    complete = sum(len(checked(seed).complete) for seed in range(first, first + 10))
    assert complete >= 10 * COMPLETE_MIN


def only_applied(positions: Sequence[Position], index: int) -> bool:
    """Broken: covers what a majority has applied, not what it has in its logs."""
    return covers(
        [
            Position(each.replica, each.applied_index, 0, each.configuration_version, each.voters)
            for each in positions
        ],
        index,
    )


def any_number(positions: Sequence[Position], index: int) -> bool:
    """Broken: no majority is needed."""
    return index >= max(each.last_index for each in positions)


@pytest.mark.parametrize("rule", [only_applied, any_number])
def test_a_weaker_rule_is_caught(rule: Rule) -> None:
    """Each part of the rule is needed, and these histories see it when it is missing."""
    for seed in range(BROKEN_SEEDS):
        try:
            checked(seed, rule)
        except PropertyError:
            return
    pytest.fail(f"no history of {BROKEN_SEEDS} shows that the rule {rule.__name__} is broken")

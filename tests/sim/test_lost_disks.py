"""Row 17 of the faults, and row 12: an empty disk never votes for what it may have forgotten."""

from __future__ import annotations

import os

import pytest
from tests.sim.histories import History
from tests.sim.lost_disks import leader_after_all_are_lost, run_first_start, run_with_lost_disk
from tests.sim.watch import PropertyError

SEEDS = max(10, int(os.environ.get("MAILRAFT_SIM_SEEDS", "200")) // 10)
SEED0 = int(os.environ.get("MAILRAFT_SIM_SEED0", "0"))


def nobody_is_left_out(history: History) -> None:
    """Every replica knows again what it has to know, and votes."""
    history.world.run(2.0)
    for node in history.world.nodes.values():
        assert node.host is not None
        for group in history.world.groups:
            assert not node.disk.load(group).amnesic


@pytest.mark.parametrize("first", range(SEED0, SEED0 + SEEDS, 10))
def test_a_lost_disk_loses_nothing(first: int) -> None:
    """One voter comes back with nothing under its old name, amid other faults: nothing that was
    acknowledged is lost, no term has two leaders, and in the end it votes again.
    """
    for seed in range(first, first + 10):
        nobody_is_left_out(run_with_lost_disk(seed, damaged=seed % 2 == 0))


def test_a_cluster_whose_data_are_all_damaged_does_not_begin_anew() -> None:
    """Three nodes that set their damaged data aside are not taken for a new cluster, which would
    serve empty mailboxes: nobody is elected, as would be if they did not know of it.
    """
    for seed in range(SEED0, SEED0 + 5):
        assert leader_after_all_are_lost(seed, damaged=True) is None
    with pytest.raises(PropertyError, match="election safety"):
        leader_after_all_are_lost(SEED0, damaged=False)


def test_a_new_cluster_finds_out_that_it_is_new() -> None:
    """All begin with empty disks, in any order and amid faults, and elect a leader all the same."""
    for seed in range(SEED0, SEED0 + 5):
        nobody_is_left_out(run_first_start(seed))

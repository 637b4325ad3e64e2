"""The ring: even ranges of slots, and a walk that each key has of its own."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from mailraft.router.ring import Ring, slot_ranges
from mailraft.wire.slots import SLOTS


@pytest.mark.parametrize("shards", [1, 2, 3, 8, 64, 1_000, SLOTS])
def test_slot_ranges_cover_every_slot_once_and_evenly(shards: int) -> None:
    """Ranges follow each other without gaps; sizes differ by one at most."""
    ranges = slot_ranges(shards)
    assert len(ranges) == shards
    assert ranges[0][0] == 0
    assert ranges[-1][1] == SLOTS - 1
    assert all(a[1] + 1 == b[0] for a, b in itertools.pairwise(ranges))
    sizes = {last - first + 1 for first, last in ranges}
    assert max(sizes) - min(sizes) <= 1


def walks(weights_milli: dict[int, int], keys: int = 2_000) -> list[list[int]]:
    """The walks of many keys."""
    ring = Ring(weights_milli)
    return [list(ring.walk(f"shard/{key}")) for key in range(keys)]


def test_a_walk_passes_every_node_once() -> None:
    """Whoever walks on finds each node, however small."""
    for walk in walks({1: 1_000, 2: 1, 3: 5_000}, keys=50):
        assert sorted(walk) == [1, 2, 3]
    assert walks({}, keys=1) == [[]]


def test_a_walk_does_not_depend_on_the_order_of_the_nodes() -> None:
    """Every machine walks the same way."""
    nodes = range(1, 21)
    there, back = dict.fromkeys(nodes, 1_000), dict.fromkeys(reversed(nodes), 1_000)
    assert walks(there, keys=50) == walks(back, keys=50)


def test_weights_set_how_often_a_node_comes_first() -> None:
    """A node of weight 2,000 is preferred about twice as often."""
    first = Counter(walk[0] for walk in walks({n: 2_000 if n <= 5 else 1_000 for n in range(20)}))
    heavy, light = sum(first[n] for n in range(6)) / 6, sum(first[n] for n in range(6, 20)) / 14
    assert 1.7 <= heavy / light <= 2.3


def test_a_node_that_goes_leaves_the_rest_of_each_walk_as_it_was() -> None:
    """Consistent: only what preferred the lost node prefers another."""
    weights_milli = dict.fromkeys(range(1, 11), 1_000)
    before = walks(weights_milli, keys=200)
    del weights_milli[4]
    assert walks(weights_milli, keys=200) == [[n for n in walk if n != 4] for walk in before]

"""The ring: who holds a shard, and what moves when a node comes or goes."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from mailraft.router.ring import RingNode, moved, place, slot_ranges
from mailraft.wire.slots import SLOTS


def nodes_in_zones(count: int, zones: int = 4, first: int = 1) -> list[RingNode]:
    """Nodes of one host each, zones in turn."""
    return [
        RingNode(number, zone=f"z{number % zones}", host=f"h{number}")
        for number in range(first, first + count)
    ]


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


def test_placement_does_not_depend_on_the_order_of_its_input() -> None:
    """Every machine computes the same map."""
    nodes = nodes_in_zones(20)
    assert place(nodes, range(64), 3) == place(nodes[::-1], range(63, -1, -1), 3)


@pytest.mark.parametrize(("count", "zones"), [(3, 3), (5, 3), (12, 4), (100, 10)])
def test_replicas_share_no_zone_when_there_are_enough(count: int, zones: int) -> None:
    """As many zones as replicas or more: one replica a zone, always."""
    nodes = nodes_in_zones(count, zones)
    zone_of = {node.id: node.zone for node in nodes}
    for chosen in place(nodes, range(64), 3).values():
        assert len({zone_of[node] for node in chosen}) == 3


def test_with_two_zones_three_replicas_use_both_and_three_hosts() -> None:
    """Too few zones: spread as far as they go, hosts still apart."""
    nodes = [RingNode(i, zone=f"z{i % 2}", host=f"h{i // 2}") for i in range(1, 13)]
    by_id = {node.id: node for node in nodes}
    for chosen in place(nodes, range(64), 3).values():
        assert len({by_id[node].zone for node in chosen}) == 2
        assert len({by_id[node].host for node in chosen}) == 3


def test_nodes_on_one_host_are_used_when_nothing_else_is_there() -> None:
    """The local cluster: three nodes, one machine, one zone."""
    nodes = [RingNode(i, zone="local", host="me") for i in (1, 2, 3)]
    assert all(set(chosen) == {1, 2, 3} for chosen in place(nodes, range(4), 3).values())


def test_fewer_nodes_than_replicas_hold_one_each() -> None:
    """Two nodes cannot hold three replicas apart."""
    assert place(nodes_in_zones(2), [0], 3)[0] in ((1, 2), (2, 1))
    assert place([], [0], 3) == {0: ()}


@pytest.mark.parametrize("count", [3, 4, 10, 50])
def test_a_node_more_takes_its_share_and_nothing_else_moves(count: int) -> None:
    """Of N nodes the new one gets about 1/N of the replicas; no old node gets any."""
    shards = range(256)
    before = place(nodes_in_zones(count, zones=count), shards, 3)
    after = place(nodes_in_zones(count + 1, zones=count + 1), shards, 3, before)
    new = count + 1
    for shard in shards:
        assert set(after[shard]) - set(before[shard]) <= {new}
    share = 3 * len(shards) / new
    assert 0.9 * share <= moved(before, after) <= share


def test_nothing_moves_when_nothing_changed() -> None:
    """Placing again is the same placement."""
    nodes = nodes_in_zones(30)
    before = place(nodes, range(128), 3)
    assert moved(before, place(nodes, range(128), 3, before)) == 0


def test_only_the_replicas_of_a_lost_node_move() -> None:
    """Every other replica stays."""
    nodes = nodes_in_zones(12)
    before = place(nodes, range(128), 3)
    lost = sum(1 in chosen for chosen in before.values())
    after = place(nodes[1:], range(128), 3, before)
    assert moved(before, after) == lost


def test_skew_is_bounded_at_a_thousand_nodes() -> None:
    """4,096 shards x 3 on 1,000 nodes: 12.3 a node on average, none far from it."""
    nodes = nodes_in_zones(1_000, zones=10)
    load = Counter(node for chosen in place(nodes, range(4_096), 3).values() for node in chosen)
    assert sum(load.values()) == 3 * 4_096
    assert max(load[node.id] for node in nodes) <= 14
    assert min(load[node.id] for node in nodes) >= 10


def test_weights_set_the_share() -> None:
    """A node of weight 2,000 holds about twice as much."""
    nodes = [RingNode(i, weight_milli=2_000 if i <= 5 else 1_000) for i in range(1, 21)]
    load = Counter(node for chosen in place(nodes, range(500), 3).values() for node in chosen)
    heavy = sum(load[i] for i in range(1, 6)) / 5
    light = sum(load[i] for i in range(6, 21)) / 15
    assert 1.8 <= heavy / light <= 2.2

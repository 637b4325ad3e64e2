"""Placement: who holds a shard, who leads it, and what moves when a node comes or goes."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailraft.cluster.placement import (
    TOLERANCE,
    Move,
    Placement,
    leader_skew,
    load,
    moves,
    place,
    skew,
    target,
)
from mailraft.cluster.topology import Node, PlacementError, Topology
from mailraft.v1 import cluster_pb2

DRAINING = cluster_pb2.NODE_STATE_DRAINING
DECOMMISSIONING = cluster_pb2.NODE_STATE_DECOMMISSIONING


def nodes_in_zones(count: int, zones: int = 4) -> list[Node]:
    """Nodes of one host each, zones in turn."""
    return [Node(i, zone=f"z{i % zones}", host=f"h{i}") for i in range(1, count + 1)]


def moved(before: Placement, after: Placement) -> int:
    """Replicas on nodes that did not hold them before."""
    return sum(len(set(chosen) - set(before[shard])) for shard, chosen in after.items())


def zone_counts(chosen: tuple[int, ...], nodes: list[Node]) -> list[int]:
    """How many of the replicas each of their zones has, most first."""
    zone_of = {node.id: node.zone_key for node in nodes}
    return sorted(Counter(zone_of[node] for node in chosen).values(), reverse=True)


def assert_apart(placement: Placement, nodes: list[Node], replication: int) -> None:
    """As many replicas as asked for, on hosts of their own, over zones as evenly as they go."""
    host_of = {node.id: node.host_key for node in nodes if node.holds}
    hosts_of_zone = Counter(
        zone for zone, _ in {(node.zone_key, node.host_key) for node in nodes if node.holds}
    )
    counts: Counter[str] = Counter()
    for _ in range(replication):  # the plainest way to spread: always to the emptiest zone
        counts[
            min((z for z in hosts_of_zone if counts[z] < hosts_of_zone[z]), key=lambda z: counts[z])
        ] += 1
    even = sorted(counts.values(), reverse=True)
    for shard, chosen in placement.items():
        assert len({host_of[node] for node in chosen}) == len(chosen) == replication, shard
        assert zone_counts(chosen, nodes) == even, shard


def assert_bounded(
    placement: Placement, nodes: list[Node], replication: int, tolerance: float = TOLERANCE
) -> None:
    """No load is above its bound."""
    loads = load(placement)
    for node, share in Topology(nodes, replication).shares(len(placement)).items():
        assert loads[node] <= math.ceil((1 + tolerance) * share), f"node {node}: share {share}"


@st.composite
def clusters(draw: st.DrawFn) -> list[Node]:
    """Up to 24 nodes, some on one host, hosts in up to 6 zones, of different weights."""
    hosts = draw(st.lists(st.integers(0, 5), min_size=1, max_size=10))
    found: list[Node] = []
    for host, zone in enumerate(hosts):
        for _ in range(draw(st.integers(1, 3))):
            weight_milli = draw(st.sampled_from([500, 1_000, 1_000, 2_000, 4_000]))
            found.append(Node(len(found) + 1, f"z{zone}", f"h{host}", weight_milli))
    return found


replications = st.sampled_from([1, 2, 3, 5])
shard_counts = st.integers(1, 60)


@settings(max_examples=150, deadline=None)
@given(clusters(), shard_counts, replications)
def test_replicas_are_apart_and_loads_bounded(
    nodes: list[Node], shards: int, replication: int
) -> None:
    """Whatever the zones, hosts and weights; or it is said that there are too few hosts."""
    if len({node.host for node in nodes}) < replication:
        with pytest.raises(PlacementError, match=f"{replication} replicas need as many hosts"):
            place(nodes, range(shards), replication)
        return
    placement = place(nodes, range(shards), replication)
    assert_apart(placement, nodes, replication)
    assert_bounded(placement, nodes, replication, tolerance=0)


@settings(max_examples=150, deadline=None)
@given(clusters(), clusters(), shard_counts, replications, st.randoms(use_true_random=False))
def test_any_change_is_reached_by_safe_moves(
    before: list[Node], after: list[Node], shards: int, replication: int, rng: random.Random
) -> None:
    """From any placement to any nodes: the target is apart, bounded and soon at rest."""
    after = [replace(node, id=node.id + rng.choice([0, 0, 100])) for node in after]
    for nodes in (before, after):
        if len({node.host for node in nodes}) < replication:
            return
    current = place(before, range(shards), replication)
    wanted = target(current, after, replication)
    assert_apart(wanted, after, replication)
    assert_bounded(wanted, after, replication)
    # Evening out one node can let another be filled in the next round; then all is at rest.
    again = target(wanted, after, replication)
    assert target(again, after, replication) == again

    ordered = moves(current, wanted, after)
    assert len(ordered) == moved(current, wanted)
    held = {shard: list(chosen) for shard, chosen in current.items()}
    host_of = {node.id: node.host_key for node in after}
    for move in ordered:
        assert move.add is not None
        assert move.remove is not None
        near = shared_hosts(held[move.shard], host_of)
        held[move.shard].append(move.add)
        held[move.shard].remove(move.remove)
        assert len(set(held[move.shard])) == replication
        assert shared_hosts(held[move.shard], host_of) <= near
    assert {s: set(chosen) for s, chosen in held.items()} == {
        s: set(chosen) for s, chosen in wanted.items()
    }


def shared_hosts(chosen: list[int], host_of: dict[int, str]) -> int:
    """How many replicas have no host of their own."""
    hosts = [host_of[node] for node in chosen if node in host_of]
    return len(hosts) - len(set(hosts))


@settings(max_examples=100, deadline=None)
@given(clusters(), shard_counts, replications, st.data())
def test_between_placements_that_are_apart_all_steps_are(
    nodes: list[Node], shards: int, replication: int, data: st.DataObject
) -> None:
    """Zones are as far apart after each move as at the ends: no moment is worse than the plan."""
    if len({node.host for node in nodes}) < replication:
        return
    current = place(nodes, range(shards), replication)
    changed = [
        replace(node, weight_milli=data.draw(st.sampled_from([250, 1_000, 8_000])))
        for node in nodes
    ]
    wanted = target(current, changed, replication)
    held = dict(current)
    for move in moves(current, wanted, changed):
        rest = tuple(node for node in held[move.shard] if node != move.remove)
        held[move.shard] = (*rest, move.add or 0)
        assert_apart({move.shard: held[move.shard]}, nodes, replication)


@settings(max_examples=100, deadline=None)
@given(clusters(), shard_counts, replications)
def test_leaders_are_spread(nodes: list[Node], shards: int, replication: int) -> None:
    """Each node leads its share of the shards, to within one."""
    if len({node.host for node in nodes}) < replication:
        return
    placement = place(nodes, range(shards), replication)
    led = Counter(chosen[0] for chosen in placement.values())
    for node, share in Topology(nodes, replication).shares(shards).items():
        assert abs(led[node] - share / replication) <= 1


def test_placement_does_not_depend_on_the_order_of_its_input() -> None:
    """Every machine computes the same map."""
    nodes = nodes_in_zones(20)
    assert place(nodes, range(64), 3) == place(nodes[::-1], range(63, -1, -1), 3)


def test_a_node_more_takes_its_share_and_nothing_else_moves() -> None:
    """Of N nodes the new one gets 1/N of the replicas; no old node gets any."""
    for count in (3, 4, 10, 50):
        before = place(nodes_in_zones(count, zones=count), range(256), 3)
        after = target(before, nodes_in_zones(count + 1, zones=count + 1), 3)
        assert all(set(after[shard]) - set(before[shard]) <= {count + 1} for shard in before)
        assert moved(before, after) == math.floor(3 * 256 / (count + 1))


@pytest.mark.parametrize("gone", ["lost", "decommissioned", "weightless"])
def test_only_the_replicas_of_a_node_that_goes_move(gone: str) -> None:
    """Every other replica stays, whichever way the node goes."""
    nodes = nodes_in_zones(12)
    before = place(nodes, range(128), 3)
    left = {
        "lost": [],
        "decommissioned": [replace(nodes[0], state=DECOMMISSIONING)],
        "weightless": [replace(nodes[0], weight_milli=0)],
    }[gone]
    after = target(before, [*left, *nodes[1:]], 3)
    assert moved(before, after) == load(before)[1]
    assert load(after)[1] == 0
    assert {move.remove for move in moves(before, after, nodes)} == {1}


def test_a_node_that_takes_the_place_of_another_gets_its_replicas() -> None:
    """One goes and one comes at once: only what the first held moves."""
    nodes = nodes_in_zones(12)
    before = place(nodes, range(128), 3)
    after = target(before, [replace(nodes[0], id=99, host="new"), *nodes[1:]], 3)
    assert moved(before, after) == load(before)[1]


def test_a_draining_node_keeps_its_replicas_and_leads_nothing() -> None:
    """It is about to be restarted: only leaders change, and it gets nothing more."""
    nodes = nodes_in_zones(12)
    before = place(nodes, range(128), 3)
    draining = [replace(nodes[0], state=DRAINING), *nodes[1:-1]]
    after = target(before, draining, 3)
    assert load(after)[1] == load(before)[1]
    assert moved(before, after) == load(before)[12]
    assert all(chosen[0] != 1 for chosen in after.values())
    assert leader_skew(after, draining, 3) < 1.25


def test_a_leader_stays_unless_it_must_go() -> None:
    """A node more changes few leaders."""
    nodes = nodes_in_zones(20)
    before = place(nodes[:19], range(400), 3)
    after = target(before, nodes, 3)
    changed = sum(before[shard][0] != after[shard][0] for shard in before)
    assert changed <= 3 * 400 / 20


def test_replicas_that_share_a_host_are_parted() -> None:
    """What an operator's new labels make wrong is put right, and who gave it up is refilled."""
    nodes = nodes_in_zones(12, zones=12)
    before = place(nodes, range(60), 3)
    relabelled = [replace(nodes[0], host="h2", zone="z2"), *nodes[1:]]
    after = target(before, relabelled, 3)
    assert_apart(after, relabelled, 3)
    together = sum({1, 2} <= set(chosen) for chosen in before.values())
    assert 0 < together <= moved(before, after) <= 2 * together


def test_the_replication_factor_can_change() -> None:
    """Up: replicas are added, none removed. Down: the other way round."""
    nodes = nodes_in_zones(10, zones=5)
    three = place(nodes, range(20), 3)
    five = target(three, nodes, 5)
    assert_apart(five, nodes, 5)
    assert all(set(three[shard]) <= set(five[shard]) for shard in three)
    assert all(move.remove is None for move in moves(three, five, nodes))
    back = target(five, nodes, 3)
    assert_apart(back, nodes, 3)
    assert all(move.add is None for move in moves(five, back, nodes))


def test_shards_that_lost_most_replicas_move_first() -> None:
    """One more failure would cost these their quorum."""
    nodes = nodes_in_zones(6, zones=6)
    before = {0: (1, 2, 3), 1: (7, 2, 3), 2: (7, 8, 3)}
    ordered = moves(before, {0: (4, 2, 3), 1: (4, 2, 3), 2: (4, 5, 3)}, nodes)
    assert ordered == (Move(2, 4, 7), Move(2, 5, 8), Move(1, 4, 7), Move(0, 4, 1))


def test_nodes_without_labels_are_hosts_and_zones_of_their_own() -> None:
    """A local cluster of three nodes keeps three replicas."""
    placement = place([Node(1), Node(2), Node(3)], range(4), 3)
    assert all(set(chosen) == {1, 2, 3} for chosen in placement.values())
    assert skew(placement, [Node(1), Node(2), Node(3)], 3) == 1


def test_impossible_requests_are_refused() -> None:
    """The message says what is missing."""
    on_one_host = [Node(i, host="h") for i in (1, 2, 3)]
    with pytest.raises(PlacementError, match="3 replicas need as many hosts: 1 may hold"):
        place(on_one_host, range(4), 3)
    with pytest.raises(PlacementError, match="at least 1 replica, not 0"):
        place([Node(1)], range(4), 0)
    with pytest.raises(PlacementError, match="host h is in more than one zone: see node 2"):
        place([Node(1, "a", "h"), Node(2, "b", "h")], range(4), 1)


def test_a_host_with_many_nodes_gets_one_replica_of_a_shard_at_most() -> None:
    """Its share ends where the rule does, and the skew is told against what is possible."""
    nodes = [Node(i, host="big") for i in range(1, 7)] + [Node(7), Node(8), Node(9)]
    placement = place(nodes, range(60), 3)
    loads = load(placement)
    assert all(loads[node] == 10 for node in range(1, 7))
    assert [loads[7], loads[8], loads[9]] == [40, 40, 40]
    assert skew(placement, nodes, 3) == 1

"""Consistent hashing, pure: slots -> shards in even ranges, shards -> nodes by a ring.

Each node has points on a ring in proportion to its weight. A shard's replicas go to the first nodes
after the shard's own point that are allowed: not above their share of the load ("Consistent Hashing
with Bounded Loads", Mirrokni et al. 2017), and in no zone and on no host that has one already, as
far as there are enough. Given an earlier placement, what can stay stays: a new node takes its share
and nothing else moves. The same input gives the same placement on every machine.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import xxhash

from mailraft.wire.slots import SLOTS

SHARDS_MAX = SLOTS
POINTS_PER_SHARE = 64  # virtual nodes of a node of weight 1,000
WEIGHT_SHARE_MILLI = 1_000
# No node gets more than this times its share, rounded up, while the zones and hosts allow it.
LOAD_BOUND = 1.1

Placement = Mapping[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class RingNode:
    """A node that may hold replicas. An empty zone or host is one of its own."""

    id: int
    zone: str = ""
    host: str = ""
    weight_milli: int = WEIGHT_SHARE_MILLI

    @property
    def zone_key(self) -> str:
        return self.zone or f"\0{self.id}"

    @property
    def host_key(self) -> str:
        return self.host or f"\0{self.id}"


def slot_ranges(shards: int) -> list[tuple[int, int]]:
    """First and last slot of each shard, in order: sizes differ by one at most."""
    if not 1 <= shards <= SHARDS_MAX:
        raise ValueError(f"1 to {SHARDS_MAX} shards, not {shards}")
    starts = [SLOTS * shard // shards for shard in range(shards + 1)]
    return [(first, after - 1) for first, after in itertools.pairwise(starts)]


def place(
    nodes: Sequence[RingNode],
    shards: Sequence[int],
    replicas: int,
    previous: Placement | None = None,
) -> dict[int, tuple[int, ...]]:
    """Nodes of each shard's replicas; fewer than asked only when there are fewer nodes.

    previous: replicas on nodes that are still there stay where they are, except what a node that is
    new takes as its share.
    """
    placing = _Placing(nodes, len(shards), replicas)
    for shard in sorted(shards):
        for node in (previous or {}).get(shard, ())[:replicas]:
            if node in placing.nodes:
                placing.put(shard, node)
    for shard in sorted(shards):
        placing.fill(shard)
    known = {node for chosen in (previous or {}).values() for node in chosen}
    for node in sorted(placing.nodes.keys() - known):
        placing.give_share(node)
    return {shard: tuple(placing.placed.get(shard, ())) for shard in shards}


def moved(before: Placement, after: Placement) -> int:
    """How many replicas of `after` are on nodes that did not hold them before."""
    return sum(len(set(chosen) - set(before.get(shard, ()))) for shard, chosen in after.items())


class _Placing:
    def __init__(self, nodes: Sequence[RingNode], shards: int, replicas: int) -> None:
        self.nodes = {node.id: node for node in nodes if node.weight_milli > 0}
        self.replicas = min(replicas, len(self.nodes))
        zones = {node.zone_key for node in self.nodes.values()}
        hosts = {node.host_key for node in self.nodes.values()}
        self.per_zone = math.ceil(self.replicas / len(zones)) if zones else 0
        self.per_host = math.ceil(self.replicas / len(hosts)) if hosts else 0
        total_weight = sum(node.weight_milli for node in self.nodes.values())
        self.share = {
            node.id: shards * self.replicas * node.weight_milli / total_weight
            for node in self.nodes.values()
        }
        self.cap = {node: math.ceil(share * LOAD_BOUND) for node, share in self.share.items()}
        self.load: Counter[int] = Counter()
        self.placed: dict[int, list[int]] = {}
        points = sorted(
            (_hash(f"node/{node.id}/{point}"), node.id)
            for node in self.nodes.values()
            for point in range(_points(node))
        )
        self.points = [point for point, _ in points]
        self.owners = [owner for _, owner in points]

    def put(self, shard: int, node: int) -> None:
        self.placed.setdefault(shard, []).append(node)
        self.load[node] += 1

    def fill(self, shard: int) -> None:
        """Choose nodes for the replicas that a shard lacks."""
        while len(self.placed.get(shard, ())) < self.replicas:
            node = self._next_on_ring(shard)
            self.put(shard, self._least_loaded(shard) if node is None else node)

    def give_share(self, node: int) -> None:
        """Move replicas to a node, from those with most, until it has its share."""
        wanted = math.floor(self.share[node]) - self.load[node]
        if wanted <= 0:
            return
        for shard in sorted(self.placed, key=lambda shard: _hash(f"share/{node}/{shard}")):
            giver = self._giver(shard, node)
            if giver is not None:
                chosen = self.placed[shard]
                chosen[chosen.index(giver)] = node
                self.load[giver] -= 1
                self.load[node] += 1
                wanted -= 1
                if not wanted:
                    return

    def _giver(self, shard: int, node: int) -> int | None:
        chosen = self.placed[shard]
        if node in chosen:
            return None
        givers = [
            giver
            for giver in chosen
            # Taking must not leave the giver below the taker.
            if self.load[giver] / self.share[giver] > (self.load[node] + 1) / self.share[node]
            and self.load[giver] > math.floor(self.share[giver])
            and self._apart(node, [other for other in chosen if other != giver])
        ]
        return max(
            givers, key=lambda giver: (self.load[giver] / self.share[giver], giver), default=None
        )

    def _next_on_ring(self, shard: int) -> int | None:
        chosen = self.placed.get(shard, [])
        start = bisect.bisect(self.points, _hash(f"shard/{shard}"))
        seen = set(chosen)
        for step in range(len(self.owners)):
            node = self.owners[(start + step) % len(self.owners)]
            if node not in seen:
                seen.add(node)
                if self.load[node] < self.cap[node] and self._apart(node, chosen):
                    return node
        return None

    def _least_loaded(self, shard: int) -> int:
        """Where the ring has no room: zones and hosts apart count for more than the load."""
        chosen = self.placed.get(shard, [])
        free = [node for node in self.nodes if node not in chosen]
        apart = [node for node in free if self._apart(node, chosen)]
        return min(
            apart or free,
            key=lambda node: (self.load[node] / self.share[node], _hash(f"spill/{shard}/{node}")),
        )

    def _apart(self, node: int, others: Sequence[int]) -> bool:
        zone, host = self.nodes[node].zone_key, self.nodes[node].host_key
        zones = sum(self.nodes[other].zone_key == zone for other in others)
        hosts = sum(self.nodes[other].host_key == host for other in others)
        return zones < self.per_zone and hosts < self.per_host


def _points(node: RingNode) -> int:
    return max(1, POINTS_PER_SHARE * node.weight_milli // WEIGHT_SHARE_MILLI)


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())

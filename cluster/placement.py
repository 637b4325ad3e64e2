"""Where replicas go, pure: placed on the ring at first, then moved as little as a change needs.

A shard's replicas go to the first nodes on the ring after the shard's own point that are apart
(cluster.topology) and have room ("Consistent Hashing with Bounded Loads", Mirrokni et al. 2017).
From then on what is placed stays: see docs/decisions/0008. The same input gives the same placement
on every machine. docs/placement.md has the figures.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mailraft.cluster.leaders import spread_leaders
from mailraft.cluster.topology import Node, Topology
from mailraft.router.ring import Ring

# The nodes of each shard's replicas. The first is the preferred leader.
Placement = Mapping[int, tuple[int, ...]]

# A node whose load is within this part of its share is left alone; one outside is brought to it.
TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Move:
    """One change of a shard's replicas: `add` catches up and votes before `remove` goes.

    None: nothing to add, or to remove, since the replication factor changes.
    """

    shard: int
    add: int | None
    remove: int | None


def place(nodes: Iterable[Node], shards: Iterable[int], replication: int) -> Placement:
    """The first placement, as even as can be.

    Raises PlacementError if the nodes cannot hold the replicas apart.
    """
    return _arranged(dict.fromkeys(shards, ()), nodes, replication, tolerance=0.0)


def target(current: Placement, nodes: Iterable[Node], replication: int) -> Placement:
    """What the current placement should become, with as few moves as can be.

    A replica moves only if its node is gone or going, if it is not apart from the others, or to
    bring a node whose load is outside the tolerance to its share. Raises PlacementError if the
    nodes cannot hold the replicas apart.
    """
    return _arranged(current, nodes, replication, TOLERANCE)


def _arranged(
    current: Placement, nodes: Iterable[Node], replication: int, tolerance: float
) -> Placement:
    topology = Topology(nodes, replication)
    if not current:
        return {}
    placing = _Placing(topology, len(current), tolerance)
    for shard, chosen in sorted(current.items()):
        placing.keep(shard, chosen)
    for shard in placing.chosen:
        placing.fill(shard)
    placing.balance()
    return spread_leaders(placing.chosen, placing.nodes.values(), placing.shares, current)


def moves(current: Placement, wanted: Placement, nodes: Iterable[Node]) -> tuple[Move, ...]:
    """The way from one placement to another, a replica at a time.

    Each move adds before it removes, so that no shard has fewer replicas on the way than before.
    After each the replicas are as far apart as before it or farther. Shards with most replicas on
    nodes that are not there come first.
    """
    by_id = {node.id: node for node in nodes}
    urgent = sorted(wanted, key=lambda shard: (-_missing(current.get(shard, ()), by_id), shard))
    return tuple(
        move
        for shard in urgent
        for move in _steps(shard, current.get(shard, ()), wanted[shard], by_id)
    )


def load(placement: Placement) -> Counter[int]:
    """How many replicas each node holds."""
    return Counter(node for chosen in placement.values() for node in chosen)


def skew(placement: Placement, nodes: Iterable[Node], replication: int) -> float:
    """The highest load of a node over its share: 1.0 is even. Nodes on their way out do not count.

    The share is by weight as far as hosts and zones allow (Topology.shares).
    """
    shares = Topology(nodes, replication).shares(len(placement))
    loads = load(placement)
    return max((loads[node] / share for node, share in shares.items() if share), default=1.0)


def leader_skew(placement: Placement, nodes: Iterable[Node], replication: int) -> float:
    """As skew, of preferred leaders."""
    leaders = {shard: chosen[:1] for shard, chosen in placement.items()}
    return skew(leaders, nodes, replication) * replication


class _Placing:
    """A placement while it is being made."""

    def __init__(self, topology: Topology, shards: int, tolerance: float) -> None:
        self.nodes = topology.nodes
        self.chosen: dict[int, list[int]] = {}
        self.shares = topology.shares(shards)
        self._topology = topology
        # In the order they came, as a set has none that lasts.
        self._held: dict[int, dict[int, None]] = {node: {} for node in self.nodes}
        self._takers = [node.id for node in self.nodes.values() if node.takes]
        # Whole replicas: even is from `_floor` to `_ceiling`, bearable from `_least` to `_most`.
        self._floor = {node: math.floor(share) for node, share in self.shares.items()}
        self._ceiling = {node: math.ceil(share) for node, share in self.shares.items()}
        slack = {node: math.floor(tolerance * share) for node, share in self.shares.items()}
        self._least = {node: load - slack[node] for node, load in self._floor.items()}
        self._most = {node: load + slack[node] for node, load in self._ceiling.items()}
        # Takers below each limit, for who chooses to try in this order.
        limits = (self._floor, self._ceiling, self._most)
        self._room = [(limit, {node for node in self._takers if limit[node]}) for limit in limits]
        self._ring = Ring({node.id: node.weight_milli for node in self.nodes.values()})

    def keep(self, shard: int, current: Sequence[int]) -> None:
        """Leave replicas where they are, except what may not be there."""
        self.chosen[shard] = []
        for node in current:
            allowed = node in self.nodes and self._topology.apart(node, self.chosen[shard])
            if allowed and self._lacks(shard):
                self._put(shard, node)

    def fill(self, shard: int) -> None:
        """Choose nodes for the replicas that a shard lacks."""
        while self._lacks(shard):
            node = self._next_on_ring(shard)
            self._put(shard, self._make_room(shard) if node is None else node)

    def balance(self) -> None:
        """Bring nodes whose load is not bearable to their share."""
        for node in sorted(self._takers, key=self._fullness):
            if self._load(node) < self._least[node]:
                self._pull(node)
        for node in self._takers:
            if self._load(node) > self._most[node]:
                while self._load(node) > self._ceiling[node] and self._shift([node], self._ceiling):
                    pass

    def _next_on_ring(self, shard: int) -> int | None:
        for _, room in self._room:
            if room:
                for node in self._ring.walk(f"shard/{shard}"):
                    if node in room and self._topology.apart(node, self.chosen[shard]):
                        return node
        return None

    def _make_room(self, shard: int) -> int:
        """A node for a replica when all that may hold it are full."""
        allowed = [node for node in self.nodes if self._topology.apart(node, self.chosen[shard])]
        takers = [node for node in allowed if self.nodes[node].takes]
        emptied = self._shift(takers, self._most)
        if emptied is not None:
            return emptied
        # Replicas apart count for more than the load, and than a restart that is planned.
        return min(takers or allowed, key=self._fullness)

    def _pull(self, taker: int) -> None:
        """Fill a node up to its share from the fullest."""
        fullest = [(-self._fullness(node), node) for node in self._takers if node != taker]
        heapq.heapify(fullest)
        while fullest and self._load(taker) < self._floor[taker]:
            giver = heapq.heappop(fullest)[1]
            if self._load(giver) > self._floor[giver]:
                for shard in self._held[giver]:
                    if self._may_replace(shard, giver, taker):
                        self._replace(shard, giver, taker)
                        heapq.heappush(fullest, (-self._fullness(giver), giver))
                        break

    def _shift(self, starts: Sequence[int], limit: Mapping[int, int]) -> int | None:
        """Take a replica from one of `starts`, by moves in a row that end below the limit.

        A node without room may pass another replica on: this is an augmenting path.
        """
        came: dict[int, tuple[int, int] | None] = dict.fromkeys(starts)
        unseen = sorted((node for node in self._takers if node not in came), key=self._fullness)
        queue = deque(starts)
        while queue and unseen:
            giver = queue.popleft()
            for shard in list(self._held[giver]):
                for node in [each for each in unseen if self._may_replace(shard, giver, each)]:
                    came[node] = (shard, giver)
                    if self._load(node) < limit[node]:
                        start = self._walk_back(node, came)
                        if start is not None:
                            return start
                    unseen.remove(node)
                    queue.append(node)
        return None

    def _walk_back(self, node: int, came: Mapping[int, tuple[int, int] | None]) -> int | None:
        """Carry out the moves that led to `node`, last first; none of them if one breaks a rule.

        That happens only when a shard is moved twice on the way.
        """
        done: list[tuple[int, int, int]] = []
        while step := came[node]:
            shard, giver = step
            if not self._may_replace(shard, giver, node):
                for moved, before, after in reversed(done):
                    self._replace(moved, after, before)
                return None
            self._replace(shard, giver, node)
            done.append((shard, giver, node))
            node = giver
        return node

    def _may_replace(self, shard: int, giver: int, taker: int) -> bool:
        chosen = self.chosen[shard]
        return taker not in chosen and self._topology.apart(
            taker, [node for node in chosen if node != giver]
        )

    def _replace(self, shard: int, giver: int, taker: int) -> None:
        chosen = self.chosen[shard]
        chosen[chosen.index(giver)] = taker
        del self._held[giver][shard]
        self._held[taker][shard] = None
        self._recount(giver)
        self._recount(taker)

    def _put(self, shard: int, node: int) -> None:
        self.chosen[shard].append(node)
        self._held[node][shard] = None
        self._recount(node)

    def _recount(self, node: int) -> None:
        for limit, room in self._room:
            if self._load(node) < limit[node] and self.nodes[node].takes:
                room.add(node)
            else:
                room.discard(node)

    def _lacks(self, shard: int) -> bool:
        return len(self.chosen[shard]) < self._topology.replication

    def _load(self, node: int) -> int:
        return len(self._held[node])

    def _fullness(self, node: int) -> float:
        return self._load(node) / self.shares[node]


def _missing(chosen: Sequence[int], nodes: Mapping[int, Node]) -> int:
    return sum(node not in nodes for node in chosen)


def _steps(
    shard: int, before: Sequence[int], after: Sequence[int], nodes: Mapping[int, Node]
) -> Iterator[Move]:
    held = list(before)
    adds = [node for node in after if node not in before]
    removes = [node for node in before if node not in after]
    while adds and removes:
        # Of two sets of replicas that are apart one turns into the other so that each one on the
        # way is apart (exchange of bases of a matroid): the best pair is never a bad one.
        add, remove = min(
            itertools.product(adds, removes),
            key=lambda pair: (
                _closeness([pair[0], *(node for node in held if node != pair[1])], nodes),
                pair[1] in nodes,
            ),
        )
        held[held.index(remove)] = add
        adds.remove(add)
        removes.remove(remove)
        yield Move(shard, add, remove)
    for add in adds:
        yield Move(shard, add, None)
    for remove in removes:
        yield Move(shard, None, remove)


def _closeness(chosen: Collection[int], nodes: Mapping[int, Node]) -> tuple[int, int]:
    """How many pairs share a host, and a zone: never more than a topology's rules make needed."""
    pairs = itertools.combinations([nodes[node] for node in chosen if node in nodes], 2)
    near = [(a.host_key == b.host_key, a.zone_key == b.zone_key) for a, b in pairs]
    return sum(host for host, _ in near), sum(zone for _, zone in near)

"""Nodes on hosts in zones, pure: which may hold replicas of one shard together, and what is fair.

Two replicas of a shard never share a host. They spread over zones as evenly as the zones have
hosts: with zones enough, one a zone. So the loss of a zone takes as few replicas as can be.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mailraft.router.ring import WEIGHT_SHARE_MILLI
from mailraft.v1 import cluster_pb2


class PlacementError(ValueError):
    """These nodes cannot hold that many replicas apart; the message says why."""


@dataclass(frozen=True, slots=True)
class Node:
    """What placement knows of a node. An empty host is one of its own, an empty zone its host's."""

    id: int
    zone: str = ""
    host: str = ""
    weight_milli: int = WEIGHT_SHARE_MILLI
    state: cluster_pb2.NodeState.ValueType = cluster_pb2.NODE_STATE_ACTIVE

    @classmethod
    def of(cls, node: cluster_pb2.Node) -> Node:
        """A node of the cluster map. One that says no state is active, as in 0.1.0."""
        state = node.state or cluster_pb2.NODE_STATE_ACTIVE
        return cls(node.id, node.zone, node.host, node.weight_milli, state)

    @property
    def host_key(self) -> str:
        return self.host or f"\0{self.id}"

    @property
    def zone_key(self) -> str:
        return self.zone or f"\0{self.host_key}"

    @property
    def holds(self) -> bool:
        """May keep the replicas it has. A draining node does: it is about to be restarted."""
        return self.weight_milli > 0 and self.state in _HOLDING

    @property
    def takes(self) -> bool:
        """May get replicas and leaders."""
        return self.weight_milli > 0 and self.state == cluster_pb2.NODE_STATE_ACTIVE


_HOLDING = (
    cluster_pb2.NODE_STATE_ACTIVE,
    cluster_pb2.NODE_STATE_DRAINING,
    cluster_pb2.NODE_STATE_DRAINED,
)


class Topology:
    """The nodes that may hold replicas, and the rules for `replication` of them.

    Raises PlacementError if the nodes cannot hold so many apart.
    """

    def __init__(self, nodes: Iterable[Node], replication: int) -> None:
        self.nodes = {
            node.id: node for node in sorted(nodes, key=lambda node: node.id) if node.holds
        }
        self.replication = replication
        self._zone_of = {node.id: node.zone_key for node in self.nodes.values()}
        self._host_of = {node.id: node.host_key for node in self.nodes.values()}
        self._hosts = _hosts_by_zone(self.nodes.values())
        hosts = sum(map(len, self._hosts.values()))
        if replication < 1:
            raise PlacementError(f"at least 1 replica, not {replication}")
        if hosts < replication:
            raise PlacementError(
                f"{replication} replicas need as many hosts: {hosts} may hold replicas"
            )
        # Every zone gets this many replicas of each shard, as far as it has hosts...
        self._level = max(
            level for level in range(replication + 1) if self._placed_at(level) <= replication
        )
        # ...and this many zones one more.
        self._extra = replication - self._placed_at(self._level)

    def _placed_at(self, level: int) -> int:
        return sum(min(len(hosts), level) for hosts in self._hosts.values())

    def apart(self, node: int, others: Sequence[int]) -> bool:
        """True if a node may hold a replica beside those of `others`, which are apart already.

        Any replicas that are apart can be completed to `replication` that are (the allowed sets
        are a matroid), so greedy choices never end in a corner.
        """
        host, zone = self._host_of[node], self._zone_of[node]
        in_zone = 0
        for other in others:
            if self._zone_of[other] == zone:
                if self._host_of[other] == host:
                    return False
                in_zone += 1
        if not self._level:
            return not in_zone
        if in_zone != self._level:
            return in_zone < self._level
        counts = Counter(self._zone_of[other] for other in others)
        return sum(count > self._level for count in counts.values()) < self._extra

    def shares(self, shards: int) -> dict[int, float]:
        """How many replicas each node should hold: by weight, as far as the rules allow.

        A host holds at most one of each shard; a zone what its level says, whatever it weighs.
        """
        zones = list(self._hosts.values())
        most = self._level + (1 if self._extra else 0)
        in_zones = _split(
            shards * self.replication,
            [_weight(itertools.chain(*hosts.values())) for hosts in zones],
            [shards * min(len(hosts), self._level) for hosts in zones],
            [shards * min(len(hosts), most) for hosts in zones],
        )
        found = {}
        for in_zone, hosts in zip(in_zones, zones, strict=True):
            weights = [_weight(nodes) for nodes in hosts.values()]
            on_hosts = _split(in_zone, weights, [0] * len(hosts), [shards] * len(hosts))
            for on_host, weight, nodes in zip(on_hosts, weights, hosts.values(), strict=True):
                for node in nodes:
                    # Rounded, so that 49 is never 49.000000001, whose ceiling is 50.
                    found[node.id] = round(on_host * node.weight_milli / weight, 9)
        return found


def _hosts_by_zone(nodes: Iterable[Node]) -> dict[str, dict[str, list[Node]]]:
    zones: dict[str, dict[str, list[Node]]] = {}
    zone_of: dict[str, str] = {}
    for node in nodes:
        if zone_of.setdefault(node.host_key, node.zone_key) != node.zone_key:
            raise PlacementError(f"host {node.host} is in more than one zone: see node {node.id}")
        zones.setdefault(node.zone_key, {}).setdefault(node.host_key, []).append(node)
    return zones


def _weight(nodes: Iterable[Node]) -> int:
    return sum(node.weight_milli for node in nodes)


def _split(
    total: float, weights: Sequence[int], floors: Sequence[int], ceilings: Sequence[int]
) -> list[float]:
    """Split by weight, no part below its floor or above its ceiling.

    Parts that break their limit are set to it and the rest is split anew: of floors and ceilings
    first those that are off by more in sum (as CSS resolves flexible lengths, flexbox 9.7).
    """
    parts: dict[int, float] = {}
    while free := [part for part in range(len(weights)) if part not in parts]:
        rate = (total - sum(parts.values())) / sum(weights[part] for part in free)
        wanted = {part: rate * weights[part] for part in free}
        limited = {part: min(max(wanted[part], floors[part]), ceilings[part]) for part in free}
        off = sum(limited.values()) - sum(wanted.values())
        parts |= {
            part: size
            for part, size in limited.items()
            if abs(off) < _EXACT or (size - wanted[part]) * off > 0
        }
    return [parts[part] for part in range(len(weights))]


_EXACT = 1e-6

"""Who leads, pure: preferred leaders in proportion to what each node should hold."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from mailraft.cluster.topology import Node

Step = tuple[int, int]  # a shard, and the node at the other end


def spread_leaders(
    placement: Mapping[int, Sequence[int]],
    nodes: Iterable[Node],
    shares: Mapping[int, float],
    current: Mapping[int, Sequence[int]],
) -> dict[int, tuple[int, ...]]:
    """The same replicas, each shard's preferred leader first.

    shares: how many replicas each node should hold. The leaders of `current` stay, except on nodes
    that may not lead, and except what brings each node to its share of leaders, rounded up or down.
    """
    leading = {node.id for node in nodes if node.takes}
    spreading = _Spreading(placement, {node: shares[node] for node in sorted(leading)})
    for shard in placement:
        spreading.choose(shard, current.get(shard, ()))
    spreading.even()
    return {
        shard: (leader, *(node for node in placement[shard] if node != leader))
        for shard, leader in spreading.leader.items()
    }


class _Spreading:
    """Leaders while they are being chosen."""

    def __init__(self, placement: Mapping[int, Sequence[int]], shares: Mapping[int, float]) -> None:
        self.leader: dict[int, int] = {}
        self._placement = placement
        per_share = len(placement) / sum(shares.values()) if shares else 0.0
        self._fair = {node: round(share * per_share, 9) for node, share in shares.items()}
        self._most = {node: math.ceil(fair) for node, fair in self._fair.items()}
        self._least = {node: math.floor(fair) for node, fair in self._fair.items()}
        # In the order they came, as a set has none that lasts.
        self._led: dict[int, dict[int, None]] = {node: {} for node in shares}
        self._held: dict[int, list[int]] = {node: [] for node in shares}
        for shard, chosen in placement.items():
            for node in chosen:
                if node in self._held:
                    self._held[node].append(shard)

    def choose(self, shard: int, current: Sequence[int]) -> None:
        """The leader it has, or else of those that may lead the one that leads least."""
        chosen = self._placement[shard]
        able = [node for node in chosen if node in self._led]
        if not able:
            self.leader[shard] = chosen[0]  # a planned restart: better such a leader than none
            return
        stays = current[:1] and current[0] in able
        leader = (
            current[0]
            if stays
            else min(able, key=lambda node: self._count(node) / self._fair[node])
        )
        self.leader[shard] = leader
        self._led[leader][shard] = None

    def even(self) -> None:
        """Hand leaders on, along paths of replicas, from who has too many to who has too few."""
        for node in self._led:
            while self._count(node) > self._most[node]:
                path = _path(node, self._onward, lambda end: self._count(end) < self._most[end])
                if not path:
                    break
                for shard, giver, taker in path:
                    self._hand_on(shard, giver, taker)
        for node in self._led:
            while self._count(node) < self._least[node]:
                path = _path(node, self._inward, lambda end: self._count(end) > self._least[end])
                if not path:
                    break
                for shard, taker, giver in path:
                    self._hand_on(shard, giver, taker)

    def _onward(self, giver: int) -> Iterator[Step]:
        for shard in self._led[giver]:
            for node in self._placement[shard]:
                if node in self._led:
                    yield shard, node

    def _inward(self, taker: int) -> Iterator[Step]:
        for shard in self._held[taker]:
            if self.leader[shard] in self._led:
                yield shard, self.leader[shard]

    def _hand_on(self, shard: int, giver: int, taker: int) -> None:
        self.leader[shard] = taker
        del self._led[giver][shard]
        self._led[taker][shard] = None

    def _count(self, node: int) -> int:
        return len(self._led[node])


def _path(
    start: int, steps: Callable[[int], Iterator[Step]], is_end: Callable[[int], bool]
) -> list[tuple[int, int, int]]:
    """The shortest path to an end, as (shard, from, to); empty if there is none."""
    came: dict[int, tuple[int, int, int]] = {}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        for shard, other in steps(node):
            if other != start and other not in came:
                came[other] = (shard, node, other)
                if is_end(other):
                    path = [came[other]]
                    while path[-1][1] != start:
                        path.append(came[path[-1][1]])
                    return path
                queue.append(other)
    return []

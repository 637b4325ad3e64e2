"""Consistent hashing, pure: slots -> shards in even ranges, and a ring of nodes to choose from.

Each node has points on the ring (virtual nodes) in proportion to its weight. Whoever chooses nodes
for a key walks the ring from the key's own point and takes the first that suit. The same input
gives the same walk on every machine.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping

import xxhash

from mailraft.wire.slots import SLOTS

SHARDS_MAX = SLOTS
POINTS_PER_SHARE = 32  # virtual nodes of a node of weight 1,000
WEIGHT_SHARE_MILLI = 1_000


def slot_ranges(shards: int) -> list[tuple[int, int]]:
    """First and last slot of each shard, in order: sizes differ by one at most."""
    if not 1 <= shards <= SHARDS_MAX:
        raise ValueError(f"1 to {SHARDS_MAX} shards, not {shards}")
    starts = [SLOTS * shard // shards for shard in range(shards + 1)]
    return [(first, after - 1) for first, after in itertools.pairwise(starts)]


class Ring:
    """Nodes on a circle of hashes; `weights_milli` has each node's weight, in thousandths."""

    def __init__(self, weights_milli: Mapping[int, int]) -> None:
        points = sorted(
            (_hash(f"node/{node}/{point}"), node)
            for node, weight_milli in weights_milli.items()
            for point in range(max(1, POINTS_PER_SHARE * weight_milli // WEIGHT_SHARE_MILLI))
        )
        self._points = [point for point, _ in points]
        self._owners = [owner for _, owner in points]

    def walk(self, key: str) -> Iterator[int]:
        """Every node once, in the order in which the key prefers them."""
        start = bisect.bisect(self._points, _hash(key))
        seen = set()
        for stretch in (range(start, len(self._owners)), range(start)):
            for at in stretch:
                node = self._owners[at]
                if node not in seen:
                    seen.add(node)
                    yield node


def _hash(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())

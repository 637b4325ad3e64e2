"""Which groups are due, without asking each of them."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from mailraft.node.interfaces import GroupId


class Timers:
    """One time per group, the earliest that was set since it was last taken."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, GroupId]] = []
        self._due_s: dict[GroupId, float] = {}

    def set(self, group: GroupId, due_s: float) -> None:
        """Due at due_s, or before that if it was so already."""
        if due_s < self._due_s.get(group, float("inf")):
            self._due_s[group] = due_s
            heapq.heappush(self._heap, (due_s, group))

    def take(self, now: float) -> Iterator[GroupId]:
        """Those that are due, each once; they have no time then."""
        while self._heap and self._heap[0][0] <= now:
            due_s, group = heapq.heappop(self._heap)
            if self._due_s.get(group) == due_s:
                del self._due_s[group]
                yield group

    def drop(self, group: GroupId) -> None:
        self._due_s.pop(group, None)

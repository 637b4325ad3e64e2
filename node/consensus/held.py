"""Envelopes that wait for the disk: none leaves before what it rests on is durable (row 1)."""

from __future__ import annotations

import heapq

from mailraft.internal.v1 import raft_pb2


class Held:
    """Envelopes of all groups, each with the write sequence that has to be on disk first."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, raft_pb2.Envelope]] = []  # (sequence, order, _)
        self._order = 0

    def put(self, envelope: raft_pb2.Envelope, until: int) -> None:
        self._order += 1
        heapq.heappush(self._heap, (until, self._order, envelope))

    def drop(self, group: int) -> None:
        """Forget those of a replica that is no more: what it would acknowledge may be gone."""
        self._heap = [each for each in self._heap if each[2].group != group]
        heapq.heapify(self._heap)

    def take(self, durable: int) -> list[raft_pb2.Envelope]:
        """Those whose time has come, in the order in which they were put."""
        due: list[tuple[int, raft_pb2.Envelope]] = []
        while self._heap and self._heap[0][0] <= durable:
            _, order, envelope = heapq.heappop(self._heap)
            due.append((order, envelope))
        due.sort(key=lambda item: item[0])
        return [envelope for _, envelope in due]

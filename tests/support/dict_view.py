"""A View that is a dict, for state machines without an engine."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from mailraft.node.interfaces import Delete, DeleteBody, DeleteRange, Effect, Put


class DictView:
    """Implements View. apply() carries out effects as the engine does."""

    def __init__(self, rows: dict[bytes, bytes] | None = None) -> None:
        self.rows = dict(rows or {})
        self._sorted: list[bytes] | None = None

    def get(self, key: bytes) -> bytes | None:
        return self.rows.get(key)

    def get_many(self, wanted: Sequence[bytes]) -> list[bytes | None]:
        return [self.rows.get(key) for key in wanted]

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        if self._sorted is None:
            self._sorted = sorted(self.rows)
        first, last = bisect_left(self._sorted, start), bisect_left(self._sorted, end)
        found = self._sorted[first:last]
        pinned = [(key, self.rows[key]) for key in (reversed(found) if reverse else found)]
        return iter(pinned)

    def apply(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Put(key, value):
                    self.rows[key] = value
                case Delete(key):
                    self.rows.pop(key, None)
                case DeleteRange(start, end):
                    for key in [key for key in self.rows if start <= key < end]:
                        del self.rows[key]
                case DeleteBody():
                    pass  # bodies lie elsewhere
        self._sorted = None

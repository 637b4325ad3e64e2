"""A shard's state as the state machine sees it: keys without (shard, generation)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mailraft.node.engine import keys
from mailraft.node.engine.backend import Backend


class StateView:
    """As interfaces.View, of one generation: a later one needs a new view."""

    def __init__(self, backend: Backend, prefix: bytes) -> None:
        self._backend = backend
        self._prefix = prefix

    def get(self, key: bytes) -> bytes | None:
        return self._backend.get(keys.STATE, self._prefix + key)

    def get_many(self, wanted: Sequence[bytes]) -> list[bytes | None]:
        return self._backend.get_many(keys.STATE, [self._prefix + key for key in wanted])

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        # Not a generator itself: the scan is pinned now, not when its first pair is asked for.
        rows = self._backend.scan(
            keys.STATE, self._prefix + start, self._prefix + end, reverse=reverse
        )
        return _stripped(rows, len(self._prefix))


def _stripped(
    rows: Iterator[tuple[bytes, bytes]], prefix_bytes: int
) -> Iterator[tuple[bytes, bytes]]:
    for key, value in rows:
        yield key[prefix_bytes:], value

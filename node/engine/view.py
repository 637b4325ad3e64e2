"""A shard's state as the state machine sees it: keys without (shard, generation)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mailraft.node.engine import keys
from mailraft.node.engine.backend import Backend
from mailraft.node.interfaces import Delete, DeleteRange, Effect, Put

# Rows of one shard that are kept in memory: the accounts and mailboxes that were read last. Past it
# the one that came first goes. Larger rows are read again.
KEPT_ROWS_MAX = 2_048
KEPT_BYTES_MAX = 512


class StateView:
    """As interfaces.View, of one generation: a later one needs a new view.

    Each delivery reads its account, its mailbox and where the inbox is: kept in memory they cost a
    tenth of a look into RocksDB.
    """

    def __init__(self, backend: Backend, prefix: bytes) -> None:
        self._backend = backend
        self._prefix = prefix
        self._kept: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        found = self._kept.get(key)
        if found is None:
            found = self._backend.get(keys.STATE, self._prefix + key)
            if found is not None and len(found) <= KEPT_BYTES_MAX and keys.is_read_often(key):
                if len(self._kept) >= KEPT_ROWS_MAX:
                    del self._kept[next(iter(self._kept))]
                self._kept[key] = found
        return found

    def changed(self, effects: Sequence[Effect]) -> None:
        """These were written. Whoever writes rows of the state has to say so."""
        kept = self._kept
        for effect in effects:
            if type(effect) is Put:
                if effect.key in kept:
                    kept[effect.key] = effect.value
            elif type(effect) is Delete:
                kept.pop(effect.key, None)
            elif type(effect) is DeleteRange:  # rare
                kept.clear()

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

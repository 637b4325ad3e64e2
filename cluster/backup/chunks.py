"""Rows of a shard cut into files, and read back.

State is cut where a hash of the key says, so that a stretch of rows that did not change gives the
same chunk in the next backup. Bodies are cut by size: they are taken over by their log positions.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator

import google_crc32c
import zstandard

from mailraft.cluster.backup.manifest import Chunk, ShardBackup
from mailraft.cluster.backup.sealed import DamagedBackupError, Kind, seal, unseal
from mailraft.cluster.backup.store import BackupStore
from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys
from mailraft.node.engine.records import AppliedPosition
from mailraft.node.engine.snapshot import (
    BODY_FAMILY,
    STATE_FAMILY,
    Pack,
    SnapshotDamagedError,
    pack_of,
    pack_row,
    rows_of,
)
from mailraft.wire.bodies import ZSTD_LEVEL

CHUNK_BYTES_MIN = 64 * 1024
CHUNK_BYTES_MAX = 4 * 1024 * 1024
# One key in so many ends a chunk of state, once it is large enough.
CUT_ONE_IN = 256

Row = tuple[bytes, bytes]


class ShardWriter:
    """Takes a shard's rows in order, and puts what the store has not."""

    def __init__(
        self, store: BackupStore, group: int, applied: AppliedPosition, parent: ShardBackup | None
    ) -> None:
        self._store, self._group, self._applied = store, group, applied
        self._parents = parent.body_chunks if parent is not None else ()
        self._firsts = [chunk.first_index for chunk in self._parents]
        self._live = [0] * len(self._parents)
        self._state: list[Chunk] = []
        self._bodies: list[Chunk] = []
        self._clock_ms = self._accounts = self._messages = self._live_bodies = 0
        self._kind = Kind.STATE
        self._rows: list[bytes] = []
        self._size_bytes = self._first_index = self._last_index = 0
        self.new_bytes = 0

    def add(self, family: int, key: bytes, value: bytes) -> None:
        """The next row, its key without group and generation."""
        if family == BODY_FAMILY:
            index, _ = keys.relative_body_position(key)
            # All bodies of an entry lie in one chunk: so chunks can be told apart by indexes.
            full = self._size_bytes >= CHUNK_BYTES_MAX and index != self._last_index
            if full or self._kind is Kind.STATE:
                self._end()
                self._kind, self._first_index = Kind.BODIES, index
            self._last_index = index
            self._append(key, value)
        else:
            self._count(key, value)
            self._append(key, value)
            is_cut = google_crc32c.value(key) % CUT_ONE_IN == 0
            if self._size_bytes >= (CHUNK_BYTES_MIN if is_cut else CHUNK_BYTES_MAX):
                self._end()

    def finish(self) -> ShardBackup:
        """Every row was added."""
        self._end()
        taken_over = [chunk for chunk, live in zip(self._parents, self._live, strict=True) if live]
        return ShardBackup(
            group=self._group,
            index=self._applied.index,
            term=self._applied.term,
            digest=self._applied.digest.hex(),
            clock_ms=self._clock_ms,
            accounts=self._accounts,
            messages=self._messages,
            bodies=self._live_bodies,
            state=tuple(self._state),
            body_chunks=(*taken_over, *self._bodies),
        )

    def _count(self, key: bytes, value: bytes) -> None:
        self._accounts += keys.is_account_record(key)
        self._messages += keys.is_message_record(key)
        if keys.is_blob(key):
            self._live_bodies += 1
            index, _ = keys.blob_of(key)
            at = bisect_right(self._firsts, index) - 1
            if at >= 0 and index <= self._parents[at].last_index:
                self._live[at] += 1
        elif key == keys.SHARD_CLOCK:
            self._clock_ms = record_pb2.ClockRecord.FromString(value).clock_ms

    def _append(self, key: bytes, value: bytes) -> None:
        row = pack_row(key, value)
        self._rows.append(row)
        self._size_bytes += len(row)

    def _end(self) -> None:
        """Put the rows that wait, if there are any."""
        if not self._rows:
            return
        rows = b"".join(self._rows)
        digest = hashlib.sha256(rows).hexdigest()
        chunk = Chunk(digest, len(self._rows), len(rows), self._first_index, self._last_index)
        if not self._store.has(chunk.name):
            # Bodies are compressed already.
            is_state = self._kind is Kind.STATE
            sealed = seal(self._kind, zstandard.compress(rows, ZSTD_LEVEL) if is_state else rows)
            self._store.put(chunk.name, sealed)
            self.new_bytes += len(sealed)
        (self._state if self._kind is Kind.STATE else self._bodies).append(chunk)
        self._rows, self._size_bytes = [], 0


def read_chunk(store: BackupStore, kind: Kind, chunk: Chunk) -> bytes:
    """Its rows as they travel, proven. Raises DamagedBackupError, NotStoredError."""
    data = unseal(kind, chunk.name, store.get(chunk.name))
    try:
        rows = (
            zstandard.decompress(data, max_output_size=chunk.size_bytes)
            if kind is Kind.STATE
            else data
        )
    except zstandard.ZstdError:
        rows = b""
    if hashlib.sha256(rows).hexdigest() != chunk.sha256 or len(rows) != chunk.size_bytes:
        raise DamagedBackupError(f"{chunk.name} holds other rows than its name says")
    return rows


def packs(
    store: BackupStore, shard: ShardBackup, tell: Callable[[int], None] = lambda _: None
) -> Iterator[Pack]:
    """A shard as a snapshot of it travels. Raises DamagedBackupError, NotStoredError."""
    number = 0
    both = (
        (STATE_FAMILY, Kind.STATE, shard.state),
        (BODY_FAMILY, Kind.BODIES, shard.body_chunks),
    )
    for family, kind, chunks in both:
        for chunk in chunks:
            yield pack_of(number, family, chunk.rows, read_chunk(store, kind, chunk))
            tell(chunk.size_bytes)
            number += 1


def rows_in(name: str, pack: Pack) -> list[Row]:
    """Raises DamagedBackupError."""
    try:
        return rows_of(pack)
    except SnapshotDamagedError as error:
        raise DamagedBackupError(f"{name}: {error}") from error

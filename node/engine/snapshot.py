"""Snapshots of a group: a pinned scan packed with checksums, and packs written to tables. Pure.

Both sides work a pack at a time, so that who drives them can give way in between. Keys travel
relative to (group, generation), which differ between replicas.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import google_crc32c

from mailraft.node.engine import keys, records
from mailraft.node.engine.backend import Backend, Table
from mailraft.node.engine.groups import GroupState
from mailraft.node.engine.records import AppliedPosition
from mailraft.node.interfaces import GroupId

# A pack is cut behind the row that passes one of these: about 3 ms of the loop at most.
PACK_BYTES: Final = 256 * 1024
PACK_ROWS: Final = 500
# A table is finished behind the pack that passes this: finishing syncs it, about 6 ms.
TABLE_BYTES: Final = 8 * 1024 * 1024

_ROW = struct.Struct("<II")
_HEAD = struct.Struct("<QII")
_CRC = struct.Struct("<I")

# As mailraft.internal.v1.SnapshotFamily.
STATE_FAMILY, BODY_FAMILY = 1, 2
_FAMILIES = ((STATE_FAMILY, keys.STATE), (BODY_FAMILY, keys.BODY))
_NAMES = dict(_FAMILIES)


class SnapshotDamagedError(Exception):
    """What arrived is not what was sent, or not all of it. Nothing of it may come to life."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Rows of one family, as they travel."""

    number: int
    family: int
    row_count: int
    rows: bytes
    crc32c: int

    @property
    def size_bytes(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Totals:
    pack_count: int
    row_count: int
    crc32c: int


def pack_of(number: int, family: int, row_count: int, rows: bytes) -> Pack:
    """With its checksum."""
    return Pack(number, family, row_count, rows, _checksum(number, family, row_count, rows))


class SnapshotSource:
    """A group as it is when this is made. All scans are pinned then, in one turn of the loop."""

    def __init__(self, backend: Backend, state: GroupState, bodies_above: int = 0) -> None:
        """Without the bodies of entries up to `bodies_above`."""
        self.applied: AppliedPosition = state.applied
        self.totals: Totals | None = None  # known behind the last pack
        group, generation = state.group, state.birth.generation
        first_body = keys.body(group, generation, bodies_above + 1)
        self._scans = (
            (STATE_FAMILY, _after(backend, keys.STATE, state.state_prefix)),
            # Bodies of entries that are not applied belong to the log, which is not sent.
            (
                BODY_FAMILY,
                backend.scan(
                    keys.BODY, first_body, keys.body(group, generation, state.applied.index + 1)
                ),
            ),
        )

    def packs(self) -> Iterator[Pack]:
        """In order; each is read from disk when it is asked for. Raises CorruptionError."""
        count = rows = checksum = 0
        for family, scan in self._scans:
            for row_count, data in _cut(scan):
                pack = pack_of(count, family, row_count, data)
                yield pack
                count += 1
                rows += row_count
                checksum = google_crc32c.extend(checksum, _CRC.pack(pack.crc32c))
        self.totals = Totals(count, rows, checksum)


class SnapshotSink:
    """Writes packs into tables under a generation that nobody reads yet."""

    def __init__(self, backend: Backend, group: GroupId, generation: int) -> None:
        self._backend, self._group, self._generation = backend, group, generation
        self._prefix = keys.state_prefix(group, generation)
        self._tables: dict[int, list[Table]] = {STATE_FAMILY: [], BODY_FAMILY: []}
        self._table: Table | None = None
        self._family = STATE_FAMILY
        self._last_key = b""
        self._rows = self._checksum = 0
        self._applied: AppliedPosition | None = None
        self.packs_held = 0

    def add(self, pack: Pack) -> None:
        """Take the next pack. Raises SnapshotDamagedError, DiskError."""
        if pack.number != self.packs_held:
            raise SnapshotDamagedError(f"pack {pack.number} came behind {self.packs_held}")
        rows = rows_of(pack)
        if pack.family not in _NAMES or pack.family < self._family:
            raise SnapshotDamagedError(f"pack {pack.number} is of family {pack.family}")
        if pack.family != self._family:
            self._finish_table()
            self._family, self._last_key = pack.family, b""
        for key, value in rows:
            self._put(key, value)
        self._rows += pack.row_count
        self._checksum = google_crc32c.extend(self._checksum, _CRC.pack(pack.crc32c))
        self.packs_held += 1
        if self._table is not None and self._table.size_bytes >= TABLE_BYTES:
            self._finish_table()

    def finish(self, totals: Totals, applied: AppliedPosition) -> None:
        """All packs are here: bring the tables in, durable.

        Raises SnapshotDamagedError, DiskError.
        """
        held = Totals(self.packs_held, self._rows, self._checksum)
        if held != totals:
            raise SnapshotDamagedError(f"{totals} were sent, {held} arrived")
        if self._applied != applied:
            raise SnapshotDamagedError(f"it holds {self._applied}, not {applied}")
        self._finish_table()
        for family, name in _FAMILIES:
            if self._tables[family]:
                self._backend.ingest(name, self._tables[family])

    def discard(self) -> None:
        """It will not be finished."""
        for table in (*self._tables[STATE_FAMILY], *self._tables[BODY_FAMILY]):
            table.discard()
        if self._table is not None:
            self._table.discard()

    def _put(self, key: bytes, value: bytes) -> None:
        if key <= self._last_key:
            raise SnapshotDamagedError(f"row {key.hex()} comes behind {self._last_key.hex()}")
        if self._table is None:
            self._table = self._backend.table(_NAMES[self._family])
        if self._family == STATE_FAMILY and key == keys.SHARD_RECORD:
            self._applied = records.decode_applied(value)
        self._table.put(self._prefix + key, value)
        self._last_key = key

    def _finish_table(self) -> None:
        if self._table is not None:
            self._table.finish()
            self._tables[self._family].append(self._table)
            self._table = None


def _after(backend: Backend, family: str, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    return backend.scan(family, prefix, keys.after(prefix))


def _cut(scan: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[int, bytes]]:
    """(rows, their bytes), each cut at a pack's limits."""
    parts: list[bytes] = []
    count = size_bytes = 0
    for key, value in scan:
        relative = key[keys.STATE_PREFIX_BYTES :]  # both families begin with group and generation
        parts += (_ROW.pack(len(relative), len(value)), relative, value)
        count += 1
        size_bytes += _ROW.size + len(relative) + len(value)
        if size_bytes >= PACK_BYTES or count >= PACK_ROWS:
            yield count, b"".join(parts)
            parts, count, size_bytes = [], 0, 0
    if count:
        yield count, b"".join(parts)


def rows_of(pack: Pack) -> list[tuple[bytes, bytes]]:
    """Its rows, proven. Raises SnapshotDamagedError."""
    if pack.crc32c != _checksum(pack.number, pack.family, pack.row_count, pack.rows):
        raise SnapshotDamagedError(f"pack {pack.number} arrived damaged")
    rows = _unpack(pack)
    if len(rows) != pack.row_count:
        raise SnapshotDamagedError(f"pack {pack.number} holds {len(rows)} rows")
    return rows


def pack_row(key: bytes, value: bytes) -> bytes:
    """A row as it travels."""
    return b"".join((_ROW.pack(len(key), len(value)), key, value))


def _unpack(pack: Pack) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    data, at = pack.rows, 0
    while at < len(data):
        if at + _ROW.size > len(data):
            raise SnapshotDamagedError(f"pack {pack.number} ends within a row")
        key_bytes, value_bytes = _ROW.unpack_from(data, at)
        at += _ROW.size
        end = at + key_bytes + value_bytes
        if end > len(data):
            raise SnapshotDamagedError(f"pack {pack.number} ends within a row")
        found.append((data[at : at + key_bytes], data[at + key_bytes : end]))
        at = end
    return found


def _checksum(number: int, family: int, row_count: int, rows: bytes) -> int:
    head = google_crc32c.value(_HEAD.pack(number, family, row_count))
    return int(google_crc32c.extend(head, rows))

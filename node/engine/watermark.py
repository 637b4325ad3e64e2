"""The durable sequence number in a small file beside RocksDB.

RocksDB's recovery stops at a damaged place of its log and drops the rest without a word, synced
data included (engine facts: docs/decisions). A store that opens below this mark has lost writes.

Two slots written in turn, so that a torn write leaves the other: magic | u32 format | u64
sequence | u32 crc32c, little-endian.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import google_crc32c

from mailraft.node.engine.errors import CorruptionError, DiskError, DiskFullError

INTERVAL_SECONDS: Final = 0.1
_SLOT = struct.Struct("<8sIQI")
_SLOT_BYTES: Final = 512  # one sector: a disk writes it whole, or the checksum tells
_MAGIC: Final = b"mrmark\r\n"
_FORMAT: Final = 1


class FileWatermark:
    """As backend.Watermark. record() blocks on the disk: on the disk thread only, one at a time."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Reads the file if it is there. Raises CorruptionError when no slot of it is whole."""
        self._path = path
        self._clock = clock
        self._sequence: int | None = None
        self._flushed = 0
        self._slot = 0
        self._next_write_seconds = 0.0
        self._file: int | None = None
        if path.exists():
            self._load()

    @property
    def sequence(self) -> int | None:
        return self._sequence

    @property
    def pending(self) -> bool:
        return self._flushed > (self._sequence or 0)

    def record(self, sequence: int, *, force: bool = False) -> None:
        self._flushed = max(self._flushed, sequence)
        now_seconds = self._clock()
        due = force or now_seconds >= self._next_write_seconds
        if not due or (self._sequence is not None and not self.pending):
            return
        self._next_write_seconds = now_seconds + INTERVAL_SECONDS
        try:
            self._write(self._flushed)
        except OSError as error:
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            raise (DiskFullError if full else DiskError)(f"{self._path}: {error}") from error
        self._sequence = self._flushed

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _load(self) -> None:
        data = self._path.read_bytes()
        slots = [_decode(data[at : at + _SLOT.size]) for at in (0, _SLOT_BYTES)]
        found = [(sequence, slot) for slot, sequence in enumerate(slots) if sequence is not None]
        if not found:
            raise CorruptionError(
                f"{self._path} is damaged: whether this store lost writes cannot be told. "
                "Move its folder away and let the node be rebuilt from its peers"
            )
        self._sequence, newest = max(found)
        self._flushed = self._sequence
        self._slot = 1 - newest

    def _write(self, sequence: int) -> None:
        if self._sequence is None:
            # Whole before it gets its name: a file that is there always has a whole slot.
            fresh = self._path.with_suffix(".new")
            fresh.write_bytes(_encode(sequence) * 2)
            sync_path(fresh)
            fresh.replace(self._path)
            sync_path(self._path.parent)
            return
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        os.pwrite(self._file, _encode(sequence), self._slot * _SLOT_BYTES)
        os.fdatasync(self._file)
        self._slot = 1 - self._slot


def sync_path(path: Path) -> None:
    """Make a file's bytes, or a folder's names, survive a power cut."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def is_whole(data: bytes) -> bool:
    """Whether no bit of the file has changed. One slot may: the other one counts then."""
    return len(data) == 2 * _SLOT_BYTES and all(
        _is_whole(data[at : at + _SLOT_BYTES]) for at in (0, _SLOT_BYTES)
    )


def _is_whole(slot: bytes) -> bool:
    sequence = _decode(slot[: _SLOT.size])
    return sequence is not None and slot == _encode(sequence)


def _encode(sequence: int) -> bytes:
    return _SLOT.pack(_MAGIC, _FORMAT, sequence, _checksum(sequence)).ljust(_SLOT_BYTES, b"\0")


def _decode(data: bytes) -> int | None:
    if len(data) < _SLOT.size:
        return None
    magic, form, sequence, checksum = _SLOT.unpack(data)
    whole = magic == _MAGIC and form == _FORMAT and checksum == _checksum(sequence)
    return int(sequence) if whole else None


def _checksum(sequence: int) -> int:
    return int(google_crc32c.value(sequence.to_bytes(8, "little")))

"""The records of RocksDB's logs and manifests, past RocksDB: whether a bit has changed. Pure."""

from __future__ import annotations

import struct
from typing import Final

import google_crc32c

# RocksDB's log_format: blocks that no record reaches over; a record begins with its checksum,
# length and kind, and some kinds go on with the number of their log.
BLOCK_BYTES: Final = 32 * 1024
_RECORD = struct.Struct("<IHB")
_RECYCLABLE: Final = frozenset((5, 6, 7, 8, 11))
_CRC_MASK: Final = 0xA282EAD8


def damaged_block(data: bytes) -> int | None:
    """Where the first block lies of which a record is damaged; None where all are whole, but for
    one that is half there, with none behind it: the end that a killed process leaves.
    """
    for at in range(0, len(data), BLOCK_BYTES):
        block = data[at : at + BLOCK_BYTES]
        last = at + BLOCK_BYTES >= len(data)
        if not is_whole(block, last=last) or (last and _goes_on(block)):
            return at
    return None


def _goes_on(block: bytes) -> bool:
    """Whether records follow a place that looks like the end of all."""
    at = 0
    while (size := _record_bytes(block, at)) > 0:
        at += size
    return any(_record_bytes(block, behind) for behind in range(at + 1, len(block)))


def _record_bytes(block: bytes, at: int) -> int:
    """Of the whole record there; 0 where there is none."""
    if len(block) - at < _RECORD.size:
        return 0
    checksum, length, kind = _RECORD.unpack_from(block, at)
    end = at + _RECORD.size + length + (4 if kind in _RECYCLABLE else 0)
    if kind == 0 or end > len(block) or _checksum(block[at + 6 : end]) != checksum:
        return 0
    return int(end - at)


def is_whole(block: bytes, *, last: bool) -> bool:
    """A block of a log: records do not reach over its end. last: what is missing comes later."""
    at = 0
    while len(block) - at >= _RECORD.size:
        checksum, length, kind = _RECORD.unpack_from(block, at)
        if kind == length == 0:
            return last
        end = at + _RECORD.size + length + (4 if kind in _RECYCLABLE else 0)
        if end > len(block):
            return last
        if _checksum(block[at + 6 : end]) != checksum:
            return False
        at = end
    return last or not any(block[at:])


def _checksum(data: bytes) -> int:
    found = int(google_crc32c.value(data))
    return ((found >> 15 | found << 17) + _CRC_MASK) & 0xFFFFFFFF

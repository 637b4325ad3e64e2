"""What proves that bytes are those that were written, or that replicas agree. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import assert_never

import google_crc32c
import xxhash

from mailraft.node.interfaces import Delete, DeleteBody, DeleteRange, Effect, Entry, Put

_ENTRY = struct.Struct("<QQI")
_LENGTH = struct.Struct("<I")
_TAGGED = struct.Struct("<BI")
_PUT, _DELETE, _DELETE_RANGE, _DELETE_BODY = 1, b"\x02", b"\x03", b"\x04"
_BODY = struct.Struct("<QI")

EMPTY_DIGEST = bytes(16)  # of a shard that has applied nothing


def entry_checksum(entry: Entry) -> int:
    """CRC-32C of an entry: (index, term, kind) as u64, u64, u32 little-endian, payload, bodies.

    Bodies are covered as one string: where one ends and the next begins is in their own headers.
    """
    checksum = google_crc32c.value(_ENTRY.pack(entry.index, entry.term, entry.kind))
    checksum = google_crc32c.extend(checksum, entry.payload)
    for body in entry.bodies:
        checksum = google_crc32c.extend(checksum, body)
    return int(checksum)


def chain_digest(previous: bytes, effects: Iterable[Effect]) -> bytes:
    """The digest after one more applied entry: xxh3-128 of the previous one and the effects.

    Replicas that applied the same entries have the same digest; one that diverged keeps another
    for ever. Part of what is stored: changing the encoding below needs a new record format.
    """
    parts = [previous]
    add, tagged, length = parts.append, _TAGGED.pack, _LENGTH.pack
    for effect in effects:
        if type(effect) is Put:  # nearly all of them
            key, value = effect.key, effect.value
            add(tagged(_PUT, len(key)))
            add(key)
            add(length(len(value)))
            add(value)
            continue
        match effect:
            case Put():
                raise AssertionError("no class is below Put")
            case Delete(key):
                parts += (_DELETE, _LENGTH.pack(len(key)), key)
            case DeleteRange(start, end):
                parts += (_DELETE_RANGE, _LENGTH.pack(len(start)), start)
                parts += (_LENGTH.pack(len(end)), end)
            case DeleteBody(index, ordinal):
                parts += (_DELETE_BODY, _BODY.pack(index, ordinal))
            case _:
                assert_never(effect)
    return xxhash.xxh3_128_digest(b"".join(parts))

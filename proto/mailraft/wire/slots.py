"""account -> slot: fixed for ever, since clients embed it."""

from __future__ import annotations

import xxhash

SLOTS = 16_384


def slot_of(account_id: str) -> int:
    """The slot (0..SLOTS-1) of an account: xxh3-64 of its UTF-8 bytes, modulo SLOTS."""
    return xxhash.xxh3_64_intdigest(account_id.encode()) % SLOTS

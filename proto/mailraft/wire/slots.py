"""account -> slot: fixed for ever, since clients embed it."""

from __future__ import annotations

import functools

import xxhash

SLOTS = 16_384


@functools.lru_cache(maxsize=8192)  # several times a call, at client and node
def slot_of(account_id: str) -> int:
    """The slot (0..SLOTS-1) of an account: xxh3-64 of its UTF-8 bytes, modulo SLOTS."""
    return xxhash.xxh3_64_intdigest(account_id.encode()) % SLOTS

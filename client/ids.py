"""Request ids: UUIDv7 (RFC 9562 section 5.7), which Python 3.11 cannot make by itself."""

from __future__ import annotations

import hashlib
import os
import threading
import time

_RANDOM_BITS = 74  # rand_a (12) and rand_b (62), one counter that starts anywhere
_RANDOM_BYTES = 10
_STEP_BYTES = 4  # how far the counter goes within a millisecond: below 2^32, so not to be guessed


class RequestIds:
    """Makes request ids that rise strictly within the process, also while its clock goes back.

    Usable from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._time_ms = 0
        self._counter = 0

    def next(self) -> bytes:
        """16 bytes, above all that were made before."""
        now_ms = time.time_ns() // 1_000_000
        with self._lock:
            if now_ms > self._time_ms:
                self._time_ms = now_ms
                self._counter = int.from_bytes(os.urandom(_RANDOM_BYTES)) >> 6
            else:  # RFC 9562 section 6.2, method 2
                self._counter += 1 + int.from_bytes(os.urandom(_STEP_BYTES))
                if self._counter >> _RANDOM_BITS:
                    self._time_ms += 1
                    self._counter = int.from_bytes(os.urandom(_STEP_BYTES))
            return _uuid7(self._time_ms, self._counter)


def _uuid7(time_ms: int, counter: int) -> bytes:
    high, low = counter >> 62, counter & ((1 << 62) - 1)
    return (time_ms << 80 | 7 << 76 | high << 64 | 2 << 62 | low).to_bytes(16)


def following_id(first: bytes, number: int) -> bytes:
    """The request id of the `number`-th command of a call; 0: the first one's own.

    The same whenever the call is repeated, and of the same time, so in the same window.
    """
    if not number:
        return first
    digest = hashlib.sha256(first + number.to_bytes(4)).digest()
    return _uuid7(int.from_bytes(first[:6]), int.from_bytes(digest) & ((1 << _RANDOM_BITS) - 1))


# One for the process, so that the ids of all clients in it rise.
request_ids = RequestIds()

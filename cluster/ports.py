"""Free ports of the loopback interface for a local cluster."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterable, Iterator

from mailraft.cluster.errors import ClusterError

LOOPBACK = "127.0.0.1"
# Below the range that the kernel takes ports of outgoing connections from (32768 on): the port
# of a node that is down for a moment must not be taken by somebody's connection meanwhile.
FIRST_PORT, END_PORT = 20_000, 32_000


def is_free(port: int) -> bool:
    """True if nobody listens there now."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def choose(count: int, *, wanted: Iterable[int] = (), taken: Iterable[int] = ()) -> list[int]:
    """As many free ports, those of `wanted` first, none of `taken`. Raises ClusterError."""
    used = set(taken)
    chosen: list[int] = []
    for port in (*wanted, *_somewhere()):
        if len(chosen) == count:
            break
        if port not in used and is_free(port):
            used.add(port)
            chosen.append(port)
    if len(chosen) < count:
        raise ClusterError(f"no {count} free ports between {FIRST_PORT} and {END_PORT}")
    return chosen


def _somewhere() -> Iterator[int]:
    # Starting anywhere, so that two clusters that start at once look at different ports.
    start = random.randrange(END_PORT - FIRST_PORT)
    for offset in range(END_PORT - FIRST_PORT):
        yield FIRST_PORT + (start + offset) % (END_PORT - FIRST_PORT)

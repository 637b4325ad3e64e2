"""How fast background work reads and sends: at most a rate, and less while callers wait.

Snapshots, backups and audits share a node's event loop and disk with the calls that it serves. How
late the loop runs is what every caller waits on top, so it tells when to step back.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

LAG_PERIOD_S = 0.1
LAG_SAMPLES = 50  # the worst of the last five seconds is told

# What background work may take of a node at most, each kind of it.
BYTES_PER_S = 64 * 1024 * 1024
# Up to here nobody notices. Twice as late: half the rate, and so on.
LATE_MS_FREE = 50.0
# It goes on at this share of its rate however late the loop runs: what heals must end.
SHARE_MIN = 1 / 16
LATE_WITHIN_S = 1.0


class LoopLag:
    """How late the event loop runs: what every caller waits on top."""

    def __init__(self) -> None:
        self._late_s: deque[float] = deque(maxlen=LAG_SAMPLES)
        self._due_s = float("inf")

    async def run(self) -> None:
        while True:
            self._due_s = time.monotonic() + LAG_PERIOD_S
            await asyncio.sleep(LAG_PERIOD_S)
            self._late_s.append(time.monotonic() - self._due_s)

    def worst_within_ms(self, within_s: float) -> float:
        """In the time that has just passed; what holds the loop up until now counts."""
        latest = list(self._late_s)[-1 - int(within_s / LAG_PERIOD_S) :]
        return max([*latest, time.monotonic() - self._due_s]) * 1000

    def lately_ms(self) -> float:
        """As background work asks."""
        return self.worst_within_ms(LATE_WITHIN_S)

    @property
    def worst_ms(self) -> int:
        return int(max(self._late_s, default=0.0) * 1000)


class Pace:
    """Waits between the steps of background work.

    bytes_per_s: while the loop is on time; more than BYTES_PER_S, or 0, is taken as that.
    late_ms: how late the loop runs now.
    """

    def __init__(self, late_ms: Callable[[], float], bytes_per_s: int = 0) -> None:
        self._late_ms = late_ms
        self._bytes_per_s = min(bytes_per_s or BYTES_PER_S, BYTES_PER_S)
        self._due_s = 0.0

    async def spent(self, size_bytes: int, rows: int = 0, rows_per_s: int = 1) -> None:
        """Wait for as long as it takes these bytes (or rows, if that is longer) at the pace."""
        share = max(SHARE_MIN, min(1.0, LATE_MS_FREE / max(self._late_ms(), 1.0)))
        takes_s = max(size_bytes / self._bytes_per_s, rows / rows_per_s) / share
        now = time.monotonic()
        self._due_s = max(self._due_s, now) + takes_s
        # Also with nothing to wait for: others get their turn between two steps.
        await asyncio.sleep(self._due_s - now)

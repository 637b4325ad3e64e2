"""The slow log: a line for each call that took too long, with the reason why.

The lines are part of the process' log (`mailraft slow-log` reads them out of it): the call, what it
waited for in milliseconds, and the reason, which is the longest of those waits, unless the event
loop itself was held up (stall) or the time went elsewhere (`rest`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from mailraft.wire.observed import ServedCall

EVENT = "slow call"
STALL, APPLY = "stall", "apply"
# Lines a second; of the calls past it only the number is told, in the next line.
LINES_PER_S_MAX = 20

_log = logging.getLogger("mailraft.slow")


class SlowLog:
    """threshold_ms: 0 is never. rest: what a call of this process does when it waits for nothing
    that is timed. stalled_ms: how long the event loop was held up at most in the last seconds.
    """

    def __init__(
        self,
        threshold_ms: int,
        rest: str,
        stalled_ms: Callable[[float], float] = lambda _: 0.0,
    ) -> None:
        self._threshold_s = threshold_ms / 1000 if threshold_ms else float("inf")
        self._rest, self._stalled_ms = rest, stalled_ms
        self._second, self._lines, self._untold = 0, 0, 0

    def ended(self, call: ServedCall) -> None:
        if call.took_s < self._threshold_s or call.streaming:
            return
        if not self._has_room():
            self._untold += 1
            return
        untold, self._untold = self._untold, 0
        waits_ms = {name: round(wait_s * 1000, 1) for name, wait_s in call.waits.items()}
        told = {
            "method": call.method,
            "asked": call.level,  # `level` is that of the log line
            "code": call.code,
            "took_ms": round(call.took_s * 1000, 1),
            "reason": self.reason(call),
            "waits_ms": waits_ms,
            "shard": call.shard,
            "request_id": call.request_id,
            "trace_id": call.trace_id,
            "untold": untold,
        }
        _log.warning(
            EVENT, extra={name: value for name, value in told.items() if value or value == 0}
        )

    def reason(self, call: ServedCall) -> str:
        """Why a call was slow."""
        rest_s = call.took_s - sum(call.waits.values())
        waits = {self._rest: rest_s, **call.waits}
        longest = max(waits, key=waits.__getitem__)
        # Applying is done on the loop: what it holds up is itself.
        if longest != APPLY and self._stalled_ms(call.took_s) >= call.took_s * 1000 / 2:
            return STALL
        return longest

    def _has_room(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        return self._lines <= LINES_PER_S_MAX

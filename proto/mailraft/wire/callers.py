"""What one caller may take of a server: so many calls, recipients and bytes a second (token
buckets), so much open at once. One that takes too much is told when to come back, and the others
are served.

A caller is a certificate's role and name. Nodes and routers have no share: they carry what others
ask for, which was counted where it came in.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mailraft.wire import errors
from mailraft.wire.access import Principal, Role

# A bucket holds what comes in so many seconds: bursts pass, and what goes on is bounded.
BURST_S = 2.0
# Requests that are served now: of all callers, and of one. What waits in gRPC is bounded by its
# windows, and by how many messages of one caller are received at a time.
HELD_BYTES_MAX = 512 * 1024 * 1024
HELD_BYTES_OF_ONE_MAX = HELD_BYTES_MAX // 2
RECEIVED_AT_ONCE_MAX = 32
RETRY_MIN_MS, RETRY_MAX_MS = 100, 5_000
CALLERS_KEPT = 1_024


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """Of each caller at each process; see ProcessSettings."""

    calls_per_s: int = 20_000
    recipients_per_s: int = 100_000
    bytes_per_s: int = 256 * 1024 * 1024
    calls_max: int = 3_072
    streams_max: int = 3_072


@dataclass(slots=True)
class Bucket:
    """Tokens that come at a rate. One may take more than there are, and waits that much longer."""

    per_s: float
    level: float = field(init=False)
    _at_s: float = float("-inf")

    def __post_init__(self) -> None:
        self.level = self.per_s * BURST_S

    def wait_s(self, now_s: float) -> float:
        """Until something may be taken; 0: now."""
        gained = (now_s - self._at_s) * self.per_s
        self.level, self._at_s = min(self.per_s * BURST_S, self.level + gained), now_s
        return 0.0 if self.level > 0 else (1.0 - self.level) / self.per_s


class Share:
    """What one caller has open, and may still take."""

    def __init__(self, limits: CallerLimits) -> None:
        self.calls = self.streams = self.held_bytes = 0
        self.receiving = asyncio.Semaphore(RECEIVED_AT_ONCE_MAX)
        self.rates = {
            "calls": Bucket(limits.calls_per_s),
            "recipients": Bucket(limits.recipients_per_s),
            "bytes": Bucket(limits.bytes_per_s),
        }

    @property
    def idle(self) -> bool:
        return not self.calls and not self.streams


class Open:
    """A call that is open, and the request that it holds in memory."""

    __slots__ = ("_callers", "_held_bytes", "_share", "_streaming")

    def __init__(self, callers: Callers, share: Share | None, streaming: bool) -> None:
        self._callers, self._share, self._streaming = callers, share, streaming
        self._held_bytes = 0

    def hold(self, size_bytes: int) -> None:
        """Until it is closed. Raises OverloadedError."""
        callers, share = self._callers, self._share
        own_bytes = 0 if share is None else share.held_bytes
        full = callers.held_bytes + size_bytes > HELD_BYTES_MAX
        if full or own_bytes + size_bytes > HELD_BYTES_OF_ONE_MAX:
            raise errors.OverloadedError(
                f"requests of {callers.held_bytes} bytes are served", retry_after_ms=_later_ms(0)
            )
        self._held_bytes += size_bytes
        callers.held_bytes += size_bytes
        if share is not None:
            share.held_bytes += size_bytes

    def close(self) -> None:
        """Once."""
        self._callers.held_bytes -= self._held_bytes
        if self._share is not None:
            self._share.held_bytes -= self._held_bytes
            self._share.streams -= self._streaming
            self._share.calls -= not self._streaming


class Callers:
    """The shares of all callers of a process. now: a monotonic clock, in seconds."""

    def __init__(self, limits: CallerLimits, *, now: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._now = limits, now
        self._shares: dict[str, Share] = {}
        self.held_bytes = 0

    def share(self, caller: Principal | None) -> Share | None:
        """None: it is not limited (plain text knows no callers)."""
        if caller is None or caller.role in (Role.NODE, Role.ROUTER):
            return None
        name = str(caller)
        found = self._shares.get(name)
        if found is None:
            if len(self._shares) >= CALLERS_KEPT:
                self._shares = {key: each for key, each in self._shares.items() if not each.idle}
            found = self._shares[name] = Share(self._limits)
        return found

    def open(self, share: Share | None, *, streaming: bool) -> Open:
        """One more call, until it is closed. Raises OverloadedError, RateLimitedError."""
        if share is not None:
            count, most = (
                (share.streams, self._limits.streams_max)
                if streaming
                else (share.calls, self._limits.calls_max)
            )
            if count >= most:
                what = "streams" if streaming else "calls"
                raise errors.OverloadedError(
                    f"this caller has {count} {what} open", retry_after_ms=_later_ms(0)
                )
            self.take(share, "calls", 1)
            share.streams += streaming
            share.calls += not streaming
        return Open(self, share, streaming)

    def take(self, share: Share | None, what: str, amount: int) -> None:
        """Raises RateLimitedError when there is nothing to take from."""
        if share is None or not amount:
            return
        bucket = share.rates[what]
        wait_s = bucket.wait_s(self._now())
        if wait_s > 0:
            raise errors.RateLimitedError(
                f"this caller sends too many {what}: {bucket.per_s:.0f} a second are served",
                metadata={"limit": f"caller_{what}_per_s"},
                retry_after_ms=_later_ms(wait_s),
            )
        bucket.level -= amount

    def pause_s(self, share: Share | None, size_bytes: int) -> float:
        """Take bytes of a stream, which is not refused but waits so long for its next."""
        if share is None:
            return 0.0
        bucket = share.rates["bytes"]
        bucket.wait_s(self._now())
        bucket.level -= size_bytes
        return max(0.0, -bucket.level / bucket.per_s)


def _later_ms(wait_s: float) -> int:
    """Spread, so that not all come back at once."""
    least_ms = min(max(wait_s * 1000, RETRY_MIN_MS), RETRY_MAX_MS)
    return round(least_ms * random.uniform(1.0, 2.0))

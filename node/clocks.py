"""The wall clocks of this node and its peers: a leader whose own is off stamps nothing.

Every command carries a time, and a shard's clock never runs backwards: one leader an hour ahead
would move it for good. Heartbeats tell the sender's wall clock; between two of them a peer's is
carried on by the clock that never jumps, so that a jump of ours is seen at the next stamp.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from mailraft.node.shard import Replica
from mailraft.wire import errors

log = logging.getLogger(__name__)

SKEW_MS_MAX = 5 * 60 * 1000
# A peer that was not heard for so long has no say.
HEARD_S_MAX = 10.0
CHECK_EVERY_S = 1.0


class PeerClocks:
    """wall_ms: the clock that stamps; now_s: one that never jumps."""

    def __init__(self, wall_ms: Callable[[], int], now_s: Callable[[], float]) -> None:
        self._wall_ms, self._now_s = wall_ms, now_s
        self._heard: dict[int, tuple[int, float]] = {}

    def heard(self, peer: int, wall_ms: int) -> None:
        """A peer told its clock; 0: it is of release 0.1.0, which does not."""
        if wall_ms:
            self._heard[peer] = wall_ms, self._now_s()

    def skew_ms(self) -> int:
        """How far this clock is ahead of the median of all; below 0: behind.

        Of an even number of clocks the one of the two in the middle that is nearer to ours: two
        nodes alone cannot tell which of them is wrong, and go on.
        """
        now_s, own_ms = self._now_s(), self._wall_ms()
        ahead = [0]
        for wall_ms, heard_s in self._heard.values():  # tidy: a plain dict
            if now_s - heard_s <= HEARD_S_MAX:
                ahead.append(own_ms - wall_ms - int((now_s - heard_s) * 1000))
        ahead.sort()
        middle = ahead[(len(ahead) - 1) // 2], ahead[len(ahead) // 2]
        return min(middle, key=abs)

    @property
    def off(self) -> bool:
        """Whether this clock must not stamp."""
        return abs(self.skew_ms()) > SKEW_MS_MAX

    def stamp_ms(self) -> int:
        """The time for a command. Raises NoLeaderError: the next leader is asked."""
        if self.off:
            raise errors.NoLeaderError(
                f"the clock of this leader is {abs(self.skew_ms()) // 1000} s off the median of "
                "its peers: it stamps nothing, and hands over"
            )
        return self._wall_ms()


async def hand_over_while_off(
    clocks: PeerClocks, replicas: Callable[[], Iterable[Replica]], hand_over: Callable[[int], None]
) -> None:
    """Give away what is led here for as long as this clock is off. Until cancelled."""
    was_off = False
    while True:
        if clocks.off:
            for replica in replicas():
                if replica.leadership.leading:
                    hand_over(replica.group)
        if clocks.off is not was_off:
            was_off = not was_off
            if was_off:
                log.error(
                    "the wall clock of this node is %+d s off the median of its peers: it accepts "
                    "no writes as a leader and hands leadership over; set the clock",
                    clocks.skew_ms() // 1000,
                )
            else:
                log.info("the wall clock of this node agrees with its peers again")
        await asyncio.sleep(CHECK_EVERY_S)

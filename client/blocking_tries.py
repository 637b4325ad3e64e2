"""When a blocking call is tried again, and when it ends: the rules of mailraft.router.tries.

Every mutation of the client has a request_id, so that doing it twice is doing it once.
"""

from __future__ import annotations

import random
import time

from mailraft.router.methods import Method, Pace
from mailraft.router.pool import LostError, UnreachableError
from mailraft.router.tries import (
    PATIENT_TRY_TIMEOUT_S,
    PAUSE_FIRST_S,
    PAUSE_MAX_S,
    TRIES_MAX,
    TRY_TIMEOUT_S,
)
from mailraft.wire import errors

_FATE_UNKNOWN = (errors.CommitUnknownError, LostError)


def transient(error: errors.MailraftError) -> bool:
    """Whether another try, at once or elsewhere, may find what is asked for.

    Not of what is full: its caller is to come back later.
    """
    return isinstance(error, errors.UnavailableError | errors.DeadlineExceededError)


class BlockingTries:
    """The tries of one request, until `end_s` on the monotonic clock."""

    def __init__(self, method: Method, end_s: float, *, whole_time: bool) -> None:
        self._method = method
        self._end_s = end_s
        self._whole_time = whole_time
        self._count = self._rounds = self._timeouts = 0
        self._fate_unknown = False
        self._error: errors.MailraftError = errors.DeadlineExceededError()
        self.tried: set[str] = set()  # addresses of this round

    def remaining_s(self) -> float:
        """How much time is left."""
        return self._end_s - time.monotonic()

    def timeout_s(self) -> float:
        """How long one try may take: more after each that had too little."""
        remaining_s = max(0.0, self.remaining_s())
        if self._whole_time:
            return remaining_s
        first_s = TRY_TIMEOUT_S
        if self._method.pace is Pace.PATIENT:
            first_s = max(PATIENT_TRY_TIMEOUT_S, remaining_s / 2)
        return min(remaining_s, first_s * (1 << self._timeouts))

    def failed(self, address: str, error: errors.MailraftError) -> None:
        """Returns if there may be another try, else raises what the caller shall see."""
        self.tried.add(address)
        self._error = error
        self._count += 1
        if isinstance(error, _FATE_UNKNOWN):
            self._timeouts += 1
            self._fate_unknown |= self._method.mutation
        once_each = isinstance(error, errors.QuorumUnavailableError) and self._rounds
        if not transient(error) or once_each or self._count >= TRIES_MAX or self.remaining_s() <= 0:
            raise self._last(error)

    def next_round(self) -> None:
        """Waits, longer each time, before all are tried again. Raises when the time is over."""
        pause_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2**self._rounds) * random.uniform(0.5, 1.0)
        self._rounds += 1
        self.tried.clear()
        if pause_s >= self.remaining_s():
            raise self._last(self._error)
        time.sleep(pause_s)

    def _last(self, error: errors.MailraftError) -> errors.MailraftError:
        if self._fate_unknown and transient(error):
            if isinstance(error, errors.CommitUnknownError):
                return error
            return errors.CommitUnknownError(f"it may be done: {error.message}")
        if isinstance(error, LostError):
            return errors.DeadlineExceededError(error.message)
        if isinstance(error, UnreachableError):
            return errors.QuorumUnavailableError(error.message)
        return error

"""How many extra calls there may be (docs/decisions/0011-retries-and-hedges.md). Pure."""

from __future__ import annotations

import random
import threading
from collections import Counter
from dataclasses import dataclass, field

# Retries after a try that cost a server its work: a fifth of all calls, and at once as many as the
# loss of one node may break. What is only sent elsewhere (NOT_LEADER and the like) costs nothing.
RETRY_RATIO = 0.2
RETRY_RESERVE = 2_048
HEDGE_RATIO = 0.05
HEDGE_RESERVE = 16


class Budget:
    """A token bucket that calls fill and extra calls empty, as gRPC's retry throttling (A6) and
    Finagle's RetryBudget: of n calls at most ratio * n + reserve are followed by an extra one.

    Usable from several threads.
    """

    def __init__(self, ratio: float, reserve: float) -> None:
        self.spent = self.refused = 0
        self._ratio, self._reserve, self._tokens = ratio, reserve, reserve
        self._lock = threading.Lock()

    def earn(self) -> None:
        """One call was made."""
        with self._lock:
            self._tokens = min(self._reserve, self._tokens + self._ratio)

    def spend(self) -> bool:
        """Whether there may be an extra call; it is taken for made."""
        with self._lock:
            if self._tokens < 1:
                self.refused += 1
                return False
            self._tokens -= 1
            self.spent += 1
            return True


def _retry_budget() -> Budget:
    return Budget(RETRY_RATIO, RETRY_RESERVE)


@dataclass(slots=True)
class Extra:
    """The calls of one client or router beyond the first of each request."""

    budget: Budget = field(default_factory=_retry_budget)
    retries: Counter[str] = field(default_factory=Counter)  # by the reason of the try before
    chance: random.Random = field(default_factory=random.Random)

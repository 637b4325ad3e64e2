"""How busy each node is, as seen from here: what is open there times how long its answers take (an
exponentially weighted mean). Pure.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

from mailraft.router.failures import NoAnswerError
from mailraft.wire import errors

# The weight of the newest answer.
WEIGHT = 0.2
# A try that was left without an answer would have taken longer: it counts for so many times its
# time, and at once.
LEFT = 4.0
# A node that was slow and is not asked any more is forgiven in time: else nobody would ever notice
# that it has become fast.
FORGIVEN_S = 5.0
# Of a node that was never asked, and the least of any: below it differences are those of our own
# event loop, and one late turn of it would decide for seconds.
TAKES_MIN_S = 0.005


@dataclass(slots=True)
class Load:
    open: int = 0
    connected: bool = False  # something was answered; the first answer's time is that of connecting
    takes_s: float = 0.0
    known_s: float = 0.0  # when takes_s was so
    full_until_s: float = float("-inf")  # it said so


class Loads:
    """By address. now: a monotonic clock, in seconds. Usable from several threads."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._loads: dict[str, Load] = {}
        self._lock = threading.Lock()

    def began(self, address: str) -> float:
        """A try begins; when, to be handed to `ended`."""
        with self._lock:
            self._loads.setdefault(address, Load()).open += 1
        return self._now()

    def ended(
        self,
        address: str,
        began_s: float,
        *,
        sampled: bool,
        error: errors.MailraftError | None = None,
        answered: bool = True,
    ) -> None:
        """A try is over. sampled: it is of a kind whose time says how fast the node is. answered:
        not with an error, nor left before it was.
        """
        now_s = self._now()
        with self._lock:
            load = self._loads.setdefault(address, Load(open=1))
            load.open -= 1
            if isinstance(error, errors.OverloadedError):
                load.full_until_s = now_s + (error.retry_after_ms or 0) / 1000
            known_s, took_s = self._takes_s(load), now_s - began_s
            # A refusal is quick, and says nothing of how long an answer takes.
            answered = answered and error is None
            connected, load.connected = load.connected, load.connected or answered
            if not sampled:
                return
            if answered and connected:
                load.takes_s = known_s + (took_s - known_s) * (WEIGHT if known_s else 1.0)
                load.known_s = now_s
            elif not answered:
                refused = error is not None and not isinstance(error, NoAnswerError)
                least_s = took_s if refused else LEFT * took_s
                if least_s > known_s:
                    load.takes_s, load.known_s = least_s, now_s

    def measured(self, address: str, *, sampled: bool) -> AbstractContextManager[None]:
        """Around a try."""
        return _Measured(self, address, sampled)

    def cost(self, address: str) -> float:
        """Seconds of waiting that one more call there stands for."""
        load = self._loads.get(address)
        if load is None:
            return TAKES_MIN_S
        if load.full_until_s > self._now():
            return math.inf
        return (load.open + 1) * max(TAKES_MIN_S, self._takes_s(load))

    def keep(self, addresses: set[str]) -> None:
        """Forget all others that have nothing open."""
        for address, load in list(self._loads.items()):
            if address not in addresses and not load.open:
                del self._loads[address]

    def _takes_s(self, load: Load) -> float:
        return load.takes_s * math.exp((load.known_s - self._now()) / FORGIVEN_S)


class _Measured(AbstractContextManager[None]):
    """As a generator it would cost twice as much, on the way of every call."""

    __slots__ = ("_address", "_began_s", "_loads", "_sampled")

    def __init__(self, loads: Loads, address: str, sampled: bool) -> None:
        self._loads, self._address, self._sampled = loads, address, sampled
        self._began_s = loads.began(address)

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        self._loads.ended(
            self._address,
            self._began_s,
            sampled=self._sampled,
            error=error if isinstance(error, errors.MailraftError) else None,
            answered=error is None,
        )

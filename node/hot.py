"""Which accounts, shards and methods carry the load: counted as calls end, within bounds.

A counter holds the keys that were met most often lately. When it is full it forgets the rarer half,
so that a key that is counted has at least its count, and what is missing is rare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mailraft.v1 import batch_pb2, delivery_pb2
from mailraft.wire.observed import ServedCall

INTERVAL_S = 10.0
KEYS_MAX = 1_024  # of each kind
# Of items, of deliveries and of recipients so many are looked at; each stands for as many as were
# passed over.
PARTS_MAX = 16

Part = tuple[str, str, int]  # account, method, for how many it stands


@dataclass(slots=True)
class Top:
    """What was met most often."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, key: str, count: int) -> None:
        self.counts[key] += count
        if len(self.counts) > KEYS_MAX:
            self.counts = Counter(dict(self.counts.most_common(KEYS_MAX // 2)))


@dataclass(slots=True)
class Window:
    """One interval. `length_s` is known once it is over."""

    began_s: float
    length_s: float = 0.0
    total: int = 0
    accounts: Top = field(default_factory=Top)
    shards: Top = field(default_factory=Top)
    methods: Top = field(default_factory=Top)


class HotMeter:
    """Told by observed.Observe. shard_of: of an account's mail; now_s: never jumps."""

    def __init__(self, shard_of: Callable[[str], int], now_s: Callable[[], float]) -> None:
        self._shard_of, self._now_s = shard_of, now_s
        self._current = Window(now_s())
        self._last: Window | None = None

    def ended(self, call: ServedCall) -> None:
        self._turn_over()
        window = self._current
        for account, method, count in parts(call.method, call.request):
            window.total += count
            window.methods.add(method, count)
            if account:
                window.accounts.add(account, count)
                window.shards.add(str(self._shard_of(account)), count)

    def latest(self) -> Window:
        """The last whole interval; before there is one, what there is of the first."""
        self._turn_over()
        if self._last is not None:
            return self._last
        self._current.length_s = self._now_s() - self._current.began_s
        return self._current

    def _turn_over(self) -> None:
        now_s, over_s = self._now_s(), self._current.began_s + INTERVAL_S
        if now_s < over_s:
            return
        ended = self._current
        ended.length_s = INTERVAL_S
        self._current = Window(over_s)
        if now_s >= over_s + INTERVAL_S:  # nothing came for a whole interval, or for many
            ended = Window(now_s - INTERVAL_S, INTERVAL_S)
            self._current = Window(now_s)
        self._last = ended


def parts(method: str, request: Any) -> Iterator[Part]:
    """What a call is about. Many together are told by a sample of them."""
    if isinstance(request, batch_pb2.ExecuteRequest):
        for item, count in _sampled(request.items):
            name = item.WhichOneof("request") or ""
            inner = getattr(item, name, None)
            for account, _, each in parts(method, inner):
                yield account, f"{method} {name}", each * count
    elif isinstance(request, delivery_pb2.DeliverMessagesRequest):
        for delivery, count in _sampled(request.deliveries):
            for recipient, each in _sampled(delivery.recipients):
                yield recipient.account_id, method, each * count
    else:
        yield getattr(request, "account_id", ""), method, 1


def _sampled(many: Any) -> Iterator[tuple[Any, int]]:
    step = -(-len(many) // PARTS_MAX) or 1
    for at in range(0, len(many), step):
        yield many[at], min(step, len(many) - at)

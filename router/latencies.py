"""How long calls take, by kind: the 95th percentile of the newest ones. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

SAMPLES_MAX = 512
# Fewer than this say nothing of one in twenty.
SAMPLES_MIN = 64
# It is worked out again after so many more.
RENEWED_AFTER = 32
KINDS_MAX = 1_024


@dataclass(slots=True)
class _Kind:
    newest: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES_MAX))
    p95_s: float | None = None
    since: int = 0


class Latencies:
    def __init__(self) -> None:
        self._kinds: dict[Hashable, _Kind] = {}

    def took(self, kind: Hashable, took_s: float) -> None:
        """One call of a kind was answered. Kinds beyond KINDS_MAX are not kept."""
        found = self._kinds.get(kind)
        if found is None:
            if len(self._kinds) >= KINDS_MAX:
                return
            found = self._kinds[kind] = _Kind()
        found.newest.append(took_s)
        found.since += 1
        if found.since >= (RENEWED_AFTER if found.p95_s is not None else SAMPLES_MIN):
            found.since = 0
            ordered = sorted(found.newest)
            found.p95_s = ordered[len(ordered) * 95 // 100]

    def p95_s(self, kind: Hashable) -> float | None:
        """None while too few are known."""
        found = self._kinds.get(kind)
        return None if found is None else found.p95_s

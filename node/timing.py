"""Where the time of an entry goes: its stages, from the call that waits for it to its answer.

Kept for every entry of a leader, at a few clock readings each, whatever travels in it: metrics and
the slow log live on it, and traces make their spans of it afterwards.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from mailraft.wire import observed, tracing

QUEUE, FLUSH, REPLICATION, APPLY = STAGES = ("queue", "flush", "replication", "apply")
# Entries whose flush is awaited; more than a node can have open. Past it the oldest is not timed.
UNFLUSHED_MAX = 65_536


@dataclass(slots=True)
class EntryTimes:
    """When an entry passed each stage here, on the node's clock. 0: not yet."""

    written_s: float = 0.0  # placed in the log and written, not synced
    flushed_s: float = 0.0
    committed_s: float = 0.0
    applied_s: float = 0.0

    def stages(self, since_s: float) -> list[tuple[str, float, float]]:
        """(stage, from, to), one behind the other, of a command that came at since_s.

        A flush that ends after the majority has committed without it was not waited for longer
        than that.
        """
        flushed_s = min(self.flushed_s or self.committed_s, self.committed_s)
        at = (since_s, self.written_s, flushed_s, self.committed_s, self.applied_s)
        return [(name, at[i], max(at[i], at[i + 1])) for i, name in enumerate(STAGES)]


class Flushes:
    """Entries that are written and not on disk yet."""

    def __init__(self) -> None:
        self._open: deque[tuple[int, EntryTimes]] = deque(maxlen=UNFLUSHED_MAX)

    def written(self, sequence: int, times: EntryTimes, now_s: float) -> None:
        times.written_s = now_s
        self._open.append((sequence, times))

    def flushed(self, durable: int, now_s: float) -> None:
        """Everything up to this sequence number is on disk."""
        while self._open and self._open[0][0] <= durable:
            self._open.popleft()[1].flushed_s = now_s


def answered(shard: int, since_s: float, times: EntryTimes, *, now_s: float) -> None:
    """Tells the call that is served here, and its trace, what its entry took."""
    stages = times.stages(since_s)
    call = observed.current()
    if call is not None:
        call.committed(shard, {name: ended_s - began_s for name, began_s, ended_s in stages})
    parent = tracing.recorded()
    if parent:
        for name, began_s, ended_s in stages:
            tracing.past(parent, name, began_s, ended_s, now_s=now_s)

"""When the log is compacted, and up to where: a pure function of sizes and match indexes (row 15).

The state is on disk already, so compaction only moves the start of the log. What it gives back are
entries without their bodies, and those are what is counted here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

# Sizes are kept per run of entries: a run ends behind the entry that passes one of these.
RUN_ENTRIES = 64
RUN_BYTES = 64 * 1024
# A compaction that gives back less than this share of a limit is not worth its write.
STEP = 8


@dataclass(frozen=True, slots=True)
class CompactionLimits:
    """The log is cut when it passes entries_max or bytes_max, back to about half of either.

    What a connected follower still lacks is kept up to follower_bytes_max: past it the follower
    gets a snapshot instead.
    """

    entries_max: int = 20_000
    bytes_max: int = 32 * 1024 * 1024
    follower_bytes_max: int = 128 * 1024 * 1024


@dataclass(slots=True)
class _Run:
    last_index: int
    entries: int
    size_bytes: int


class LogSizes:
    """About how many bytes the log holds above any index, in memory and in steps of a run."""

    def __init__(self, base_index: int, last_index: int, size_bytes: int) -> None:
        """A log of which only the whole is known is taken to be evenly spread."""
        self._runs: deque[_Run] = deque()
        self.size_bytes = size_bytes
        count = last_index - base_index
        first = base_index
        while first < last_index:
            last = min(first + RUN_ENTRIES, last_index)
            share = size_bytes * (last - base_index) // count - (
                size_bytes * (first - base_index) // count
            )
            self._runs.append(_Run(last, last - first, share))
            first = last

    def add(self, index: int, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        run = self._runs[-1] if self._runs else None
        if run is None or run.entries >= RUN_ENTRIES or run.size_bytes >= RUN_BYTES:
            self._runs.append(_Run(index, 1, size_bytes))
        else:
            run.last_index, run.entries = index, run.entries + 1
            run.size_bytes += size_bytes

    def truncate(self, first_index: int) -> None:
        """Entries from first_index on are gone."""
        while self._runs and self._runs[-1].last_index >= first_index:
            run = self._runs[-1]
            left = run.entries - (run.last_index - first_index + 1)
            if left <= 0:
                self.size_bytes -= self._runs.pop().size_bytes
            else:
                self._shrink(run, left)
                run.last_index = first_index - 1

    def compact(self, through_index: int) -> None:
        """Entries up to through_index are gone."""
        while self._runs:
            run = self._runs[0]
            left = run.last_index - through_index
            if left >= run.entries:
                return
            if left > 0:
                self._shrink(run, left)
                return
            self.size_bytes -= self._runs.popleft().size_bytes

    def index_leaving(self, size_bytes: int) -> int:
        """The lowest known index above which at most size_bytes lie; 0 when all does."""
        above = 0
        for run in reversed(self._runs):
            above += run.size_bytes
            if above > size_bytes:
                return run.last_index
        return 0

    def _shrink(self, run: _Run, entries: int) -> None:
        kept = run.size_bytes * entries // run.entries
        self.size_bytes -= run.size_bytes - kept
        run.size_bytes, run.entries = kept, entries


def compact_through(
    sizes: LogSizes,
    *,
    base_index: int,
    applied_index: int,
    last_index: int,
    needed_from: Iterable[int],
    limits: CompactionLimits,
) -> int | None:
    """The index to move the start of the log to, or None to leave it.

    `needed_from` are the indexes that connected followers and outgoing snapshots go on from.
    """
    entries = last_index - base_index
    if entries <= limits.entries_max and sizes.size_bytes <= limits.bytes_max:
        return None
    # Half of the log stays for followers that fall a little behind, now or under a later leader.
    keep = max(last_index - limits.entries_max // 2, sizes.index_leaving(limits.bytes_max // 2))
    needed = max(
        min(needed_from, default=last_index), sizes.index_leaving(limits.follower_bytes_max)
    )
    through = min(keep, needed, applied_index)
    over_entries = through - base_index >= max(1, limits.entries_max // STEP)
    over_bytes = (
        through > base_index
        and sizes.size_bytes > limits.bytes_max
        and sizes.index_leaving(sizes.size_bytes - limits.bytes_max // STEP) <= through
    )
    return through if over_entries or over_bytes else None

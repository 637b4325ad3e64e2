"""Deadlines that are passed on: each server answers a moment before its caller gives up."""

from __future__ import annotations

from mailraft.wire import limits

MARGIN_S, MARGIN_SHARE = 0.1, 0.05


def passed_on(remaining_s: float | None) -> float:
    """How long a server may take for a call whose caller waits so long (None: did not say).

    Its own answer says more than DEADLINE_EXCEEDED: COMMIT_UNKNOWN, who leads, what was full. What
    it asks of another server for the call ends at the same moment.
    """
    if remaining_s is None:
        remaining_s = limits.DEADLINE_DEFAULT_MS / 1000
    margin_s = min(MARGIN_S, remaining_s * MARGIN_SHARE)
    return min(remaining_s - margin_s, limits.DEADLINE_MAX_MS / 1000)

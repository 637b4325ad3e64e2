"""Threads collapsed to their first match, without a page's having to know those before it (RFC 8621
section 4.4.3): a match shows if no other match of its thread comes before it in the order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mailraft.internal.v1 import record_pb2

from .filters import Candidate, Test
from .thread_queries import Threads


class Collapse:
    """For one search page, each thread read once. key_of sorts as the search does, unique."""

    def __init__(
        self, threads: Threads, mailbox: int, test: Test, key_of: Callable[[Candidate], Any]
    ) -> None:
        self._threads, self._mailbox = threads, mailbox
        self._test, self._key_of = test, key_of
        # Of each thread: the key of the first match, and those before it of which nothing is known.
        self._known: dict[int, tuple[Any, list[tuple[Any, record_pb2.MessageRecord]]]] = {}

    def before(self, candidate: Candidate) -> list[record_pb2.MessageRecord] | None:
        """Those before this one that may match, in order, where only a text tells; None: one does.
        Raises FILTER_UNSUPPORTED as Threads does.
        """
        thread = candidate.record.thread
        if thread not in self._known:
            self._known[thread] = self._read(thread)
        first, unknown = self._known[thread]
        key = self._key_of(candidate)
        if first is not None and first < key:
            return None
        return [record for other, record in unknown if other < key]

    def _read(self, thread: int) -> tuple[Any, list[tuple[Any, record_pb2.MessageRecord]]]:
        first: Any = None
        unknown = []
        for record in self._threads.records(thread):
            if self._mailbox and all(m.mailbox != self._mailbox for m in record.memberships):
                continue
            candidate = Candidate(record)
            matches = self._test(candidate)
            if matches is False:
                continue
            key = self._key_of(candidate)
            if matches is None:
                unknown.append((key, record))
            elif first is None or key < first:
                first = key
        unknown.sort(key=lambda each: each[0])
        return first, unknown

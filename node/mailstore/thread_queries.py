"""Reads of threads (RFC 8621 section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import View

from . import queries, visible
from .account_change import prefix_of
from .filters import unsupported

MESSAGES_MAX = 1_000  # of one thread: the newest
# Of all threads that one search page asks for, each read once: about 200 ms.
READ_MAX = 10_000
_ROWS_AT_ONCE = 64  # no scan stays open while others are read


def members(view: View, account_id: str, thread: int) -> list[record_pb2.MessageRecord]:
    """The newest messages of a thread by received time, oldest first; none: no such thread."""
    prefix = prefix_of(account_id)
    without = visible.hidden(view, prefix, queries.account(view, account_id))
    found = list(islice(_newest(view, prefix, thread, without), MESSAGES_MAX))
    found.sort(key=lambda each: (each.internal_time_ms, each.message))
    return found


def _newest(
    view: View, prefix: bytes, thread: int, without: visible.Hidden
) -> Iterator[record_pb2.MessageRecord]:
    """Every message of a thread, the last one stored first."""
    start = keys.thread_member(prefix, thread)
    end = keys.after(start[:-8])
    while chunk := [key for key, _ in islice(view.scan(start, end, reverse=True), _ROWS_AT_ONCE)]:
        for key in chunk:
            stored = view.get(keys.message_record(prefix, keys.message_of(key)))
            assert stored is not None, f"thread {thread} names a message that is not there"
            record = visible.message(stored, without)
            if record is not None:
                yield record
        end = chunk[-1]


class Threads:
    """Reads whole threads for one search page, in bounded work: each counts once."""

    def __init__(self, view: View, account_id: str) -> None:
        self._view, self._prefix = view, prefix_of(account_id)
        self._without = visible.hidden(view, self._prefix, queries.account(view, account_id))
        self._keywords: dict[int, tuple[frozenset[str], frozenset[str]]] = {}
        self._counted: set[int] = set()
        self.read = 0  # messages, so far

    def __contains__(self, thread: int) -> bool:
        return thread in self._counted

    def records(self, thread: int) -> Iterator[record_pb2.MessageRecord]:
        """All messages of it, hidden ones aside, the last one stored first. Raises
        FILTER_UNSUPPORTED above READ_MAX messages in all.
        """
        counts = thread not in self._counted
        self._counted.add(thread)
        for record in _newest(self._view, self._prefix, thread, self._without):
            self.read += counts
            if self.read > READ_MAX:
                raise unsupported(f"a condition on threads of more than {READ_MAX} messages")
            yield record

    def keywords_of(self, thread: int) -> tuple[frozenset[str], frozenset[str]]:
        """What all messages of it have, and what some have. A thread that was asked for before is
        told again without the view. Raises as records() does.
        """
        if thread in self._keywords:
            return self._keywords[thread]
        everywhere: frozenset[str] | None = None
        somewhere: set[str] = set()
        for record in self.records(thread):
            own = frozenset(record.keywords)
            everywhere = own if everywhere is None else everywhere & own
            somewhere |= own
        found = self._keywords[thread] = (everywhere or frozenset(), frozenset(somewhere))
        return found

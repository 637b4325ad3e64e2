"""Reads of threads (RFC 8621 section 3)."""

from __future__ import annotations

from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import View

from . import queries, visible
from .account_change import prefix_of

MESSAGES_MAX = 1_000  # of one thread: the newest


def members(view: View, account_id: str, thread: int) -> list[record_pb2.MessageRecord]:
    """The newest messages of a thread by received time, oldest first; none: no such thread."""
    prefix = prefix_of(account_id)
    without = visible.hidden(view, prefix, queries.account(view, account_id))
    rows = view.scan(
        keys.thread_member(prefix, thread), keys.thread_member(prefix, thread + 1), reverse=True
    )
    found: list[record_pb2.MessageRecord] = []
    for key, _ in rows:
        if len(found) == MESSAGES_MAX:
            break
        stored = view.get(keys.message_record(prefix, keys.message_of(key)))
        assert stored is not None, f"thread {thread} names a message that is not there"
        record = visible.message(stored, without)
        if record is not None:
            found.append(record)
    found.sort(key=lambda each: (each.internal_time_ms, each.message))
    return found

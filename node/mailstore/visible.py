"""What readers see while a large mailbox that was deleted is still being cleared.

The mailbox is gone at once; its messages leave it a thousand at a time. Until then a message
record may still name it: readers pass over such memberships, and over a message that has no other.
Every read of a message record goes through here, but those of a mailbox' own index, since a
mailbox that is there is not being cleared.
"""

from __future__ import annotations

from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import View

Hidden = frozenset[int]
_NOTHING: Hidden = frozenset()


def hidden(view: View, prefix: bytes, account: record_pb2.AccountRecord) -> Hidden:
    """Mailboxes of an account that are being cleared: nearly always none, which costs nothing."""
    if not account.doomed_mailboxes:
        return _NOTHING
    start = keys.doomed_mailbox(prefix)
    rows = view.scan(start, keys.after(start[:-4]))
    return frozenset(int.from_bytes(key[-4:]) for key, _ in rows)


def stored_message(stored: bytes, without: Hidden) -> bytes | None:
    """The same as `message`, not opened: nearly always the very bytes that are stored."""
    if not without:
        return stored
    record = message(stored, without)
    return None if record is None else record.SerializeToString()


def message(stored: bytes, without: Hidden) -> record_pb2.MessageRecord | None:
    """A stored message as readers see it; None when it is in no mailbox that is there."""
    record = record_pb2.MessageRecord.FromString(stored)
    if without:
        kept = [each for each in record.memberships if each.mailbox not in without]
        del record.memberships[:]
        record.memberships.extend(kept)
        if not kept:
            return None
    return record

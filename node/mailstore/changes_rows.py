"""The rows that tell what changed within one mailbox, at the cost of what changed (QRESYNC).

    touched (mailbox, MODSEQ, UID) -> message number, u64
        One row for every message in the mailbox, under MembershipRecord.modseq: the last change
        that this mailbox shows of it (it came in, its keywords, its flag Deleted). A later change
        moves the row. So the rows above a MODSEQ are each message that changed since, once, in
        MODSEQ order, and the rows above 0 are the whole mailbox.

    vanished (mailbox, MODSEQ, UID) -> empty
        One row for every UID that left the mailbox (expunged, moved away, taken out), under the
        MODSEQ of the change that removed it. A UID never comes back, so it has at most one row.

    ListMailboxChanges(since) = both scanned from (mailbox, since + 1), merged by MODSEQ (RFC 7162
    section 3.2.5). All rows of one command have its MODSEQ, so a page that ends between two
    MODSEQs never splits a command.

    Trimming removes vanished rows up to AccountRecord.trimmed_modseq, together with the change
    records up to there: a `since` below trimmed_modseq is STATE_TOO_OLD. touched rows stay.

    A mailbox that is deleted loses all its rows with the last of its messages. The mailbox record
    goes first: no reader gets here without it.

For threads: thread_member (thread, message) -> empty, one row for every message that is in a
mailbox, in message (so delivery) order. For the change feed: ObjectChange.thread of a message that
was created or destroyed; an id that was destroyed may be created again, by undeletion.
"""

from __future__ import annotations

from mailraft.node.engine import keys

from .overlay import Overlay


def touch(
    overlay: Overlay, prefix: bytes, mailbox: int, uid: int, message: int, before: int, modseq: int
) -> None:
    """The mailbox shows a change of a message; `before` is the last one's MODSEQ, 0 for none."""
    if before == modseq:
        return
    if before:
        overlay.delete(keys.touched(prefix, mailbox, before, uid))
    overlay.put(keys.touched(prefix, mailbox, modseq, uid), keys.U64.pack(message))


def vanish(
    overlay: Overlay, prefix: bytes, mailbox: int, uid: int, before: int, modseq: int
) -> None:
    """A UID left the mailbox; its last change there was under `before`."""
    overlay.delete(keys.touched(prefix, mailbox, before, uid))
    overlay.put(keys.vanished(prefix, mailbox, modseq, uid), b"")


def trim(overlay: Overlay, prefix: bytes, mailbox: int, modseq: int) -> None:
    """Forget which UIDs vanished up to a MODSEQ."""
    overlay.delete_range(keys.vanished(prefix, mailbox), keys.vanished(prefix, mailbox, modseq + 1))


def forget(overlay: Overlay, prefix: bytes, mailbox: int) -> None:
    """The mailbox is gone."""
    for family in (keys.touched, keys.vanished):
        overlay.delete_range(family(prefix, mailbox), family(prefix, mailbox + 1))

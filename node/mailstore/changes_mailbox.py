"""What changed in one mailbox: reads of the rows of changes_rows.py (QRESYNC, RFC 7162)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby

from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import View

from . import queries
from .account_change import prefix_of
from .changes import state_too_old

# Set in a MODSEQ (which is below 2^63) while a client that knew nothing is told page by page: what
# vanished before it began is nothing to it, so that tombstones that are gone are no gap.
FROM_NOTHING = 1 << 63
# What a page's changes may say; past it the page ends where the next MODSEQ begins.
PAGE_MAX_BYTES = 2 * 1024 * 1024
_CHANGE_BYTES = 48  # of one without keywords


@dataclass(frozen=True, slots=True)
class Shown:
    """A message as the mailbox shows it."""

    uid: int
    message: int
    modseq: int
    keywords: Sequence[str]
    deleted: bool


@dataclass(slots=True)
class MailboxChanges:
    mailbox: record_pb2.MailboxRecord
    changed: list[Shown] = field(default_factory=list)
    vanished: list[int] = field(default_factory=list)  # UIDs, ascending
    modseq: int = 0  # what is known with this page; the next `since`
    more: bool = False


def mailbox_changes(
    view: View, account_id: str, number: int, uid_validity: int, since: int, count: int
) -> MailboxChanges:
    """What changed behind the MODSEQ `since` (0: the whole mailbox), by rising MODSEQ, in about
    `count` changes: a page never ends within the changes of one MODSEQ.

    Raises UID_VALIDITY_MISMATCH, STATE_TOO_OLD.
    """
    record = queries.mailbox(view, account_id, number)
    queries.check_uid_validity(record, uid_validity)
    prefix = prefix_of(account_id)
    from_nothing = not since or bool(since & FROM_NOTHING)
    since &= ~FROM_NOTHING
    # Whoever knows its last change misses nothing, however long ago that was.
    gap_below = min(queries.account(view, account_id).trimmed_modseq, record.highest_modseq)
    if not from_nothing and since < gap_below:
        raise state_too_old("vanished UIDs of that time are no longer held")
    page = MailboxChanges(record, modseq=max(since, record.highest_modseq))
    size_bytes = told = 0
    last = since
    for modseq, rows in groupby(_rows(view, prefix, number, since), key=lambda row: row[0]):
        if told and (told >= count or size_bytes > PAGE_MAX_BYTES):
            page.more = True
            page.modseq = last | (FROM_NOTHING if from_nothing else 0)
            break
        for _, uid, message in rows:
            told += 1
            if message is None:
                page.vanished.append(uid)
                continue
            shown = _shown(view, prefix, number, uid, message)
            page.changed.append(shown)
            size_bytes += _CHANGE_BYTES + sum(map(len, shown.keywords))
        last = modseq
    page.vanished.sort()
    return page


def ranges(uids: Sequence[int], known: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ascending UIDs as inclusive ranges, of those in `known` only (none: all)."""
    found: list[tuple[int, int]] = []
    place = 0
    for uid in uids:
        while place < len(known) and known[place][1] < uid:
            place += 1
        if known and (place == len(known) or uid < known[place][0]):
            continue
        if found and found[-1][1] == uid - 1:
            found[-1] = found[-1][0], uid
        else:
            found.append((uid, uid))
    return found


def _rows(
    view: View, prefix: bytes, number: int, since: int
) -> Iterator[tuple[int, int, bytes | None]]:
    """(MODSEQ, UID, message or None) of what changed and of what vanished, by rising MODSEQ."""
    touched = view.scan(keys.touched(prefix, number, since + 1), keys.touched(prefix, number + 1))
    vanished = view.scan(
        keys.vanished(prefix, number, since + 1), keys.vanished(prefix, number + 1)
    )
    changes = ((*keys.mailbox_change_of(key), value) for key, value in touched)
    if not since:
        return changes  # whoever knows nothing misses nothing that vanished
    gone = ((*keys.mailbox_change_of(key), None) for key, _ in vanished)
    return merge(changes, gone, key=lambda row: row[:2])


def _shown(view: View, prefix: bytes, number: int, uid: int, target: bytes) -> Shown:
    message = int(keys.U64.unpack(target)[0])
    stored = view.get(keys.message_record(prefix, message))
    assert stored is not None, f"a change names message {message}, which is not there"
    record = record_pb2.MessageRecord.FromString(stored)
    member = next(each for each in record.memberships if each.mailbox == number)
    assert member.uid == uid, f"message {message} has UID {member.uid}, not {uid}"
    return Shown(uid, message, member.modseq, record.keywords, member.deleted)

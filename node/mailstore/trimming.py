"""Forgetting changes that are older than anybody may ask for (rules.CHANGES_KEPT_MS).

A state from before answers STATE_TOO_OLD: what is forgotten is remembered as forgotten.
"""

from __future__ import annotations

from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys

from . import changes_rows, chores, rules
from .account_change import AccountChange

_MAILBOX = record_pb2.OBJECT_KIND_MAILBOX


def trim(account: AccountChange, due_ms: int) -> bool:
    """Removes at most 1,000 change records and the vanished UIDs of as many MODSEQs; whether there
    are more that are old enough. An account that nobody changes any more needs no further look.
    """
    record, overlay, prefix = account.record, account.overlay, account.prefix
    if record.trim_due_ms != due_ms:
        return False
    oldest_ms = account.context.now_ms - rules.CHANGES_KEPT_MS
    mailboxes: set[int] = set()
    last = next_ms = 0
    start = keys.change(prefix)
    for count, (key, value) in enumerate(overlay.scan(start, keys.after(start[:-8]))):
        change = record_pb2.ChangeRecord.FromString(value)
        if change.time_ms > oldest_ms or count >= rules.MESSAGES_PER_COMMAND_MAX:
            next_ms = change.time_ms
            break
        last = int(keys.U64.unpack(key[-8:])[0])
        mailboxes.update(each.number for each in change.changes if each.object == _MAILBOX)
    if last:
        overlay.delete_range(start, keys.change(prefix, last + 1))
        record.trimmed_modseq = last
        for mailbox in sorted(mailboxes):
            changes_rows.trim(overlay, prefix, mailbox, last)
    if next_ms and next_ms <= oldest_ms:
        return True
    record.trim_due_ms = 0
    if next_ms:
        record.trim_due_ms = next_ms + rules.CHANGES_KEPT_MS + rules.TRIM_STEP_MS
        chores.enqueue(overlay, record.trim_due_ms, chores.TRIM_CHANGES, prefix)
    return False

"""Taking messages away, keeping them for a while, bringing them back.

A message that leaves its last mailbox is destroyed: it is in no list, has no UID and uses no quota.
For the undelete window of the mailboxes that it was in (the longest) it is kept as an expunged row
with its last memberships; it still refers to its body. A message that only leaves one of several
mailboxes is not lost, and nothing is kept of that.

What is kept is bounded by the account's quota: while more than quota_bytes would be kept, a message
is gone at once when it is expunged.
"""

from __future__ import annotations

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys

from . import blobs, chores, memberships, rules, selection, threads
from .account_change import AccountChange, open_account
from .context import Context
from .errors import bad_field, check_reply
from .overlay import Overlay
from .selection import Selected

_MESSAGE = record_pb2.OBJECT_KIND_MESSAGE
ANY_MAILBOX = 0  # of expunged_at rows


def expunge(
    overlay: Overlay, context: Context, command: command_pb2.ExpungeMessages
) -> command_pb2.Reply:
    """By id from all mailboxes; by UID from that one (UID EXPUNGE, RFC 9051 section 6.4.9)."""
    by_uid = command.messages.HasField("uids")
    if command.only_deleted and not by_uid:
        raise bad_field("only_deleted: with UIDs only")
    account = open_account(overlay, context, command)
    selected = selection.select(account, command.messages)
    outcome = command_pb2.ExpungeOutcome(
        not_found=selected.not_found, resume_uid=selected.resume_uid
    )
    for each in selected.found:
        place = each.membership
        if command.only_deleted and (place is None or not place.deleted):
            continue
        if take_out(account, each):
            outcome.destroyed.append(each.message.message)
        if by_uid:
            _add_uid(outcome, each.uid)
    if by_uid:
        outcome.highest_modseq = account.read_mailbox(selected.mailbox).highest_modseq
    state = account.close()
    check_reply(outcome)
    return command_pb2.Reply(format=rules.FORMAT, expunged=outcome, state=state)


def take_out(account: AccountChange, each: Selected) -> bool:
    """Out of the mailbox that it was selected in, or out of all; whether it was destroyed."""
    message = selection.edit(account, each.message.message)
    last = record_pb2.MessageRecord()
    last.CopyFrom(message)
    for place in list(message.memberships):
        if each.membership is None or place.mailbox == each.membership.mailbox:
            memberships.leave(account, message, place)
    if message.memberships:
        account.message_changed(message)
        return False
    destroy(account, last)
    return True


def destroy(account: AccountChange, last: record_pb2.MessageRecord) -> None:
    """A message that left its last mailbox, as it was before."""
    overlay, prefix, record = account.overlay, account.prefix, account.record
    record.used_bytes -= last.size_bytes
    record.used_messages -= 1
    overlay.delete(keys.message_record(prefix, last.message))
    overlay.delete(keys.thread_member(prefix, last.thread, last.message))
    account.destroyed(_MESSAGE, last.message, thread=last.thread)
    window_ms = max(_window_ms(account, place.mailbox) for place in last.memberships)
    if not window_ms or 0 < record.quota_bytes < record.kept_bytes + last.size_bytes:
        _let_go(account, last)
    else:
        _keep(account, last, window_ms)


def _window_ms(account: AccountChange, number: int) -> int:
    for key in (keys.mailbox_record, keys.doomed_mailbox):
        mailbox = account.overlay.read(key(account.prefix, number), record_pb2.MailboxRecord)
        if mailbox is not None and mailbox.retention.HasField("undelete_window_ms"):
            return mailbox.retention.undelete_window_ms
    return account.record.undelete_window_ms or account.context.undelete_window_ms


def _keep(account: AccountChange, last: record_pb2.MessageRecord, window_ms: int) -> None:
    now_ms = account.context.now_ms
    row = record_pb2.ExpungedRecord(
        format=rules.FORMAT,
        message=last,
        expunged_ms=now_ms,
        expires_ms=min(now_ms + window_ms, rules.LATEST_MS),
        modseq=account.modseq,
    )
    overlay, prefix = account.overlay, account.prefix
    overlay.put(keys.expunged(prefix, last.message), row)
    for key in _index_rows(prefix, row):
        overlay.put(key, b"")
    # One chore for all that expires within a step: a row each would double the work.
    step = -(-row.expires_ms // rules.FORGET_STEP_MS)
    chores.enqueue(overlay, step * rules.FORGET_STEP_MS, chores.FORGET_EXPUNGED, prefix)
    account.record.kept_bytes += last.size_bytes
    account.record.kept_messages += 1


def unkeep(account: AccountChange, row: record_pb2.ExpungedRecord) -> None:
    """The row goes: the message comes back, or is let go."""
    overlay, prefix = account.overlay, account.prefix
    overlay.delete(keys.expunged(prefix, row.message.message))
    for key in _index_rows(prefix, row):
        overlay.delete(key)
    account.record.kept_bytes -= row.message.size_bytes
    account.record.kept_messages -= 1


def _index_rows(prefix: bytes, row: record_pb2.ExpungedRecord) -> list[bytes]:
    number = row.message.message
    boxes = {ANY_MAILBOX, *(place.mailbox for place in row.message.memberships)}
    return [
        keys.expires(prefix, row.expires_ms, number),
        *(keys.expunged_at(prefix, box, row.modseq, number) for box in sorted(boxes)),
    ]


def _let_go(account: AccountChange, message: record_pb2.MessageRecord) -> None:
    threads.leave(account.overlay, account.prefix, message.thread_keys)
    blobs.release(account.overlay, account.prefix, message.body, account.context.now_ms)


def forget(account: AccountChange, due_ms: int) -> bool:
    """Lets go of what can be undeleted no more: at most 1,000; whether there is more.

    Nothing that a reader sees changes, so it takes no MODSEQ.
    """
    last_ms = min(due_ms, account.context.now_ms)
    start, end = keys.expires(account.prefix), keys.expires(account.prefix, last_ms + 1)
    for count, (key, _) in enumerate(account.overlay.scan(start, end)):
        if count >= rules.MESSAGES_PER_COMMAND_MAX:
            return True
        row = expunged_row(account, keys.message_of(key))
        assert row is not None, "an expiry row of a message that is not kept"
        unkeep(account, row)
        _let_go(account, row.message)
    return False


def expunged_row(account: AccountChange, number: int) -> record_pb2.ExpungedRecord | None:
    key = keys.expunged(account.prefix, number)
    return account.overlay.read(key, record_pb2.ExpungedRecord)


def _add_uid(outcome: command_pb2.ExpungeOutcome, uid: int) -> None:
    if outcome.vanished and outcome.vanished[-1] == uid - 1:
        outcome.vanished[-1] = uid
    else:
        outcome.vanished.extend((uid, uid))

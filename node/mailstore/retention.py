"""How long, and how many, messages stay in a mailbox: a rule, and a chore that applies it."""

from __future__ import annotations

from mailraft.internal.v1 import record_pb2

from . import chores, expunge, memberships, rules, selection
from .account_change import AccountChange
from .selection import Selected


def set_rule(
    account: AccountChange,
    mailbox: record_pb2.MailboxRecord,
    rule: record_pb2.RetentionRule | None,
    *,
    keep_window: bool = False,
) -> None:
    """Replaces the rule, and the chore with it. `keep_window`: all but the undelete window."""
    number = mailbox.mailbox
    if mailbox.retention_due_ms:
        due_ms = mailbox.retention_due_ms
        chores.remove(account.overlay, due_ms, chores.APPLY_RETENTION, account.prefix, number)
        mailbox.retention_due_ms = 0
    if rule is not None:
        mailbox.retention.CopyFrom(rule)
        if removes(rule):
            _schedule(account, mailbox, account.context.now_ms)
    elif keep_window:
        mailbox.retention.ClearField("expunge_after_ms")
        mailbox.retention.ClearField("messages_max")
    else:
        mailbox.ClearField("retention")


def removes(rule: record_pb2.RetentionRule) -> bool:
    return bool(rule.expunge_after_ms or rule.messages_max)


def apply(account: AccountChange, number: int, due_ms: int) -> bool:
    """Expunges what the rule of a mailbox does not let stay, the oldest first: at most 1,000;
    whether there is more. UIDs rise as messages come in, so the oldest have the lowest.
    """
    mailbox = account.mailbox(number)
    if mailbox is None or mailbox.retention_due_ms != due_ms:
        return False  # deleted, or another rule since
    rule, now_ms = mailbox.retention, account.context.now_ms
    surplus = mailbox.total_messages - rule.messages_max if rule.messages_max else 0
    rows = selection.uid_rows(account, number, 1, rules.UINT32_MAX)
    for count, (uid, message_number) in enumerate(rows):
        message = selection.read(account, message_number)
        assert message is not None
        place = memberships.find(message, number)
        assert place is not None
        too_old = rule.expunge_after_ms and place.saved_ms + rule.expunge_after_ms <= now_ms
        if not (too_old or count < surplus):
            break
        if count >= rules.MESSAGES_PER_COMMAND_MAX:
            return True
        expunge.take_out(account, Selected(message, uid, place))
    _schedule(account, mailbox, now_ms + rules.RETENTION_PERIOD_MS)
    return False


def _schedule(account: AccountChange, mailbox: record_pb2.MailboxRecord, due_ms: int) -> None:
    mailbox.retention_due_ms = max(1, due_ms)  # 0: none
    chores.enqueue(
        account.overlay,
        mailbox.retention_due_ms,
        chores.APPLY_RETENTION,
        account.prefix,
        mailbox.mailbox,
    )

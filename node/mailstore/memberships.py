"""The one place where a message gets into a mailbox, out of it, or looks different in it.

Every counter of a mailbox, every index row and the mailbox' own change rows are written here and
nowhere else: so they equal a full scan at every index.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys

from . import changes_rows, rules
from .account_change import AccountChange
from .errors import limit_reached

_MAILBOX = record_pb2.OBJECT_KIND_MAILBOX


def find(message: record_pb2.MessageRecord, mailbox: int) -> record_pb2.MembershipRecord | None:
    """The message's membership of a mailbox: at most one."""
    for membership in message.memberships:
        if membership.mailbox == mailbox:
            return membership
    return None


def join(
    account: AccountChange,
    mailbox: record_pb2.MailboxRecord,
    message: record_pb2.MessageRecord,
    *,
    deleted: bool = False,
) -> record_pb2.MembershipRecord:
    """Gives the message its UID: rising in commit order, never given again (RFC 9051, 2.3.1.1)."""
    number, uid = mailbox.mailbox, mailbox.uid_next
    keywords, memberships = message.keywords, message.memberships
    if uid >= rules.UINT32_MAX:  # UIDNEXT must be above every UID, and is 32 bits itself
        raise limit_reached("UIDs in a mailbox", rules.UINT32_MAX - 1)
    if len(memberships) >= rules.TARGETS_PER_MESSAGE_MAX:
        raise limit_reached("mailboxes a message", rules.TARGETS_PER_MESSAGE_MAX)
    mailbox.uid_next = uid + 1
    mailbox.total_messages += 1
    if not keywords or rules.SEEN not in keywords:
        mailbox.unseen_messages += 1
    if deleted:
        mailbox.deleted_messages += 1
    mailbox.size_bytes += message.size_bytes
    overlay, prefix = account.overlay, account.prefix
    target = keys.U64.pack(message.message)
    overlay.put(keys.uid(prefix, number, uid), target)
    overlay.put(keys.received(prefix, number, message.internal_time_ms, uid), target)
    if keywords:
        _count(account, number, keywords, 1)
    membership = memberships.add()
    membership.mailbox, membership.uid = number, uid
    membership.deleted, membership.saved_ms = deleted, account.context.now_ms
    _touch(account, mailbox, message, membership)
    return membership


def leave(
    account: AccountChange,
    message: record_pb2.MessageRecord,
    membership: record_pb2.MembershipRecord,
) -> None:
    """Takes the message out of a mailbox. Its last membership too: the caller sees to the rest."""
    number, uid = membership.mailbox, membership.uid
    mailbox = account.existing_mailbox(number)
    mailbox.total_messages -= 1
    mailbox.unseen_messages -= rules.SEEN not in message.keywords
    mailbox.deleted_messages -= membership.deleted
    mailbox.size_bytes -= message.size_bytes
    mailbox.highest_modseq = account.modseq
    account.updated(_MAILBOX, number)
    _count(account, number, message.keywords, -1)
    changes_rows.vanish(
        account.overlay, account.prefix, number, uid, membership.modseq, account.modseq
    )
    drop_index(account, message, membership)
    message.memberships.remove(membership)


def drop_index(
    account: AccountChange,
    message: record_pb2.MessageRecord,
    membership: record_pb2.MembershipRecord,
) -> None:
    """The rows that list the message in a mailbox."""
    number, uid = membership.mailbox, membership.uid
    overlay, prefix = account.overlay, account.prefix
    overlay.delete(keys.uid(prefix, number, uid))
    overlay.delete(keys.received(prefix, number, message.internal_time_ms, uid))


def set_keywords(
    account: AccountChange, message: record_pb2.MessageRecord, keywords: Sequence[str]
) -> None:
    """Other keywords, in all its mailboxes at once."""
    before, after = set(message.keywords), set(keywords)
    unseen = (rules.SEEN not in after) - (rules.SEEN not in before)
    del message.keywords[:]
    message.keywords.extend(keywords)
    for membership in message.memberships:
        mailbox = account.existing_mailbox(membership.mailbox)
        mailbox.unseen_messages += unseen
        _count(account, mailbox.mailbox, before - after, -1)
        _count(account, mailbox.mailbox, after - before, 1)
        _touch(account, mailbox, message, membership)


def set_deleted(
    account: AccountChange,
    message: record_pb2.MessageRecord,
    membership: record_pb2.MembershipRecord,
    *,
    deleted: bool,
) -> None:
    """The flag Deleted, of this mailbox only (RFC 9051 section 2.3.2)."""
    mailbox = account.existing_mailbox(membership.mailbox)
    mailbox.deleted_messages += deleted - membership.deleted
    membership.deleted = deleted
    _touch(account, mailbox, message, membership)


def _touch(
    account: AccountChange,
    mailbox: record_pb2.MailboxRecord,
    message: record_pb2.MessageRecord,
    membership: record_pb2.MembershipRecord,
) -> None:
    """The mailbox shows a change of the message under the command's MODSEQ (RFC 7162)."""
    number, modseq = mailbox.mailbox, account.modseq
    changes_rows.touch(
        account.overlay,
        account.prefix,
        number,
        membership.uid,
        message.message,
        membership.modseq,
        modseq,
    )
    membership.modseq = mailbox.highest_modseq = modseq
    account.updated(_MAILBOX, number)


def _count(account: AccountChange, mailbox: int, keywords: Iterable[str], step: int) -> None:
    for keyword in sorted(keywords):
        key = keys.keyword(account.prefix, mailbox, keyword.encode())
        row = account.overlay.edit_or_new(key, record_pb2.KeywordRecord)
        row.messages += step
        if not row.messages:
            account.overlay.delete(key)

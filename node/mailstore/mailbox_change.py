"""Renaming, moving and deleting mailboxes.

A mailbox is known by its number; names lie in rows of their own under (parent, name). So a rename
moves one row, and whatever is below follows, since it names its parent by number.
"""

from __future__ import annotations

from itertools import islice

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.v1 import common_pb2, error_pb2

from . import changes_rows, chores, expunge, memberships, retention, rules
from .account_change import AccountChange, open_account
from .context import Context
from .errors import Refused, bad_field, limit_reached, mailbox_not_found
from .overlay import Overlay

_MAILBOX = record_pb2.OBJECT_KIND_MAILBOX
_TOP = 0  # the parent of top-level mailboxes
_NO_ROLE = common_pb2.MAILBOX_ROLE_UNSPECIFIED
_INBOX = common_pb2.MAILBOX_ROLE_INBOX


def update(
    overlay: Overlay, context: Context, command: command_pb2.UpdateMailbox
) -> command_pb2.Reply:
    """Changes what the command sets. UIDs, UIDVALIDITY and HIGHESTMODSEQ stay as they are."""
    account = open_account(overlay, context, command)
    mailbox = account.existing_mailbox(command.mailbox)
    if command.HasField("if_object"):
        account.check_object(command.if_object, mailbox.object_modseq, "mailbox")
    if command.HasField("parent") or command.HasField("name"):
        _place(account, mailbox, command)
    if command.HasField("role") and command.role != mailbox.role:
        _set_role(account, mailbox, command.role)
    if command.HasField("subscribed"):
        mailbox.subscribed = command.subscribed
    if command.HasField("sort_order"):
        mailbox.sort_order = command.sort_order
    if command.set_attributes:
        attributes = rules.attributes(command.attributes)
        del mailbox.attributes[:]
        mailbox.attributes.extend(attributes)
    if command.set_retention:
        rule = command.retention if command.HasField("retention") else None
        retention.set_rule(account, mailbox, rule)
    mailbox.object_modseq = account.modseq
    account.updated(_MAILBOX, mailbox.mailbox)
    state = account.close()
    return command_pb2.Reply(format=rules.FORMAT, mailbox=mailbox, state=state)


def take_name(account: AccountChange, parent: int, name: bytes, number: int) -> None:
    """Siblings have different names."""
    key = keys.mailbox_name(account.prefix, parent, name)
    if account.overlay.get(key) is not None:
        raise Refused(error_pb2.ERROR_REASON_MAILBOX_EXISTS, "a sibling of that name exists")
    account.overlay.put(key, keys.U32.pack(number))


def take_role(account: AccountChange, role: int, number: int) -> None:
    """At most one mailbox has a role (RFC 8621 section 2)."""
    key = keys.mailbox_role(account.prefix, role)
    if account.overlay.get(key) is not None:
        raise Refused(error_pb2.ERROR_REASON_MAILBOX_ROLE_EXISTS, "another mailbox has that role")
    account.overlay.put(key, keys.U32.pack(number))


def depth_below(account: AccountChange, parent: int, moved: int = 0) -> int:
    """The level of a mailbox under `parent`, 1 at the top. `moved` must not be above it."""
    depth = 1
    while parent != _TOP:
        if parent == moved:
            raise bad_field("parent_id: neither itself nor one below")
        key = keys.mailbox_record(account.prefix, parent)
        mailbox = account.overlay.read(key, record_pb2.MailboxRecord)
        if mailbox is None:
            raise mailbox_not_found("no such parent")
        parent = mailbox.parent
        depth += 1
        if depth > rules.MAILBOX_DEPTH_MAX:
            raise limit_reached("levels of mailboxes", rules.MAILBOX_DEPTH_MAX)
    return depth


def _place(
    account: AccountChange, mailbox: record_pb2.MailboxRecord, command: command_pb2.UpdateMailbox
) -> None:
    parent = command.parent if command.HasField("parent") else mailbox.parent
    name = command.name if command.HasField("name") else mailbox.name
    encoded = rules.mailbox_name(name)
    if (parent, name) == (mailbox.parent, mailbox.name):
        return
    if parent != mailbox.parent:
        depth = depth_below(account, parent, mailbox.mailbox)
        _check_height(account, mailbox.mailbox, rules.MAILBOX_DEPTH_MAX - depth)
    take_name(account, parent, encoded, mailbox.mailbox)
    _drop_name(account, mailbox)
    mailbox.parent, mailbox.name = parent, name


def _check_height(account: AccountChange, number: int, levels: int) -> None:
    """That what is below a mailbox has at most so many levels. It has no more mailboxes than an
    account may, each looked at once.
    """
    level = [number]
    while level := [child for each in level for child in _children(account, each)]:
        levels -= 1
        if levels < 0:
            raise limit_reached("levels of mailboxes", rules.MAILBOX_DEPTH_MAX)


def _children(account: AccountChange, number: int, count: int | None = None) -> list[int]:
    start = keys.mailbox_name(account.prefix, number)
    rows = account.overlay.scan(start, keys.after(start))
    return [int.from_bytes(value) for _, value in islice(rows, count)]


def _drop_name(account: AccountChange, mailbox: record_pb2.MailboxRecord) -> None:
    name = mailbox.name.encode()
    account.overlay.delete(keys.mailbox_name(account.prefix, mailbox.parent, name))


def _set_role(account: AccountChange, mailbox: record_pb2.MailboxRecord, role: int) -> None:
    if mailbox.role == _INBOX:
        raise bad_field("role: the INBOX keeps its role")
    if role != _NO_ROLE:
        take_role(account, role, mailbox.mailbox)
    if mailbox.role != _NO_ROLE:
        account.overlay.delete(keys.mailbox_role(account.prefix, mailbox.role))
    mailbox.role = role


# ---- deleting ------------------------------------------------------------------------------------


def delete(
    overlay: Overlay, context: Context, command: command_pb2.DeleteMailbox
) -> command_pb2.Reply:
    """Gone for every reader with this command. What one command cannot take out is a chore."""
    account = open_account(overlay, context, command)
    mailbox = account.existing_mailbox(command.mailbox)
    if mailbox.role == _INBOX:
        raise bad_field("mailbox_id: the INBOX cannot be deleted")
    if command.HasField("if_object"):
        account.check_object(command.if_object, mailbox.object_modseq, "mailbox")
    if _children(account, mailbox.mailbox, 1):
        raise Refused(error_pb2.ERROR_REASON_MAILBOX_HAS_CHILDREN, "the mailbox has children")
    if mailbox.total_messages and not command.force:
        raise Refused(error_pb2.ERROR_REASON_MAILBOX_NOT_EMPTY, "the mailbox holds messages")
    prefix = account.prefix
    _drop_name(account, mailbox)
    if mailbox.role != _NO_ROLE:
        overlay.delete(keys.mailbox_role(prefix, mailbox.role))
    retention.set_rule(account, mailbox, None, keep_window=True)
    overlay.delete(keys.mailbox_record(prefix, mailbox.mailbox))
    overlay.put(keys.doomed_mailbox(prefix, mailbox.mailbox), mailbox)
    account.record.mailbox_count -= 1
    account.record.doomed_mailboxes += 1
    account.destroyed(_MAILBOX, mailbox.mailbox)
    if clear(account, mailbox.mailbox):
        chores.enqueue(overlay, chores.NOW, chores.CLEAR_MAILBOX, prefix, mailbox.mailbox)
    state = account.close()
    return command_pb2.Reply(format=rules.FORMAT, deleted=command_pb2.DeleteOutcome(), state=state)


def clear(account: AccountChange, number: int) -> bool:
    """Takes messages out of a deleted mailbox, at most 1,000; whether there are more.

    Its counters and change rows are not kept up: nobody can ask for them.
    """
    overlay, prefix = account.overlay, account.prefix
    start = keys.uid_mailbox(prefix, number)
    for count, (_, value) in enumerate(overlay.scan(start, keys.after(start))):
        if count >= rules.MESSAGES_PER_COMMAND_MAX:
            return True
        _clear_one(account, number, int(keys.U64.unpack(value)[0]))
    changes_rows.forget(overlay, prefix, number)
    words = keys.keyword(prefix, number)
    overlay.delete_range(words, keys.after(words))
    overlay.delete(keys.doomed_mailbox(prefix, number))
    account.record.doomed_mailboxes -= 1
    return False


def _clear_one(account: AccountChange, mailbox: int, number: int) -> None:
    key = keys.message_record(account.prefix, number)
    message = account.overlay.edit(key, record_pb2.MessageRecord)
    assert message is not None, f"a UID names message {number}, which is not there"
    last = record_pb2.MessageRecord()
    last.CopyFrom(message)
    place = memberships.find(message, mailbox)
    assert place is not None
    memberships.drop_index(account, message, place)
    message.memberships.remove(place)
    if message.memberships:
        account.message_changed(message)
    else:
        expunge.destroy(account, last)

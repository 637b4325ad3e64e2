"""Creating accounts and mailboxes, and changing accounts."""

from __future__ import annotations

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.v1 import common_pb2, error_pb2

from . import account_delete, mailbox_change, retention, rules
from .account_change import AccountChange, open_account, prefix_of
from .context import Context
from .errors import Refused, limit_reached
from .overlay import Overlay

_ACCOUNT = record_pb2.OBJECT_KIND_ACCOUNT
_MAILBOX = record_pb2.OBJECT_KIND_MAILBOX

INBOX = 1  # the number of every account's first mailbox
_NO_ROLE = common_pb2.MAILBOX_ROLE_UNSPECIFIED


def create_account(
    overlay: Overlay, context: Context, command: command_pb2.CreateAccount
) -> command_pb2.Reply:
    """An account with an INBOX and nothing else; above all that an earlier one of the name was."""
    prefix = prefix_of(command.account_id)
    key = keys.account_record(prefix)
    if overlay.get(key) is not None:
        raise Refused(error_pb2.ERROR_REASON_ACCOUNT_EXISTS, "an account of that id exists")
    earlier = account_delete.earlier_life(overlay, prefix)
    record = record_pb2.AccountRecord(
        format=rules.FORMAT,
        creation_index=context.entry_index,
        created_ms=context.now_ms,
        quota_bytes=command.quota_bytes,
        quota_messages=command.quota_messages,
        next_mailbox=INBOX,
        next_message=1,
        attributes=rules.attributes(command.attributes),
        undelete_window_ms=command.undelete_window_ms,
        restore_epoch=command.restore_epoch,
        last_uid_validity=command.last_uid_validity,
    )
    if earlier is not None:
        record.restore_epoch = max(command.restore_epoch, earlier.restore_epoch)
        # Deleted and created within one entry it must still be another life.
        record.creation_index = max(context.entry_index, earlier.creation_index + 1)
        record.last_uid_validity = max(command.last_uid_validity, earlier.last_uid_validity)
        record.next_message = earlier.next_message
    overlay.put(key, record)
    account = AccountChange(overlay, context, prefix, record)
    record.object_modseq = account.modseq
    account.created(_ACCOUNT, 0)
    inbox = command_pb2.CreateMailbox(
        name="INBOX", role=common_pb2.MAILBOX_ROLE_INBOX, subscribed=True
    )
    _add_mailbox(account, inbox)
    state = account.close()
    return command_pb2.Reply(format=rules.FORMAT, account=record, state=state)


def update_account(
    overlay: Overlay, context: Context, command: command_pb2.UpdateAccount
) -> command_pb2.Reply:
    """Changes limits and attributes. A quota below what is used only refuses additions."""
    account = open_account(overlay, context, command)
    record = account.record
    if command.HasField("if_object"):
        account.check_object(command.if_object, record.object_modseq, "account")
    if command.HasField("quota_bytes"):
        record.quota_bytes = command.quota_bytes
    if command.HasField("quota_messages"):
        record.quota_messages = command.quota_messages
    if command.HasField("undelete_window_ms"):
        record.undelete_window_ms = command.undelete_window_ms
    if command.set_attributes:
        attributes = rules.attributes(command.attributes)
        del record.attributes[:]
        record.attributes.extend(attributes)
    record.object_modseq = account.modseq
    account.updated(_ACCOUNT, 0)
    state = account.close()
    return command_pb2.Reply(format=rules.FORMAT, account=record, state=state)


def create_mailbox(
    overlay: Overlay, context: Context, command: command_pb2.CreateMailbox
) -> command_pb2.Reply:
    """A mailbox under a number and a UIDVALIDITY that the account never had before."""
    account = open_account(overlay, context, command)
    mailbox = _add_mailbox(account, command)
    state = account.close()
    return command_pb2.Reply(format=rules.FORMAT, mailbox=mailbox, state=state)


def _add_mailbox(
    account: AccountChange, command: command_pb2.CreateMailbox
) -> record_pb2.MailboxRecord:
    record = account.record
    name = rules.mailbox_name(command.name)
    attributes = rules.attributes(command.attributes)
    if record.mailbox_count >= rules.MAILBOXES_PER_ACCOUNT_MAX:
        raise limit_reached("mailboxes", rules.MAILBOXES_PER_ACCOUNT_MAX)
    mailbox_change.depth_below(account, command.parent)
    number = record.next_mailbox
    mailbox_change.take_name(account, command.parent, name, number)
    if command.role != _NO_ROLE:
        mailbox_change.take_role(account, command.role, number)
    mailbox = record_pb2.MailboxRecord(
        format=rules.FORMAT,
        mailbox=number,
        parent=command.parent,
        name=command.name,
        role=command.role,
        subscribed=command.subscribed,
        sort_order=command.sort_order,
        uid_validity=account.next_uid_validity(),
        uid_next=1,
        highest_modseq=account.modseq,
        created_modseq=account.modseq,
        object_modseq=account.modseq,
        attributes=attributes,
    )
    account.overlay.put(keys.mailbox_record(account.prefix, number), mailbox)
    if command.HasField("retention"):
        retention.set_rule(account, mailbox, command.retention)
    record.next_mailbox = number + 1
    record.mailbox_count += 1
    account.created(_MAILBOX, number)
    return mailbox

"""Commands about accounts and mailboxes themselves."""

from __future__ import annotations

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.v1 import common_pb2, error_pb2

from . import rules
from .account_change import AccountChange, prefix_of
from .errors import Refused, limit_reached, mailbox_not_found
from .messages import Context
from .overlay import Overlay

_ACCOUNT = record_pb2.OBJECT_KIND_ACCOUNT
_MAILBOX = record_pb2.OBJECT_KIND_MAILBOX

INBOX = 1  # the number of every account's first mailbox
_TOP = 0  # the parent of top-level mailboxes
_NO_ROLE = common_pb2.MAILBOX_ROLE_UNSPECIFIED


def create_account(
    overlay: Overlay, context: Context, command: command_pb2.CreateAccount
) -> command_pb2.Reply:
    """An account with an INBOX and nothing else."""
    prefix = prefix_of(command.account_id)
    key = keys.account_record(prefix)
    if overlay.get(key) is not None:
        raise Refused(error_pb2.ERROR_REASON_ACCOUNT_EXISTS, "an account of that id exists")
    record = record_pb2.AccountRecord(
        format=rules.FORMAT,
        creation_index=context.entry_index,
        created_ms=context.now_ms,
        quota_bytes=command.quota_bytes,
        quota_messages=command.quota_messages,
        next_mailbox=INBOX,
        next_message=1,
        attributes=rules.attributes(command.attributes),
    )
    overlay.put(key, record)
    account = AccountChange(overlay, prefix, record)
    record.object_modseq = account.modseq
    account.created(_ACCOUNT, 0)
    inbox = command_pb2.CreateMailbox(
        name="INBOX", role=common_pb2.MAILBOX_ROLE_INBOX, subscribed=True
    )
    _add_mailbox(account, context, inbox)
    state = account.close()
    return command_pb2.Reply(format=rules.FORMAT, account=record, state=state)


def update_account(overlay: Overlay, command: command_pb2.UpdateAccount) -> command_pb2.Reply:
    """Changes limits and attributes. A quota below what is used only refuses additions."""
    account = AccountChange(overlay, prefix_of(command.account_id))
    record = account.record
    if command.HasField("if_in_state"):
        account.check_state(command.if_in_state)
    if command.HasField("if_object"):
        _check_object(record, command.if_object)
    if command.HasField("quota_bytes"):
        record.quota_bytes = command.quota_bytes
    if command.HasField("quota_messages"):
        record.quota_messages = command.quota_messages
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
    account = AccountChange(overlay, prefix_of(command.account_id))
    if command.HasField("if_in_state"):
        account.check_state(command.if_in_state)
    mailbox = _add_mailbox(account, context, command)
    state = account.close()
    return command_pb2.Reply(format=rules.FORMAT, mailbox=mailbox, state=state)


def _check_object(record: record_pb2.AccountRecord, asked: command_pb2.AccountState) -> None:
    now = (record.restore_epoch, record.creation_index, record.object_modseq)
    if (asked.restore_epoch, asked.creation_index, asked.modseq) != now:
        raise Refused(
            error_pb2.ERROR_REASON_ETAG_MISMATCH,
            "the account was changed since",
            {
                "restore_epoch": record.restore_epoch,
                "creation_index": record.creation_index,
                "modseq": record.object_modseq,
            },
        )


def _add_mailbox(
    account: AccountChange, context: Context, command: command_pb2.CreateMailbox
) -> record_pb2.MailboxRecord:
    record, prefix = account.record, account.prefix
    name = rules.mailbox_name(command.name)
    attributes = rules.attributes(command.attributes)
    if record.mailbox_count >= rules.MAILBOXES_PER_ACCOUNT_MAX:
        raise limit_reached("mailboxes", rules.MAILBOXES_PER_ACCOUNT_MAX)
    _check_depth(account, command.parent)
    number = record.next_mailbox
    packed = keys.U32.pack(number)
    name_key = keys.mailbox_name(prefix, command.parent, name)
    if account.overlay.get(name_key) is not None:
        raise Refused(error_pb2.ERROR_REASON_MAILBOX_EXISTS, "a sibling of that name exists")
    account.overlay.put(name_key, packed)
    if command.role != _NO_ROLE:
        role_key = keys.mailbox_role(prefix, command.role)
        if account.overlay.get(role_key) is not None:
            raise Refused(
                error_pb2.ERROR_REASON_MAILBOX_ROLE_EXISTS, "another mailbox has that role"
            )
        account.overlay.put(role_key, packed)
    mailbox = record_pb2.MailboxRecord(
        format=rules.FORMAT,
        mailbox=number,
        parent=command.parent,
        name=command.name,
        role=command.role,
        subscribed=command.subscribed,
        sort_order=command.sort_order,
        uid_validity=account.next_uid_validity(context.now_ms),
        uid_next=1,
        highest_modseq=account.modseq,
        created_modseq=account.modseq,
        object_modseq=account.modseq,
        attributes=attributes,
    )
    account.overlay.put(keys.mailbox_record(prefix, number), mailbox)
    record.next_mailbox = number + 1
    record.mailbox_count += 1
    account.created(_MAILBOX, number)
    return mailbox


def _check_depth(account: AccountChange, parent: int) -> None:
    depth = 1
    while parent != _TOP:
        key = keys.mailbox_record(account.prefix, parent)
        mailbox = account.overlay.read(key, record_pb2.MailboxRecord)
        if mailbox is None:
            raise mailbox_not_found("no such parent")
        parent = mailbox.parent
        depth += 1
        if depth > rules.MAILBOX_DEPTH_MAX:
            raise limit_reached("levels of mailboxes", rules.MAILBOX_DEPTH_MAX)

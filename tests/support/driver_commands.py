"""Calls of a Driver as commands of the state machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import mailbox_driver as d
from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.interfaces import Proposal
from mailraft.v1 import message_pb2
from mailraft.wire import bodies

Validity = Callable[[str, int], int]  # account, mailbox -> UIDVALIDITY now; 1 if it is not there


def proposal(call: d.Call, now_ms: int, validity: Validity) -> Proposal:
    """What a service would propose for a call."""
    command = command_pb2.Command(
        time_ms=now_ms, request_id=call.request, fingerprint=_fingerprint(call)
    )
    packed: list[bytes] = []
    match call:
        case d.CreateAccount():
            command.create_account.account_id = call.account
            command.create_account.quota_bytes = call.quota_bytes
            command.create_account.quota_messages = call.quota_messages
        case d.SetQuota():
            command.update_account.account_id = call.account
            command.update_account.quota_bytes = call.quota_bytes
            command.update_account.quota_messages = call.quota_messages
        case d.DeleteAccount():
            command.delete_account.account_id = call.account
            command.delete_account.force = call.force
        case d.CreateMailbox() | d.UpdateMailbox() | d.DeleteMailbox():
            _fill_mailbox(command, call)
        case d.Deliver():
            _fill_deliver(command.deliver, call, packed)
        case d.Append():
            _fill_append(command.append, call, packed)
        case d.Undelete():
            _fill_undelete(command.undelete_messages, call)
        case d.BeginUpload() | d.UploadPart() | d.DropUpload():
            _fill_upload(command, call, packed)
        case d.Upload():
            raise AssertionError("an upload is several commands")
        case _:
            _fill_change(command, call, _selection(call.account, call.which, validity))
    return Proposal(command, tuple(packed))


def _fill_mailbox(
    command: command_pb2.Command, call: d.CreateMailbox | d.UpdateMailbox | d.DeleteMailbox
) -> None:
    match call:
        case d.CreateMailbox():
            made = command.create_mailbox
            made.account_id, made.name, made.role = call.account, call.name, call.role
            made.parent = int(call.parent or 0)
            if call.rule is not None:
                made.retention.CopyFrom(_rule(call.rule))
        case d.DeleteMailbox():
            command.delete_mailbox.account_id = call.account
            command.delete_mailbox.mailbox = int(call.mailbox)
            command.delete_mailbox.force = call.force
        case d.UpdateMailbox():
            change = command.update_mailbox
            change.account_id, change.mailbox = call.account, int(call.mailbox)
            if call.name is not None:
                change.name = call.name
            if call.parent is not None:
                change.parent = int(call.parent or 0)
            if call.role is not None:
                change.role = call.role
            if call.subscribed is not None:
                change.subscribed = call.subscribed
            if call.rule is not None:
                change.set_retention = True
                change.retention.CopyFrom(_rule(call.rule))
            if call.if_object is not None:
                change.if_object.CopyFrom(_state(call.if_object))


def _rule(rule: d.Rule) -> record_pb2.RetentionRule:
    return record_pb2.RetentionRule(
        expunge_after_ms=rule.expunge_after_ms,
        messages_max=rule.messages_max,
        undelete_window_ms=rule.undelete_window_ms,
    )


def _fill_deliver(command: command_pb2.Deliver, call: d.Deliver, packed: list[bytes]) -> None:
    command.body.CopyFrom(_new_body(call.raw, packed))
    command.internal_time_ms = call.received_ms
    envelope = message_pb2.Envelope(message_id=call.message_id)
    command.derived = message_pb2.Derived(
        parser_version=1, envelope=envelope, references=call.references
    ).SerializeToString()
    for to in call.to:
        command.recipients.add(
            account_id=to.account,
            targets=[command_pb2.Target(mailbox=int(number)) for number in to.mailboxes],
            keywords=to.keywords,
            fingerprint=_fingerprint((call.raw, to)),
        )


def _fill_append(command: command_pb2.Append, call: d.Append, packed: list[bytes]) -> None:
    command.account_id = call.account
    if call.if_in_state is not None:
        command.if_in_state.CopyFrom(_state(call.if_in_state))
    for item in call.items:
        added = command.items.add(
            targets=[command_pb2.Target(mailbox=int(number)) for number in item.mailboxes],
            keywords=item.keywords,
            internal_time_ms=item.received_ms,
            deleted=item.deleted,
        )
        if item.blob:
            added.blob.index, added.blob.ordinal = map(int, item.blob.split("-"))
        else:
            added.body.CopyFrom(_new_body(item.raw, packed))


def _fill_upload(
    command: command_pb2.Command,
    call: d.BeginUpload | d.UploadPart | d.DropUpload,
    packed: list[bytes],
) -> None:
    match call:
        case d.BeginUpload():
            command.begin_upload.account_id = call.account
            command.begin_upload.size_bytes = len(call.raw)
            command.begin_upload.sha256 = hashlib.sha256(call.raw).digest()
        case d.UploadPart():
            command.upload_part.account_id = call.account
            command.upload_part.offset_bytes = call.offset
            command.upload_part.body.CopyFrom(_new_body(call.data, packed))
        case d.DropUpload():
            command.drop_upload.account_id = call.account


def _new_body(raw: bytes, packed: list[bytes]) -> command_pb2.NewBody:
    packed.append(bodies.pack(raw))
    return command_pb2.NewBody(
        ordinal=len(packed) - 1,
        size_bytes=len(raw),
        stored_bytes=len(packed[-1]),
        sha256=hashlib.sha256(raw).digest(),
    )


def _selection(account: str, which: d.Which, validity: Validity) -> command_pb2.Selection:
    selection = command_pb2.Selection(messages=map(int, which.ids))
    if which.mailbox:
        number = int(which.mailbox)
        selection.uids.mailbox = number
        selection.uids.uid_validity = which.uid_validity or validity(account, number)
        for pair in which.uids:
            selection.uids.ranges.extend(pair)
    return selection


def _fill_change(
    command: command_pb2.Command,
    call: d.ModifyKeywords | d.UpdateMemberships | d.Move | d.Copy | d.Expunge,
    selection: command_pb2.Selection,
) -> None:
    match call:
        case d.ModifyKeywords():
            command.modify_keywords.CopyFrom(
                command_pb2.ModifyKeywords(
                    account_id=call.account,
                    messages=selection,
                    add=call.add,
                    remove=call.remove,
                    replace=call.replace is not None,
                    keywords=call.replace or (),
                    unchanged_since=call.unchanged_since,
                    deleted=call.deleted,
                )
            )
        case d.UpdateMemberships():
            change = command_pb2.UpdateMemberships(
                account_id=call.account,
                messages=selection,
                add=[command_pb2.Target(mailbox=int(number)) for number in call.add],
                remove=map(int, call.remove),
                unchanged_since=call.unchanged_since,
            )
            for number, deleted in call.deleted:
                change.deleted.add(mailbox=int(number), deleted=deleted)
            command.update_memberships.CopyFrom(change)
        case d.Move():
            moved = command_pb2.MoveMessages(
                account_id=call.account,
                messages=selection,
                source=int(call.source or 0),
                target=command_pb2.Target(mailbox=int(call.target)),
            )
            command.move_messages.CopyFrom(moved)
        case d.Copy():
            copied = command_pb2.CopyMessages(
                account_id=call.account,
                messages=selection,
                target=command_pb2.Target(mailbox=int(call.target)),
                duplicate=call.duplicate,
            )
            command.copy_messages.CopyFrom(copied)
        case d.Expunge():
            gone = command_pb2.ExpungeMessages(
                account_id=call.account, messages=selection, only_deleted=call.only_deleted
            )
            command.expunge_messages.CopyFrom(gone)


def _fill_undelete(command: command_pb2.UndeleteMessages, call: d.Undelete) -> None:
    command.account_id = call.account
    command.messages.extend(map(int, call.ids))
    if not call.ids:
        command.since.mailbox = int(call.mailbox or 0)
        command.since.from_ms = call.since_ms
        command.since.SetInParent()
    if call.target:
        command.target.mailbox = int(call.target)


def _state(state: d.State) -> command_pb2.AccountState:
    epoch, creation = state.incarnation
    return command_pb2.AccountState(
        restore_epoch=epoch, creation_index=creation, modseq=state.modseq
    )


def _fingerprint(asked: object) -> bytes:
    return hashlib.sha256(repr(asked).encode()).digest()

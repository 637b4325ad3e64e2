"""Calls of a Driver as requests of the public API."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import field_mask_pb2
from google.protobuf.message import Message

import mailbox_driver as d
from mailraft.client import calls
from mailraft.client.content import Packing
from mailraft.v1 import (
    account_pb2,
    common_pb2,
    delivery_pb2,
    mailbox_pb2,
    message_pb2,
    message_service_pb2,
)
from mailraft.wire import tokens

OneAccount = (
    d.CreateAccount
    | d.SetQuota
    | d.DeleteAccount
    | d.CreateMailbox
    | d.UpdateMailbox
    | d.DeleteMailbox
    | d.Append
    | d.ModifyKeywords
    | d.UpdateMemberships
    | d.Move
    | d.Copy
    | d.Expunge
    | d.Undelete
)


def request_of(call: OneAccount, uid_validity: int) -> Message:
    """All but the request_id and the options. uid_validity: under which UIDs are meant, unless the
    call says it.
    """
    match call:
        case d.CreateAccount() | d.SetQuota():
            quota = account_pb2.Quota(max_bytes=call.quota_bytes, max_messages=call.quota_messages)
            account = account_pb2.Account(quota=quota)
            if isinstance(call, d.CreateAccount):
                return account_pb2.CreateAccountRequest(account_id=call.account, account=account)
            return account_pb2.UpdateAccountRequest(
                account_id=call.account,
                account=account,
                update_mask=_mask(["quota.max_bytes", "quota.max_messages"]),
            )
        case d.DeleteAccount():
            return account_pb2.DeleteAccountRequest(account_id=call.account, force=call.force)
        case d.CreateMailbox() | d.UpdateMailbox() | d.DeleteMailbox():
            return _of_mailbox(call)
        case d.Append():
            items = map(_item, call.items)
            return delivery_pb2.AppendMessagesRequest(account_id=call.account, messages=items)
        case d.Undelete():
            return _undelete(call)
        case _:
            return _change(call, _selector(call.which, uid_validity))


def delivery_of(call: d.Deliver, request_id: bytes) -> delivery_pb2.Delivery:
    """With the content as it is: the service compresses it."""
    found = calls.delivery(
        call.raw, [], (), None, {"request_id": request_id}, Packing(compress=False)
    )
    found.content.raw = call.raw
    found.internal_time_ms = call.received_ms
    for to in call.to:
        found.recipients.add(
            account_id=to.account, targets=map(_target, to.mailboxes), keywords=to.keywords
        )
    if call.message_id or call.references:
        envelope = message_pb2.Envelope(message_id=call.message_id)
        found.derived.CopyFrom(
            message_pb2.Derived(parser_version=1, envelope=envelope, references=call.references)
        )
    return found


def state_token(state: d.State) -> str:
    """A state as the API has it."""
    return tokens.encode_state(tokens.State(*state.incarnation, state.modseq))


def mailbox_id(number: str) -> str:
    """The API's id; none of none."""
    return tokens.mailbox_id(int(number)) if number else ""


def message_ids(numbers: Iterable[str]) -> list[str]:
    """The API's ids."""
    return [tokens.message_id(int(number)) for number in numbers]


def blob_id(place: str) -> str:
    """The API's id."""
    index, ordinal = map(int, place.split("-"))
    return tokens.blob_id(index, ordinal)


# ---- one kind each -------------------------------------------------------------------------------


def _of_mailbox(call: d.CreateMailbox | d.UpdateMailbox | d.DeleteMailbox) -> Message:
    match call:
        case d.CreateMailbox():
            made = mailbox_pb2.Mailbox(name=call.name, parent_id=mailbox_id(call.parent))
            made.role = call.role  # type: ignore[assignment]  # stored as the number of the role
            if call.rule is not None:
                made.retention.CopyFrom(_rule(call.rule))
            return mailbox_pb2.CreateMailboxRequest(account_id=call.account, mailbox=made)
        case d.DeleteMailbox():
            return mailbox_pb2.DeleteMailboxRequest(
                account_id=call.account, mailbox_id=mailbox_id(call.mailbox), force=call.force
            )
        case d.UpdateMailbox():
            values = {
                "name": call.name,
                "parent_id": None if call.parent is None else mailbox_id(call.parent),
                "role": call.role,
                "subscribed": call.subscribed,
                "retention": None if call.rule is None else _rule(call.rule),
            }
            etag = "" if call.if_object is None else "E" + state_token(call.if_object)
            number = mailbox_id(call.mailbox)
            return calls.update_mailbox(call.account, number, values, etag)


def _rule(rule: d.Rule) -> mailbox_pb2.Retention:
    return mailbox_pb2.Retention(
        expunge_after_ms=rule.expunge_after_ms,
        max_messages=rule.messages_max,
        undelete_window_ms=rule.undelete_window_ms,
    )


def _item(item: d.Item) -> delivery_pb2.AppendItem:
    made = delivery_pb2.AppendItem(
        targets=map(_target, item.mailboxes),
        keywords=item.keywords,
        internal_time_ms=item.received_ms,
        deleted=item.deleted,
    )
    if item.blob:
        made.blob_id = blob_id(item.blob)
    else:
        made.content.raw = item.raw
    return made


def _target(number: str) -> message_pb2.MailboxTarget:
    return message_pb2.MailboxTarget(mailbox_id=mailbox_id(number))


def _selector(which: d.Which, uid_validity: int) -> common_pb2.MessageSelector:
    if not which.mailbox:
        ids = common_pb2.MessageIds(ids=message_ids(which.ids))
        return common_pb2.MessageSelector(ids=ids)
    uids = common_pb2.UidSet(
        mailbox_id=mailbox_id(which.mailbox),
        uid_validity=which.uid_validity or uid_validity,
        ranges=[number for pair in which.uids for number in pair],
    )
    return common_pb2.MessageSelector(uid_set=uids)


def _change(
    call: d.ModifyKeywords | d.UpdateMemberships | d.Move | d.Copy | d.Expunge,
    chosen: common_pb2.MessageSelector,
) -> Message:
    match call:
        case d.ModifyKeywords():
            words = None
            if call.replace is not None:
                words = message_service_pb2.KeywordSet(keywords=call.replace)
            return message_service_pb2.ModifyKeywordsRequest(
                account_id=call.account,
                messages=chosen,
                add=call.add,
                remove=call.remove,
                replace=words,
                unchanged_since=call.unchanged_since,
                deleted=call.deleted,
            )
        case d.UpdateMemberships():
            return message_service_pb2.UpdateMembershipsRequest(
                account_id=call.account,
                messages=chosen,
                add=map(_target, call.add),
                remove_mailbox_ids=map(mailbox_id, call.remove),
                deleted=[
                    message_service_pb2.DeletedMark(mailbox_id=mailbox_id(number), deleted=deleted)
                    for number, deleted in call.deleted
                ],
                unchanged_since=call.unchanged_since,
            )
        case d.Move():
            return message_service_pb2.MoveMessagesRequest(
                account_id=call.account,
                messages=chosen,
                source_mailbox_id=mailbox_id(call.source),
                target=_target(call.target),
            )
        case d.Copy():
            modes = message_service_pb2.CopyMode
            return message_service_pb2.CopyMessagesRequest(
                account_id=call.account,
                messages=chosen,
                target=_target(call.target),
                mode=modes.COPY_MODE_DUPLICATE if call.duplicate else modes.COPY_MODE_LINK,
            )
        case d.Expunge():
            return message_service_pb2.ExpungeMessagesRequest(
                account_id=call.account, messages=chosen, only_deleted=call.only_deleted
            )


def _undelete(call: d.Undelete) -> Message:
    request = message_service_pb2.UndeleteMessagesRequest(account_id=call.account)
    if call.ids:
        request.ids.ids.extend(message_ids(call.ids))
    else:
        request.expunged.mailbox_id = mailbox_id(call.mailbox)
        request.expunged.from_ms = call.since_ms
        request.expunged.SetInParent()
    if call.target:
        request.target.CopyFrom(_target(call.target))
    return request


def _mask(paths: list[str]) -> field_mask_pb2.FieldMask:
    return field_mask_pb2.FieldMask(paths=paths)

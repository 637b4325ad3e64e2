"""Replies of the public API as a Driver shows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mailbox_driver as d
from mailraft.client.results import RecipientReceipt
from mailraft.v1 import (
    account_pb2,
    change_pb2,
    common_pb2,
    delivery_pb2,
    mailbox_pb2,
    message_pb2,
    message_service_pb2,
)
from mailraft.wire import errors, tokens

_CHANGED = message_service_pb2.ModifyKeywordsResponse
_PLACED = message_service_pb2.UpdateMembershipsResponse
_KINDS = {
    common_pb2.OBJECT_TYPE_ACCOUNT: "account",
    common_pb2.OBJECT_TYPE_MAILBOX: "mailbox",
    common_pb2.OBJECT_TYPE_MESSAGE: "message",
    common_pb2.OBJECT_TYPE_THREAD: "thread",
}


def outcome(reply: Any) -> d.Done:
    """What a call about one account answered."""
    state = state_seen(reply.state)
    match reply:
        case delivery_pb2.AppendMessagesResponse():
            return d.Done(state, stored=tuple(map(_appended, reply.messages)))
        case _CHANGED() | _PLACED():
            each = _keywords if isinstance(reply, _CHANGED) else _memberships
            return d.Done(
                state,
                changed=tuple(map(each, reply.changed)),  # type: ignore[arg-type]  # as above
                modified=_messages(reply.modified_ids),
                missing=_messages(reply.not_found_ids),
                rest=_rest(reply),
            )
        case message_service_pb2.MoveMessagesResponse():
            mapped, missing = reply.moved, _messages(reply.not_found_ids)
            return d.Done(state, mapped=_mapped(mapped), missing=missing, rest=_rest(reply))
        case message_service_pb2.CopyMessagesResponse():
            mapped, missing = reply.copied, _messages(reply.not_found_ids)
            return d.Done(state, mapped=_mapped(mapped), missing=missing, rest=_rest(reply))
        case message_service_pb2.ExpungeMessagesResponse():
            pairs = zip(reply.vanished_ranges[::2], reply.vanished_ranges[1::2], strict=True)
            return d.Done(
                state,
                destroyed=_messages(reply.destroyed_ids),
                vanished=tuple(pairs),
                missing=_messages(reply.not_found_ids),
                rest=_rest(reply),
            )
        case message_service_pb2.UndeleteMessagesResponse():
            restored = _messages(each.id for each in reply.messages)
            return d.Done(state, restored=restored, missing=_messages(reply.not_found_ids))
        case mailbox_pb2.CreateMailboxResponse() | mailbox_pb2.UpdateMailboxResponse():
            return d.Done(state, mailbox=mailbox_number(reply.mailbox.id))
        case _:
            return d.Done(state)


def delivered(receipts: Iterable[RecipientReceipt]) -> d.Outcome:
    """What became of a mail for each; of an id that is too old for all, the one refusal."""
    each = tuple(map(_recipient, receipts))
    too_old = d.Refusal("REQUEST_ID_TOO_OLD")
    return too_old if set(each) == {too_old} else d.Delivered(each)


def refusal(error: errors.MailraftError) -> d.Refusal:
    """The reason by its name. What is no answer of the store is raised on."""
    if not error.reason or isinstance(error, errors.CommitUnknownError):
        raise error
    return d.Refusal(error.name)


def state_seen(token: str) -> d.State:
    """A state, ordered."""
    state = tokens.decode_state(token)
    return d.State(state.incarnation, state.modseq)


def account_seen(account: account_pb2.Account) -> d.AccountSeen:
    """An account; its etag tells in which life it is."""
    life = tokens.decode_state(account.etag.removeprefix("E")).incarnation
    state = d.State(life, account.highest_modseq)
    return d.AccountSeen(state, account.usage.bytes, account.usage.messages)


def mailbox_seen(mailbox: mailbox_pb2.Mailbox) -> d.MailboxSeen:
    """A mailbox with its counters."""
    return d.MailboxSeen(
        id=mailbox_number(mailbox.id),
        parent=mailbox_number(mailbox.parent_id),
        name=mailbox.name,
        role=mailbox.role,
        uid_validity=mailbox.uid_validity,
        uid_next=mailbox.uid_next,
        highest_modseq=mailbox.highest_modseq,
        total=mailbox.total_messages,
        unseen=mailbox.unseen_messages,
        size_bytes=mailbox.size_bytes,
        deleted=mailbox.deleted_messages,
        keywords=tuple(mailbox.keywords_in_use),
        object_modseq=tokens.decode_state(mailbox.etag.removeprefix("E")).modseq,
    )


def message_seen(message: message_pb2.Message, mailbox: str = "") -> d.MessageSeen:
    """A message, by id or as a mailbox lists it."""
    places = [_place(each) for each in message.memberships]
    there = [each for each in message.memberships if mailbox_number(each.mailbox_id) == mailbox]
    return d.MessageSeen(
        id=message_number(message.id),
        blob=blob_place(message.blob_id),
        thread=str(tokens.parse_thread_id(message.thread_id)),
        uid=there[0].uid if there else 0,
        modseq=message.modseq,
        size_bytes=message.size_bytes,
        keywords=tuple(message.keywords),
        received_ms=message.internal_time_ms,
        deleted=any(each.deleted for each in there),
        mailboxes=tuple(sorted(place.mailbox for place in places)),
    )


def change_seen(page: change_pb2.ListChangesResponse) -> d.Change:
    """A page of the change feed: each object once, as it is at the end of the page."""
    found = []
    for each in page.changes:
        kind = _KINDS[each.type]
        for what, ids in (
            ("created", each.created),
            ("updated", each.updated),
            ("destroyed", each.destroyed),
        ):
            found += [(kind, what, _number(kind, one)) for one in ids]
    return d.Change(state_seen(page.new_state).modseq, tuple(found))


def mailbox_number(found: str) -> str:
    """The number in an id; none in none."""
    return str(tokens.parse_mailbox_id(found)) if found else ""


def message_number(found: str) -> str:
    """The number in an id."""
    return str(tokens.parse_message_id(found))


def blob_place(found: str) -> str:
    """Where the body lies that an id names."""
    index, ordinal = tokens.parse_blob_id(found)
    return f"{index}-{ordinal}"


def _number(kind: str, found: str) -> str:
    match kind:
        case "mailbox":
            return mailbox_number(found)
        case "message":
            return message_number(found)
        case "thread":
            return str(tokens.parse_thread_id(found))
        case _:
            return "0"


def _messages(found: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(message_number, found))


def _rest(reply: Any) -> int:
    return reply.remaining.ranges[0] if reply.HasField("remaining") else 0


def _place(member: message_pb2.Membership | message_pb2.MessageMapping) -> d.Place:
    return d.Place(mailbox_number(member.mailbox_id), member.uid_validity, member.uid)


def _appended(message: delivery_pb2.AppendedMessage) -> d.Stored:
    modseq = max(each.modseq for each in message.memberships)
    return _stored(message, modseq)


def _recipient(receipt: RecipientReceipt) -> d.Done | d.Refusal:
    if receipt.error is not None:
        return refusal(receipt.error)
    modseq = max(each.modseq for each in receipt.memberships)
    return d.Done(state_seen(receipt.state), stored=(_stored(receipt, modseq),))


def _stored(message: delivery_pb2.AppendedMessage | RecipientReceipt, modseq: int) -> d.Stored:
    return d.Stored(
        message_number(message.message_id),
        str(tokens.parse_thread_id(message.thread_id)),
        blob_place(message.blob_id),
        modseq,
        tuple(map(_place, message.memberships)),
    )


def _keywords(changed: message_service_pb2.KeywordChange) -> d.Changed:
    number = message_number(changed.message_id)
    return d.Changed(number, changed.modseq, tuple(changed.keywords), changed.deleted)


def _memberships(changed: message_service_pb2.MembershipChange) -> d.Changed:
    places = tuple(map(_place, changed.memberships))
    return d.Changed(message_number(changed.message_id), changed.modseq, places=places)


def _mapped(found: Iterable[message_pb2.MessageMapping]) -> tuple[d.Mapped, ...]:
    return tuple(
        d.Mapped(
            message_number(each.message_id),
            each.source_uid,
            _place(each),
            message_number(each.new_message_id) if each.new_message_id else "",
        )
        for each in found
    )

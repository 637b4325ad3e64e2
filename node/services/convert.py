"""Between what a shard keeps and what the API says: ids, states, etags, views, errors."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.interfaces import View
from mailraft.node.mailstore import queries
from mailraft.node.mailstore.errors import Refused
from mailraft.v1 import account_pb2, error_pb2, mailbox_pb2, message_pb2
from mailraft.wire import errors, tokens

BASIC = message_pb2.MESSAGE_VIEW_BASIC
ENVELOPE = message_pb2.MESSAGE_VIEW_ENVELOPE
FULL = message_pb2.MESSAGE_VIEW_FULL

_ETAG = "E"

# ---- states and etags ----------------------------------------------------------------------------


def state_of(state: command_pb2.AccountState) -> tokens.State:
    return tokens.State(state.restore_epoch, state.creation_index, state.modseq)


def state_token(state: command_pb2.AccountState | record_pb2.AccountRecord) -> str:
    return _state_token(state.restore_epoch, state.creation_index, state.modseq)


@functools.lru_cache(maxsize=4096)  # an account is read more often than it changes
def _state_token(restore_epoch: int, creation_index: int, modseq: int) -> str:
    return tokens.encode_state(tokens.State(restore_epoch, creation_index, modseq))


def account_state(state: tokens.State) -> command_pb2.AccountState:
    return command_pb2.AccountState(
        restore_epoch=state.restore_epoch,
        creation_index=state.creation_index,
        modseq=state.modseq,
    )


def etag(restore_epoch: int, creation_index: int, object_modseq: int) -> str:
    """Names one version of an account or a mailbox: changes with what Update can change."""
    return _ETAG + tokens.encode_state(tokens.State(restore_epoch, creation_index, object_modseq))


def parse_etag(text: str) -> command_pb2.AccountState:
    """What an etag stands for. Anything else stands for no version: it never matches."""
    try:
        return account_state(tokens.decode_state(text.removeprefix(_ETAG)))
    except ValueError:
        return command_pb2.AccountState()


# ---- objects -------------------------------------------------------------------------------------


def account(account_id: str, record: record_pb2.AccountRecord) -> account_pb2.Account:
    """A stored account as callers see it."""
    shown = account_pb2.Account(
        account_id=account_id,
        usage=account_pb2.Usage(bytes=record.used_bytes, messages=record.used_messages),
        attributes=_attributes(record.attributes),
        etag=etag(record.restore_epoch, record.creation_index, record.object_modseq),
        created_time_ms=record.created_ms,
        highest_modseq=record.modseq,
        mailboxes=record.mailbox_count,
        undelete_window_ms=record.undelete_window_ms,
    )
    if record.quota_bytes or record.quota_messages:
        shown.quota.max_bytes = record.quota_bytes
        shown.quota.max_messages = record.quota_messages
    return shown


def mailbox(
    record: record_pb2.MailboxRecord,
    state: command_pb2.AccountState,
    keywords_in_use: Sequence[str] = (),
) -> mailbox_pb2.Mailbox:
    """A stored mailbox as callers see it. Threads are not counted yet."""
    shown = mailbox_pb2.Mailbox(
        id=tokens.mailbox_id(record.mailbox),
        parent_id=tokens.mailbox_id(record.parent) if record.parent else "",
        name=record.name,
        role=record.role,  # type: ignore[arg-type]  # stored as the number of the role
        subscribed=record.subscribed,
        sort_order=record.sort_order,
        uid_validity=record.uid_validity,
        uid_next=record.uid_next,
        highest_modseq=record.highest_modseq,
        created_modseq=record.created_modseq,
        total_messages=record.total_messages,
        unseen_messages=record.unseen_messages,
        deleted_messages=record.deleted_messages,
        size_bytes=record.size_bytes,
        attributes=_attributes(record.attributes),
        etag=etag(state.restore_epoch, state.creation_index, record.object_modseq),
        keywords_in_use=keywords_in_use,
    )
    if record.HasField("retention"):
        rule, told = record.retention, shown.retention
        told.SetInParent()
        told.expunge_after_ms, told.max_messages = rule.expunge_after_ms, rule.messages_max
        if rule.HasField("undelete_window_ms"):
            told.undelete_window_ms = rule.undelete_window_ms
    return shown


def retention(asked: mailbox_pb2.Retention) -> record_pb2.RetentionRule:
    rule = record_pb2.RetentionRule(
        expunge_after_ms=asked.expunge_after_ms, messages_max=asked.max_messages
    )
    if asked.HasField("undelete_window_ms"):
        rule.undelete_window_ms = asked.undelete_window_ms
    return rule


class Messages:
    """Stored messages of one account as callers see them, at one view of the shard."""

    def __init__(
        self, view: View, account_id: str, shown: message_pb2.MessageView.ValueType
    ) -> None:
        self._view, self._account_id, self.shown = view, account_id, shown
        self._mailboxes: dict[int, tuple[str, int]] = {}
        self._agreed: set[tuple[tuple[int, int], ...]] = set()

    def show(self, record: record_pb2.MessageRecord) -> message_pb2.Message:
        message = message_pb2.Message(
            id=tokens.message_id(record.message),
            blob_id=tokens.blob_id(record.body.index, record.body.ordinal),
            size_bytes=record.size_bytes,
            thread_id=tokens.thread_id(record.thread),
            internal_time_ms=record.internal_time_ms,
            created_modseq=record.created_modseq,
            modseq=record.modseq,
        )
        if record.keywords:  # most new mail has none, and that costs
            message.keywords.extend(record.keywords)
        places: Sequence[record_pb2.MembershipRecord] = record.memberships
        if len(places) > 1:
            places = sorted(places, key=lambda each: tokens.mailbox_id(each.mailbox))
        for each in places:
            mailbox_id, uid_validity = self._mailbox(each.mailbox)
            if not uid_validity:
                continue
            message.memberships.add(
                mailbox_id=mailbox_id,
                uid_validity=uid_validity,
                uid=each.uid,
                deleted=each.deleted,
                saved_time_ms=each.saved_ms,
                modseq=each.modseq,
            )
        if self.shown in (ENVELOPE, FULL) and record.derived:
            message.derived.MergeFromString(record.derived)
            if self.shown == ENVELOPE:
                message.derived.ClearField("preview")
                message.derived.ClearField("has_attachment")
        return message

    def places_of(self, record: record_pb2.MessageRecord) -> tuple[tuple[int, int], ...]:
        """What `show` says of a message beyond its record: its mailboxes with their UIDVALIDITY."""
        return tuple(
            [(each.mailbox, self._mailbox(each.mailbox)[1]) for each in record.memberships]
        )

    def agrees(self, places: tuple[tuple[int, int], ...]) -> bool:
        """Whether they are the same here and now."""
        if places not in self._agreed:
            if any(self._mailbox(number)[1] != known for number, known in places):
                return False
            self._agreed.add(places)  # for the other messages of one mailbox
        return True

    def _mailbox(self, number: int) -> tuple[str, int]:
        """Id and UIDVALIDITY; 0: it is gone (of what was expunged, or a moment ago)."""
        known = self._mailboxes.get(number)
        if known is None:
            try:
                uid_validity = queries.mailbox(self._view, self._account_id, number).uid_validity
            except Refused:
                uid_validity = 0
            known = self._mailboxes[number] = tokens.mailbox_id(number), uid_validity
        return known


def memberships(stored: command_pb2.StoredMessage) -> list[message_pb2.Membership]:
    """Of a message that was added now."""
    return places(stored.memberships)


def places(stored: Sequence[command_pb2.StoredMembership]) -> list[message_pb2.Membership]:
    """Memberships as a reply of the state machine has them."""
    found = []
    for each in stored[:]:
        place = message_pb2.Membership()  # filled so in a third of the time
        place.mailbox_id, place.uid_validity = tokens.mailbox_id(each.mailbox), each.uid_validity
        place.uid, place.deleted = each.uid, each.deleted
        place.saved_time_ms, place.modseq = each.saved_ms, each.modseq
        found.append(place)
    if len(found) > 1:
        found.sort(key=lambda each: each.mailbox_id)
    return found


def attributes(asked: Iterable[tuple[str, str]]) -> list[record_pb2.Attribute]:
    return [record_pb2.Attribute(key=key, value=value) for key, value in sorted(asked)]


def _attributes(stored: Iterable[record_pb2.Attribute]) -> dict[str, str]:
    return {each.key: each.value for each in stored}


# ---- errors --------------------------------------------------------------------------------------


def refused(error: Refused) -> errors.MailraftError:
    """A query's refusal as the API says it."""
    return refusal(error.to_refusal())


def refusal(said: command_pb2.Refusal) -> errors.MailraftError:
    """A refusal of the state machine, its numbers turned into the reason's detail."""
    numbers = {each.key: each.value for each in said.metadata}
    match said.reason:
        case error_pb2.ERROR_REASON_BAD_FIELD:
            field, colon, what = said.message.partition(": ")
            fields = {field: what} if colon else {}
            return errors.BadFieldError(said.message, fields=fields)
        case error_pb2.ERROR_REASON_STATE_MISMATCH:
            return errors.StateMismatchError(
                said.message,
                detail=error_pb2.StateMismatch(state=tokens.encode_state(_state(numbers))),
            )
        case error_pb2.ERROR_REASON_ETAG_MISMATCH:
            now = _ETAG + tokens.encode_state(_state(numbers))
            return errors.EtagMismatchError(said.message, detail=error_pb2.EtagMismatch(etag=now))
        case error_pb2.ERROR_REASON_UID_VALIDITY_MISMATCH:
            number = int(numbers.get("mailbox", 0))
            return errors.UidValidityMismatchError(
                said.message,
                detail=error_pb2.UidValidityMismatch(
                    mailbox_id=tokens.mailbox_id(number),
                    uid_validity=int(numbers.get("uid_validity", 0)),
                ),
            )
        case _:
            return errors.by_reason(said.reason, said.message, numbers)


def _state(numbers: dict[str, str]) -> tokens.State:
    return tokens.State(
        int(numbers.get("restore_epoch", 0)),
        int(numbers.get("creation_index", 0)),
        int(numbers.get("modseq", 0)),
    )

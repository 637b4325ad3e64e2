"""A Driver on state machines alone: two replicas, fed the same entries, that must never differ."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import mailbox_driver as d
from dict_view import DictView
from mailbox_audit import audit
from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import Entry, EntryKind, Proposal
from mailraft.node.mailstore import queries
from mailraft.node.mailstore.account_change import prefix_of
from mailraft.node.mailstore.errors import Refused
from mailraft.node.mailstore.machine import MailStateMachine
from mailraft.v1 import error_pb2, message_pb2
from mailraft.wire import bodies

T = TypeVar("T")

_ORDERS = {
    "uid": queries.Order.UID_ASCENDING,
    "-uid": queries.Order.UID_DESCENDING,
    "received": queries.Order.RECEIVED_ASCENDING,
    "-received": queries.Order.RECEIVED_DESCENDING,
}


class ApplyDriver:
    """Implements mailbox_driver.Driver."""

    def __init__(self) -> None:
        self.views = (DictView(), DictView())
        self.machines = (MailStateMachine(), MailStateMachine())
        self.entries: list[Entry] = []
        self.packed: dict[tuple[int, int], bytes] = {}
        self._now_ms = d.START_MS

    @property
    def view(self) -> DictView:
        return self.views[0]

    def at(self, time_ms: int) -> None:
        self._now_ms = time_ms

    def run(self, *calls: d.Call) -> list[d.Outcome]:
        payload, packed = self.machines[0].encode([self._proposal(call) for call in calls])
        index = len(self.entries) + 2  # 1 is the group's birth
        entry = Entry(index, 1, EntryKind.COMMAND, payload, packed)
        return [_outcome(reply) for reply in self.apply(entry)]

    def apply(self, entry: Entry) -> list[command_pb2.Reply]:
        """Feeds both replicas; fails if they differ in a byte."""
        one, other = (
            machine.apply(view, entry)
            for machine, view in zip(self.machines, self.views, strict=True)
        )
        assert one.effects == other.effects
        assert one.replies == other.replies
        for view in self.views:
            view.apply(one.effects)
        self.entries.append(entry)
        for ordinal, packed in enumerate(entry.bodies):
            self.packed[entry.index, ordinal] = packed
        replies = []
        for reply in one.replies:
            assert isinstance(reply, command_pb2.Reply)
            replies.append(reply)
        return replies

    # ---- reads

    def account(self, account: str) -> d.AccountSeen | d.Refusal:
        def read() -> d.AccountSeen:
            found = queries.account(self.view, account)
            state = _state(queries.account_state(self.view, account))
            return d.AccountSeen(state, found.used_bytes, found.used_messages)

        return _or_refusal(read)

    def mailboxes(self, account: str) -> Sequence[d.MailboxSeen]:
        found: list[record_pb2.MailboxRecord] = []
        after = 0
        while True:
            page, after = queries.mailboxes(self.view, account, after, 2)
            found += page
            if not after:
                return [_mailbox_seen(record) for record in found]

    def messages(
        self, account: str, mailbox: str, *, order: str = "uid", page_size: int = 3
    ) -> Sequence[d.MessageSeen]:
        found: list[d.MessageSeen] = []
        cursor = None
        while True:
            page = queries.page(self.view, account, int(mailbox), _ORDERS[order], page_size, cursor)
            assert len(page.messages) <= page_size
            found += map(_message_seen, page.messages, page.uids)
            cursor = page.following
            if cursor is None:
                return found

    def uids(self, account: str, mailbox: str) -> Sequence[tuple[int, int]]:
        ranges, following = queries.uid_ranges(self.view, account, int(mailbox))
        assert following == 0
        return ranges

    def fetch(self, account: str, blob: str) -> bytes | d.Refusal:
        def read() -> bytes:
            index, ordinal = map(int, blob.split("-"))
            row = queries.body(self.view, account, index, ordinal)
            raw = bodies.unpack(self.packed[row.index, row.ordinal], row.size_bytes)
            assert hashlib.sha256(raw).digest() == row.sha256
            return raw

        return _or_refusal(read)

    def changes(self, account: str) -> Sequence[d.Change]:
        start = keys.change(prefix_of(account))
        found = []
        for key, value in self.view.scan(start, keys.after(start[:-8])):
            record = record_pb2.ChangeRecord.FromString(value)
            each = tuple(_change(change) for change in record.changes)
            found.append(d.Change(keys.U64.unpack(key[-8:])[0], each))
        return found

    def audit(self) -> None:
        audit(self.view, lambda index, ordinal: (index, ordinal) in self.packed)

    # ---- calls as commands

    def _proposal(self, call: d.Call) -> Proposal:
        command = command_pb2.Command(
            time_ms=self._now_ms, request_id=call.request, fingerprint=_fingerprint(call)
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
            case d.CreateMailbox():
                command.create_mailbox.account_id = call.account
                command.create_mailbox.name = call.name
                command.create_mailbox.parent = int(call.parent or 0)
                command.create_mailbox.role = call.role
            case d.Deliver():
                _fill_deliver(command.deliver, call, packed)
            case d.Append():
                _fill_append(command.append, call, packed)
        return Proposal(command, tuple(packed))


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
        epoch, creation = call.if_in_state.incarnation
        command.if_in_state.CopyFrom(
            command_pb2.AccountState(
                restore_epoch=epoch, creation_index=creation, modseq=call.if_in_state.modseq
            )
        )
    for item in call.items:
        added = command.items.add(
            targets=[command_pb2.Target(mailbox=int(number)) for number in item.mailboxes],
            keywords=item.keywords,
            internal_time_ms=item.received_ms,
        )
        if item.blob:
            added.blob.index, added.blob.ordinal = map(int, item.blob.split("-"))
        else:
            added.body.CopyFrom(_new_body(item.raw, packed))


def _new_body(raw: bytes, packed: list[bytes]) -> command_pb2.NewBody:
    packed.append(bodies.pack(raw))
    return command_pb2.NewBody(
        ordinal=len(packed) - 1,
        size_bytes=len(raw),
        stored_bytes=len(packed[-1]),
        sha256=hashlib.sha256(raw).digest(),
    )


def _fingerprint(asked: object) -> bytes:
    return hashlib.sha256(repr(asked).encode()).digest()


# ---- replies as outcomes ---------------------------------------------------------------------


def _or_refusal(read: Callable[[], T]) -> T | d.Refusal:
    try:
        return read()
    except Refused as refused:
        return _refusal(refused.to_refusal())


def _refusal(refusal: command_pb2.Refusal) -> d.Refusal:
    # The names of an enum travel with its descriptor; values are numbers in the stubs.
    value = error_pb2.ErrorReason.DESCRIPTOR.values_by_number[refusal.reason]
    return d.Refusal(value.name.removeprefix("ERROR_REASON_"))


def _outcome(reply: command_pb2.Reply) -> d.Outcome:
    match reply.WhichOneof("outcome"):
        case "refusal":
            return _refusal(reply.refusal)
        case "deliver":
            return d.Delivered(tuple(_recipient(one) for one in reply.deliver.recipients))
        case "append":
            return d.Done(_state(reply.state), stored=tuple(map(_stored, reply.append.messages)))
        case "mailbox":
            return d.Done(_state(reply.state), mailbox=str(reply.mailbox.mailbox))
        case _:
            return d.Done(_state(reply.state))


def _recipient(reply: command_pb2.RecipientReply) -> d.Done | d.Refusal:
    if reply.HasField("refusal"):
        return _refusal(reply.refusal)
    return d.Done(_state(reply.state), stored=(_stored(reply.message),))


def _state(state: command_pb2.AccountState) -> d.State:
    return d.State((state.restore_epoch, state.creation_index), state.modseq)


def _blob(position: record_pb2.BodyPosition) -> str:
    return f"{position.index}-{position.ordinal}"


def _stored(message: command_pb2.StoredMessage) -> d.Stored:
    places = tuple(
        d.Place(str(member.mailbox), member.uid_validity, member.uid)
        for member in message.memberships
    )
    return d.Stored(
        str(message.message), str(message.thread), _blob(message.body), message.modseq, places
    )


def _mailbox_seen(record: record_pb2.MailboxRecord) -> d.MailboxSeen:
    return d.MailboxSeen(
        id=str(record.mailbox),
        parent=str(record.parent or ""),
        name=record.name,
        role=record.role,
        uid_validity=record.uid_validity,
        uid_next=record.uid_next,
        highest_modseq=record.highest_modseq,
        total=record.total_messages,
        unseen=record.unseen_messages,
        size_bytes=record.size_bytes,
    )


def _message_seen(record: record_pb2.MessageRecord, uid: int) -> d.MessageSeen:
    return d.MessageSeen(
        id=str(record.message),
        blob=_blob(record.body),
        thread=str(record.thread),
        uid=uid,
        modseq=record.modseq,
        size_bytes=record.size_bytes,
        keywords=tuple(record.keywords),
        received_ms=record.internal_time_ms,
    )


def _change(change: record_pb2.ObjectChange) -> tuple[str, str, str]:
    kind = record_pb2.ObjectKind.Name(change.object).removeprefix("OBJECT_KIND_").lower()
    what = record_pb2.ChangeKind.Name(change.change).removeprefix("CHANGE_KIND_").lower()
    return kind, what, str(change.number)

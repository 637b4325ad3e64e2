"""One account while one command changes it: its record, its new MODSEQ, what changed under it."""

from __future__ import annotations

import functools
from typing import Literal, Protocol

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.v1 import error_pb2
from mailraft.wire.slots import slot_of

from . import chores, rules
from .context import Context
from .errors import Refused, mailbox_not_found
from .overlay import Overlay

_CREATED = record_pb2.CHANGE_KIND_CREATED
_UPDATED = record_pb2.CHANGE_KIND_UPDATED
_DESTROYED = record_pb2.CHANGE_KIND_DESTROYED
_MESSAGE = record_pb2.OBJECT_KIND_MESSAGE

_Object = tuple[record_pb2.ObjectKind.ValueType, int]
_Change = tuple[record_pb2.ChangeKind.ValueType, int]


@functools.lru_cache(maxsize=8192)  # several times a command
def prefix_of(account_id: str) -> bytes:
    """What the keys of an account begin with; BAD_FIELD when it is no account id."""
    return keys.account_prefix(slot_of(account_id), rules.account_key(account_id))


def account_not_found() -> Refused:
    return Refused(error_pb2.ERROR_REASON_ACCOUNT_NOT_FOUND, "no such account")


def state_of(record: record_pb2.AccountRecord) -> command_pb2.AccountState:
    state = command_pb2.AccountState()
    tell_state(record, state)
    return state


def tell_state(record: record_pb2.AccountRecord, state: command_pb2.AccountState) -> None:
    state.restore_epoch, state.creation_index = record.restore_epoch, record.creation_index
    state.modseq = record.modseq


class AccountChange:
    """Opens an account for one command.

    The command gets one MODSEQ, above every earlier one of the account (RFC 7162 section 3.1),
    for all that it changes: so no state between lets a reader see half of it. A command that
    changes nothing uses none.
    """

    __slots__ = ("_changes", "_doomed", "context", "modseq", "overlay", "prefix", "record")

    def __init__(
        self,
        overlay: Overlay,
        context: Context,
        prefix: bytes,
        record: record_pb2.AccountRecord | None = None,
    ) -> None:
        record = record or overlay.edit(keys.account_record(prefix), record_pb2.AccountRecord)
        if record is None:
            raise account_not_found()
        self.overlay = overlay
        self.context = context
        self.prefix = prefix
        self.record = record
        self.modseq = record.modseq + 1
        self._doomed: frozenset[int] | None = None
        # What happened, and the thread of a message. In order of the first change, so that the
        # record is the same on every replica.
        self._changes: dict[_Object, _Change] = {}

    def check_state(self, asked: command_pb2.AccountState) -> None:
        """Refuses unless the account is still at this state (RFC 8620 section 5.3, ifInState)."""
        if asked != state_of(self.record):
            raise Refused(
                error_pb2.ERROR_REASON_STATE_MISMATCH,
                "the account is at another state",
                {
                    "restore_epoch": self.record.restore_epoch,
                    "creation_index": self.record.creation_index,
                    "modseq": self.record.modseq,
                },
            )

    def check_object(self, asked: command_pb2.AccountState, object_modseq: int, what: str) -> None:
        """Refuses unless an object is still the one that an etag named."""
        record = self.record
        now = (record.restore_epoch, record.creation_index, object_modseq)
        if (asked.restore_epoch, asked.creation_index, asked.modseq) != now:
            raise Refused(
                error_pb2.ERROR_REASON_ETAG_MISMATCH,
                f"the {what} was changed since",
                {
                    "restore_epoch": record.restore_epoch,
                    "creation_index": record.creation_index,
                    "modseq": object_modseq,
                },
            )

    # ---- what changes

    def created(
        self, kind: record_pb2.ObjectKind.ValueType, number: int, *, thread: int = 0
    ) -> None:
        self._changes[kind, number] = _CREATED, thread

    def updated(self, kind: record_pb2.ObjectKind.ValueType, number: int) -> None:
        if (kind, number) not in self._changes:
            self._changes[kind, number] = _UPDATED, 0

    def destroyed(
        self, kind: record_pb2.ObjectKind.ValueType, number: int, *, thread: int = 0
    ) -> None:
        self._changes[kind, number] = _DESTROYED, thread

    def message_changed(self, message: record_pb2.MessageRecord) -> None:
        """Of a record that edit_message() gave."""
        message.modseq = self.modseq
        self.updated(_MESSAGE, message.message)

    @property
    def changed(self) -> bool:
        return bool(self._changes)

    # ---- what is in it

    def mailbox(self, number: int) -> record_pb2.MailboxRecord | None:
        """A mailbox to change in place; the caller says what happened with updated()."""
        return self.overlay.edit(keys.mailbox_record(self.prefix, number), record_pb2.MailboxRecord)

    def existing_mailbox(self, number: int) -> record_pb2.MailboxRecord:
        """As mailbox(); refuses with MAILBOX_NOT_FOUND."""
        mailbox = self.mailbox(number)
        if mailbox is None:
            raise mailbox_not_found("no such mailbox")
        return mailbox

    def read_mailbox(self, number: int) -> record_pb2.MailboxRecord:
        """As existing_mailbox(), not to be changed."""
        key = keys.mailbox_record(self.prefix, number)
        mailbox = self.overlay.read(key, record_pb2.MailboxRecord)
        if mailbox is None:
            raise mailbox_not_found("no such mailbox")
        return mailbox

    def mailbox_of_role(self, role: int) -> record_pb2.MailboxRecord:
        number = self.overlay.get(keys.mailbox_role(self.prefix, role))
        if number is None:
            raise mailbox_not_found("no mailbox has this role")
        return self.existing_mailbox(int.from_bytes(number))

    def mailbox_of(self, target: command_pb2.Target) -> record_pb2.MailboxRecord:
        if target.WhichOneof("target") == "role":
            return self.mailbox_of_role(target.role)
        return self.existing_mailbox(target.mailbox)

    @property
    def doomed(self) -> frozenset[int]:
        """Mailboxes that are deleted, though not all of their messages know it yet."""
        if self._doomed is None:
            self._doomed = frozenset()
            if self.record.doomed_mailboxes:
                start = keys.doomed_mailbox(self.prefix)
                rows = self.overlay.scan(start, keys.after(start[:-4]))
                self._doomed = frozenset(int.from_bytes(key[-4:]) for key, _ in rows)
        return self._doomed

    # ---- ending

    def next_uid_validity(self) -> int:
        """Above every UIDVALIDITY of the account before (RFC 9051 section 2.3.1.1): the time in
        seconds as the RFC proposes, or the next number.
        """
        seconds = self.context.now_ms // 1000
        following = self.record.last_uid_validity + 1
        if following > rules.UINT32_MAX:
            raise Refused(error_pb2.ERROR_REASON_LIMIT_REACHED, "no UIDVALIDITY is left")
        self.record.last_uid_validity = (
            max(following, seconds) if seconds <= rules.UINT32_MAX else following
        )
        return self.record.last_uid_validity

    def close(self) -> command_pb2.AccountState:
        """Writes the change record, raises the account's MODSEQ to it; the state afterwards."""
        self.finish()
        return state_of(self.record)

    def finish(self) -> None:
        """As close, for who does not need the state, or tells it himself."""
        if self._changes:
            self.record.modseq = self.modseq
            change = record_pb2.ChangeRecord()
            change.format, change.time_ms = rules.FORMAT, self.context.now_ms
            add = change.changes.add
            for (kind, number), (what, thread) in self._changes.items():  # tidy: a plain dict
                one = add()
                one.object, one.change, one.number, one.thread = kind, what, number, thread
            self.overlay.put(keys.change(self.prefix, self.modseq), change)
            if not self.record.trim_due_ms:
                due_ms = self.context.now_ms + rules.CHANGES_KEPT_MS
                self.record.trim_due_ms = due_ms
                chores.enqueue(self.overlay, due_ms, chores.TRIM_CHANGES, self.prefix)


class _AboutAccount(Protocol):
    """A command of one account, with a precondition."""

    account_id: str

    @property
    def if_in_state(self) -> command_pb2.AccountState: ...

    def HasField(self, field_name: Literal["if_in_state"], /) -> bool: ...  # noqa: N802 - protobuf's


def open_account(overlay: Overlay, context: Context, command: _AboutAccount) -> AccountChange:
    """The account that a command names, at the state that it wants, if any."""
    account = AccountChange(overlay, context, prefix_of(command.account_id))
    if command.HasField("if_in_state"):
        account.check_state(command.if_in_state)
    return account

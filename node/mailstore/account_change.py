"""One account while one command changes it: its record, its new MODSEQ, what changed under it."""

from __future__ import annotations

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.v1 import error_pb2
from mailraft.wire.slots import slot_of

from . import rules
from .errors import Refused
from .overlay import Overlay

_CREATED = record_pb2.CHANGE_KIND_CREATED
_UPDATED = record_pb2.CHANGE_KIND_UPDATED


def prefix_of(account_id: str) -> bytes:
    """What the keys of an account begin with; BAD_FIELD when it is no account id."""
    return keys.account_prefix(slot_of(account_id), rules.account_key(account_id))


def account_not_found() -> Refused:
    return Refused(error_pb2.ERROR_REASON_ACCOUNT_NOT_FOUND, "no such account")


def state_of(record: record_pb2.AccountRecord) -> command_pb2.AccountState:
    return command_pb2.AccountState(
        restore_epoch=record.restore_epoch,
        creation_index=record.creation_index,
        modseq=record.modseq,
    )


class AccountChange:
    """Opens an account for one command.

    The command gets one MODSEQ, above every earlier one of the account (RFC 7162 section 3.1),
    for all that it changes: so no state between lets a reader see half of it.
    """

    __slots__ = ("_changes", "modseq", "overlay", "prefix", "record")

    def __init__(
        self, overlay: Overlay, prefix: bytes, record: record_pb2.AccountRecord | None = None
    ) -> None:
        record = record or overlay.edit(keys.account_record(prefix), record_pb2.AccountRecord)
        if record is None:
            raise account_not_found()
        self.overlay = overlay
        self.prefix = prefix
        self.record = record
        self.modseq = record.modseq + 1
        # In order of the first change, so that the record is the same on every replica.
        self._changes: dict[
            tuple[record_pb2.ObjectKind.ValueType, int], record_pb2.ChangeKind.ValueType
        ] = {}

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

    def created(self, kind: record_pb2.ObjectKind.ValueType, number: int) -> None:
        self._changes[kind, number] = _CREATED

    def updated(self, kind: record_pb2.ObjectKind.ValueType, number: int) -> None:
        self._changes.setdefault((kind, number), _UPDATED)

    def mailbox(self, number: int) -> record_pb2.MailboxRecord | None:
        """A mailbox to change in place; the caller says what happened with updated()."""
        return self.overlay.edit(keys.mailbox_record(self.prefix, number), record_pb2.MailboxRecord)

    def next_uid_validity(self, now_ms: int) -> int:
        """Above every UIDVALIDITY of the account before (RFC 9051 section 2.3.1.1): the time in
        seconds as the RFC proposes, or the next number.
        """
        seconds = now_ms // 1000
        following = self.record.last_uid_validity + 1
        if following > rules.UINT32_MAX:
            raise Refused(error_pb2.ERROR_REASON_LIMIT_REACHED, "no UIDVALIDITY is left")
        self.record.last_uid_validity = (
            max(following, seconds) if seconds <= rules.UINT32_MAX else following
        )
        return self.record.last_uid_validity

    def close(self) -> command_pb2.AccountState:
        """Writes the change record, raises the account's MODSEQ to it; the state afterwards."""
        self.record.modseq = self.modseq
        change = record_pb2.ChangeRecord(format=rules.FORMAT)
        add = change.changes.add
        for kind, number in self._changes:
            add(object=kind, change=self._changes[kind, number], number=number)
        self.overlay.put(keys.change(self.prefix, self.modseq), change)
        return state_of(self.record)

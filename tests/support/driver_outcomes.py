"""Replies and records of the state machine as a Driver shows them."""

from __future__ import annotations

from collections.abc import Iterable

import mailbox_driver as d
from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.v1 import error_pb2


def outcome(reply: command_pb2.Reply) -> d.Outcome:
    """What a call answered."""
    state = state_seen(reply.state)
    match reply.WhichOneof("outcome"):
        case "refusal":
            return refusal(reply.refusal)
        case "deliver":
            return d.Delivered(tuple(_recipient(one) for one in reply.deliver.recipients))
        case "append":
            return d.Done(state, stored=tuple(map(_stored, reply.append.messages)))
        case "changed":
            said = reply.changed
            return d.Done(
                state,
                changed=tuple(map(_changed, said.changed)),
                modified=tuple(str(each.message) for each in said.modified),
                missing=_names(said.not_found),
                rest=said.resume_uid,
            )
        case "mapped":
            mapped = tuple(map(_mapped, reply.mapped.mapped))
            missing = _names(reply.mapped.not_found)
            return d.Done(state, mapped=mapped, missing=missing, rest=reply.mapped.resume_uid)
        case "expunged":
            gone = reply.expunged
            return d.Done(
                state,
                destroyed=_names(gone.destroyed),
                vanished=tuple(zip(gone.vanished[::2], gone.vanished[1::2], strict=True)),
                missing=_names(gone.not_found),
                rest=gone.resume_uid,
            )
        case "undeleted":
            back = reply.undeleted
            restored = tuple(str(each.message) for each in back.messages)
            return d.Done(state, restored=restored, missing=_names(back.not_found))
        case _:
            upload, mailbox = reply.upload, str(reply.mailbox.mailbox or "")
            blob = _blob(upload.blob) if upload.HasField("blob") else ""
            return d.Done(state, mailbox=mailbox, offset=upload.offset_bytes, blob=blob)


def refusal(said: command_pb2.Refusal) -> d.Refusal:
    """The reason by its name."""
    # The names of an enum travel with its descriptor; values are numbers in the stubs.
    value = error_pb2.ErrorReason.DESCRIPTOR.values_by_number[said.reason]
    return d.Refusal(value.name.removeprefix("ERROR_REASON_"))


def state_seen(state: command_pb2.AccountState) -> d.State:
    """A state, ordered."""
    return d.State((state.restore_epoch, state.creation_index), state.modseq)


def mailbox_seen(record: record_pb2.MailboxRecord, keywords: Iterable[str]) -> d.MailboxSeen:
    """A mailbox with its counters."""
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
        deleted=record.deleted_messages,
        keywords=tuple(keywords),
        object_modseq=record.object_modseq,
    )


def message_seen(record: record_pb2.MessageRecord, mailbox: int = 0, uid: int = 0) -> d.MessageSeen:
    """A message, by id or as a mailbox lists it."""
    return d.MessageSeen(
        id=str(record.message),
        blob=_blob(record.body),
        thread=str(record.thread),
        uid=uid,
        modseq=record.modseq,
        size_bytes=record.size_bytes,
        keywords=tuple(record.keywords),
        received_ms=record.internal_time_ms,
        deleted=any(each.deleted for each in record.memberships if each.mailbox == mailbox),
        mailboxes=tuple(sorted(str(each.mailbox) for each in record.memberships)),
    )


def change_seen(change: record_pb2.ObjectChange) -> tuple[str, str, str]:
    """(object, what happened, id)."""
    kind = record_pb2.ObjectKind.Name(change.object).removeprefix("OBJECT_KIND_").lower()
    what = record_pb2.ChangeKind.Name(change.change).removeprefix("CHANGE_KIND_").lower()
    return kind, what, str(change.number)


def _recipient(reply: command_pb2.RecipientReply) -> d.Done | d.Refusal:
    if reply.HasField("refusal"):
        return refusal(reply.refusal)
    return d.Done(state_seen(reply.state), stored=(_stored(reply.message),))


def _names(numbers: Iterable[int]) -> tuple[str, ...]:
    return tuple(map(str, numbers))


def _blob(position: record_pb2.BodyPosition) -> str:
    return f"{position.index}-{position.ordinal}"


def _place(member: command_pb2.StoredMembership | command_pb2.MappedMessage) -> d.Place:
    return d.Place(str(member.mailbox), member.uid_validity, member.uid)


def _stored(message: command_pb2.StoredMessage) -> d.Stored:
    return d.Stored(
        str(message.message),
        str(message.thread),
        _blob(message.body),
        message.modseq,
        tuple(map(_place, message.memberships)),
    )


def _changed(changed: command_pb2.ChangedMessage) -> d.Changed:
    return d.Changed(
        str(changed.message),
        changed.modseq,
        tuple(changed.keywords),
        changed.deleted,
        tuple(map(_place, changed.memberships)),
    )


def _mapped(mapped: command_pb2.MappedMessage) -> d.Mapped:
    made = str(mapped.new_message) if mapped.new_message else ""
    return d.Mapped(str(mapped.message), mapped.source_uid, _place(mapped), made)

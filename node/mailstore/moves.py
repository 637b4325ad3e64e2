"""UpdateMemberships, and moving and copying on top of the same steps.

A message's memberships change within one command, so at every index it is in exactly the mailboxes
it was in before or those it is in afterwards: a move neither loses nor doubles it.
"""

from __future__ import annotations

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.v1 import error_pb2

from . import blobs, memberships, messages, rules, selection
from .account_change import AccountChange, open_account
from .context import Context
from .errors import Refused, bad_field, check_reply
from .keywords import failed_condition
from .overlay import Overlay
from .selection import Selected


def update(
    overlay: Overlay, context: Context, command: command_pb2.UpdateMemberships
) -> command_pb2.Reply:
    """Adds, removes and marks; refused as a whole if a message would be in no mailbox."""
    account = open_account(overlay, context, command)
    added = messages.resolve(account, command.add) if command.add else []
    removed = {account.read_mailbox(number).mailbox for number in command.remove}
    marks = {account.read_mailbox(mark.mailbox).mailbox: mark.deleted for mark in command.deleted}
    if any(mailbox.mailbox in removed for mailbox in added):
        raise bad_field("remove_mailbox_ids: not what is added too")
    selected = selection.select(account, command.messages)
    outcome = command_pb2.ChangeOutcome(
        not_found=selected.not_found, resume_uid=selected.resume_uid
    )
    for each in selected.found:
        if failed_condition(each, command):
            outcome.modified.add(message=each.message.message, uid=each.uid)
            continue
        message = _update_one(account, each, added, removed, marks)
        outcome.changed.add(
            message=message.message,
            modseq=message.modseq,
            uid=each.uid,
            memberships=messages.places(account, message),
        )
    state = account.close()
    check_reply(outcome)
    return command_pb2.Reply(format=rules.FORMAT, changed=outcome, state=state)


def move(
    overlay: Overlay, context: Context, command: command_pb2.MoveMessages
) -> command_pb2.Reply:
    """From one mailbox to another (RFC 6851); the flag Deleted stays behind."""
    account = open_account(overlay, context, command)
    target = account.mailbox_of(command.target)
    selected = selection.select(account, command.messages)
    source = selected.mailbox or account.read_mailbox(command.source).mailbox
    if selected.mailbox and command.source not in {0, selected.mailbox}:
        raise bad_field("source_mailbox_id: another than that of the UIDs")
    outcome = command_pb2.MapOutcome(not_found=selected.not_found, resume_uid=selected.resume_uid)
    found: list[tuple[int, Selected]] = []
    for each in selected.found:
        place = memberships.find(each.message, source)
        if place is None:
            outcome.not_found.append(each.message.message)
        else:
            found.append((place.uid, each))
    found.sort(key=lambda pair: pair[0])  # UIDs in the target rise as those of the source
    for uid, each in found:
        place = memberships.find(each.message, target.mailbox)
        if source != target.mailbox:
            message = selection.edit(account, each.message.message)
            place = memberships.find(message, target.mailbox)
            left = memberships.find(message, source)
            assert left is not None
            memberships.leave(account, message, left)
            if place is None:
                place = memberships.join(account, target, message)
            account.message_changed(message)
        assert place is not None
        _map(outcome, each, uid, target, place)
    return command_pb2.Reply(format=rules.FORMAT, mapped=outcome, state=account.close())


def copy(
    overlay: Overlay, context: Context, command: command_pb2.CopyMessages
) -> command_pb2.Reply:
    """One membership more of each message, or a new message each of the same bytes."""
    account = open_account(overlay, context, command)
    target = account.mailbox_of(command.target)
    selected = selection.select(account, command.messages)
    outcome = command_pb2.MapOutcome(not_found=selected.not_found, resume_uid=selected.resume_uid)
    for each in selected.found:
        if command.duplicate:
            message = _duplicate(account, each.message, target)
            _map(outcome, each, each.uid, target, message.memberships[0], message.message)
            continue
        place = memberships.find(each.message, target.mailbox)
        if place is None:
            message = selection.edit(account, each.message.message)
            place = memberships.join(account, target, message)
            account.message_changed(message)
        _map(outcome, each, each.uid, target, place)
    return command_pb2.Reply(format=rules.FORMAT, mapped=outcome, state=account.close())


def _update_one(
    account: AccountChange,
    each: Selected,
    added: list[record_pb2.MailboxRecord],
    removed: set[int],
    marks: dict[int, bool],
) -> record_pb2.MessageRecord:
    has = {place.mailbox: place.deleted for place in each.message.memberships}
    joins = [mailbox for mailbox in added if mailbox.mailbox not in has]
    leaves = [number for number in has if number in removed]
    stays = has.keys() - removed | {mailbox.mailbox for mailbox in added}  # tidy: a plain dict
    if not stays:
        raise Refused(
            error_pb2.ERROR_REASON_LAST_MEMBERSHIP, "a message would be left in no mailbox"
        )
    # A new membership has no mark yet.
    marked = [n for n in sorted(marks) if n in stays and marks[n] != has.get(n, False)]
    if not (joins or leaves or marked):
        return each.message
    message = selection.edit(account, each.message.message)
    for number in leaves:
        place = memberships.find(message, number)
        assert place is not None
        memberships.leave(account, message, place)
    for mailbox in joins:
        memberships.join(account, mailbox, message)
    for number in marked:
        place = memberships.find(message, number)
        assert place is not None
        memberships.set_deleted(account, message, place, deleted=marks[number])
    account.message_changed(message)
    return message


def _duplicate(
    account: AccountChange, message: record_pb2.MessageRecord, target: record_pb2.MailboxRecord
) -> record_pb2.MessageRecord:
    made = record_pb2.MessageRecord()
    made.CopyFrom(message)
    del made.memberships[:]
    body = blobs.known_body(account.overlay, account.prefix, message.body)
    messages.add(account, made, body, [target])
    return made


def _map(
    outcome: command_pb2.MapOutcome,
    each: Selected,
    source_uid: int,
    target: record_pb2.MailboxRecord,
    place: record_pb2.MembershipRecord,
    new_message: int = 0,
) -> None:
    outcome.mapped.add(
        message=each.message.message,
        source_uid=source_uid,
        mailbox=target.mailbox,
        uid_validity=target.uid_validity,
        uid=place.uid,
        new_message=new_message,
    )

"""ModifyKeywords: STORE (RFC 9051 section 6.4.6) with UNCHANGEDSINCE (RFC 7162 section 3.1.3)."""

from __future__ import annotations

from dataclasses import dataclass

from mailraft.internal.v1 import command_pb2, record_pb2

from . import memberships, rules, selection
from .account_change import AccountChange, open_account
from .context import Context
from .errors import bad_field, check_reply
from .overlay import Overlay
from .selection import Selected


@dataclass(frozen=True, slots=True)
class _Edit:
    """What is to be done to each message: a change, so that two of them do not undo each other."""

    add: frozenset[str]
    remove: frozenset[str]
    replace: tuple[str, ...] | None
    deleted: bool | None

    def keywords(self, before: record_pb2.MessageRecord) -> list[str]:
        if self.replace is not None:
            return list(self.replace)
        after = sorted((set(before.keywords) - self.remove) | self.add)
        rules.check_keyword_count(len(after))
        return after


def modify(
    overlay: Overlay, context: Context, command: command_pb2.ModifyKeywords
) -> command_pb2.Reply:
    """Touches exactly the messages that are unchanged since, and names the rest: it never aborts.
    A message that is as asked already keeps its MODSEQ.
    """
    edit = _edit_of(command)
    account = open_account(overlay, context, command)
    selected = selection.select(account, command.messages)
    outcome = command_pb2.ChangeOutcome(
        not_found=selected.not_found, resume_uid=selected.resume_uid
    )
    for each in selected.found:
        if failed_condition(each, command):
            outcome.modified.add(message=each.message.message, uid=each.uid)
        else:
            _modify_one(account, each, edit, outcome)
    state = account.close()
    check_reply(outcome)
    return command_pb2.Reply(format=rules.FORMAT, changed=outcome, state=state)


def failed_condition(
    each: Selected, command: command_pb2.ModifyKeywords | command_pb2.UpdateMemberships
) -> bool:
    """Whether the message changed since what the caller knows of it. 0 is a value too."""
    return command.HasField("unchanged_since") and each.modseq > command.unchanged_since


def _modify_one(
    account: AccountChange, each: Selected, edit: _Edit, outcome: command_pb2.ChangeOutcome
) -> None:
    message, membership = each.message, each.membership
    after = edit.keywords(message)
    other_keywords = after != list(message.keywords)
    other_deleted = (
        membership is not None and edit.deleted is not None and membership.deleted != edit.deleted
    )
    if other_keywords or other_deleted:
        message = selection.edit(account, message.message)
        membership = None
        if each.membership is not None:
            membership = memberships.find(message, each.membership.mailbox)
        if other_keywords:
            memberships.set_keywords(account, message, after)
        if other_deleted and membership is not None:
            memberships.set_deleted(account, message, membership, deleted=bool(edit.deleted))
        account.message_changed(message)
    outcome.changed.add(
        message=message.message,
        modseq=message.modseq if membership is None else membership.modseq,
        uid=each.uid,
        keywords=message.keywords,
        deleted=membership is not None and membership.deleted,
    )


def _edit_of(command: command_pb2.ModifyKeywords) -> _Edit:
    add, remove = rules.keywords(command.add), rules.keywords(command.remove)
    if set(add) & set(remove):
        raise bad_field("add: not what is removed too")
    if command.replace and (add or remove):
        raise bad_field("replace: not with add or remove")
    deleted = command.deleted if command.HasField("deleted") else None
    if deleted is not None and not command.messages.HasField("uids"):
        raise bad_field("deleted: with UIDs only")
    replace = tuple(rules.keywords(command.keywords)) if command.replace else None
    return _Edit(frozenset(add), frozenset(remove), replace, deleted)

"""UpdateMemberships, MoveMessages, CopyMessages."""

from __future__ import annotations

from mailraft.internal.v1 import command_pb2
from mailraft.v1 import message_pb2, message_service_pb2
from mailraft.wire import limits, tokens

from . import changing, convert, validate
from .base import Call, Shards
from .keywords import modified_ids, modified_ranges

_COPY_MODES = message_service_pb2.CopyMode.values()


class Moves:
    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def UpdateMemberships(
        self, request: message_service_pb2.UpdateMembershipsRequest, call: Call
    ) -> message_service_pb2.UpdateMembershipsResponse:
        changing.check(request)
        chosen = changing.chosen(request.messages)
        action = _update(request, chosen)
        done = await changing.change(
            self._shards, request, call, "update_memberships", action, chosen.content
        )
        outcome = done.reply.changed
        response = message_service_pb2.UpdateMembershipsResponse(
            state=done.state,
            served=done.served,
            modified_ids=modified_ids(outcome),
            modified_ranges=modified_ranges(outcome),
            not_found_ids=chosen.not_found_ids(outcome.not_found),
            remaining=chosen.remaining(outcome.resume_uid),
        )
        for each in outcome.changed:
            response.changed.add(
                message_id=tokens.message_id(each.message),
                modseq=each.modseq,
                source_uid=each.uid,
                memberships=convert.places(each.memberships),
            )
        return response

    async def MoveMessages(
        self, request: message_service_pb2.MoveMessagesRequest, call: Call
    ) -> message_service_pb2.MoveMessagesResponse:
        changing.check(request)
        chosen = changing.chosen(request.messages)
        source = request.source_mailbox_id
        if chosen.uid_set is None and not source:
            raise validate.bad("source_mailbox_id", "must be told with ids")
        if chosen.uid_set is not None and source not in {"", chosen.uid_set.mailbox_id}:
            raise validate.bad("source_mailbox_id", "must be empty, or the mailbox of the UIDs")
        action = command_pb2.MoveMessages(
            account_id=request.account_id,
            messages=chosen.selection,
            source=validate.mailbox_id(source) if source else 0,
            target=_target(request.target),
        )
        done = await changing.change(
            self._shards, request, call, "move_messages", action, chosen.content
        )
        outcome = done.reply.mapped
        return message_service_pb2.MoveMessagesResponse(
            state=done.state,
            served=done.served,
            moved=map(_mapping, outcome.mapped),
            not_found_ids=chosen.not_found_ids(outcome.not_found),
            remaining=chosen.remaining(outcome.resume_uid),
        )

    async def CopyMessages(
        self, request: message_service_pb2.CopyMessagesRequest, call: Call
    ) -> message_service_pb2.CopyMessagesResponse:
        changing.check(request)
        chosen = changing.chosen(request.messages)
        if request.mode not in _COPY_MODES:
            raise validate.bad("mode", f"{request.mode} is no mode")
        action = command_pb2.CopyMessages(
            account_id=request.account_id,
            messages=chosen.selection,
            target=_target(request.target),
            duplicate=request.mode == message_service_pb2.COPY_MODE_DUPLICATE,
        )
        done = await changing.change(
            self._shards, request, call, "copy_messages", action, chosen.content
        )
        outcome = done.reply.mapped
        return message_service_pb2.CopyMessagesResponse(
            state=done.state,
            served=done.served,
            copied=map(_mapping, outcome.mapped),
            not_found_ids=chosen.not_found_ids(outcome.not_found),
            remaining=chosen.remaining(outcome.resume_uid),
        )


def _update(
    request: message_service_pb2.UpdateMembershipsRequest, chosen: changing.Chosen
) -> command_pb2.UpdateMemberships:
    for field, asked in (
        ("remove_mailbox_ids", request.remove_mailbox_ids),
        ("deleted", [mark.mailbox_id for mark in request.deleted]),
    ):
        validate.unique(asked, field)
        if len(asked) > limits.TARGETS_PER_MESSAGE_MAX:
            raise validate.bad(field, f"at most {limits.TARGETS_PER_MESSAGE_MAX}")
    action = command_pb2.UpdateMemberships(
        account_id=request.account_id,
        messages=chosen.selection,
        add=validate.targets(request.add, "add"),
        remove=map(validate.mailbox_id, request.remove_mailbox_ids),
    )
    for mark in request.deleted:
        action.deleted.add(mailbox=validate.mailbox_id(mark.mailbox_id), deleted=mark.deleted)
    if request.HasField("unchanged_since"):
        action.unchanged_since = request.unchanged_since
    return action


def _target(asked: message_pb2.MailboxTarget) -> command_pb2.Target:
    (target,) = validate.targets([asked], "target")
    return target


def _mapping(mapped: command_pb2.MappedMessage) -> message_pb2.MessageMapping:
    """COPYUID (RFC 9051 section 7.1)."""
    return message_pb2.MessageMapping(
        message_id=tokens.message_id(mapped.message),
        source_uid=mapped.source_uid,
        mailbox_id=tokens.mailbox_id(mapped.mailbox),
        uid_validity=mapped.uid_validity,
        uid=mapped.uid,
        new_message_id=tokens.message_id(mapped.new_message) if mapped.new_message else "",
    )

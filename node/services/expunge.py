"""ExpungeMessages and UndeleteMessages."""

from __future__ import annotations

from mailraft.internal.v1 import command_pb2
from mailraft.node.mailstore import undelete
from mailraft.v1 import common_pb2, message_service_pb2
from mailraft.wire import tokens

from . import changing, convert, levels, validate
from .base import Call, Shards


class Expunge:
    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def ExpungeMessages(
        self, request: message_service_pb2.ExpungeMessagesRequest, call: Call
    ) -> message_service_pb2.ExpungeMessagesResponse:
        changing.check(request)
        chosen = changing.chosen(request.messages)
        if request.only_deleted and chosen.uid_set is None:
            raise validate.bad("only_deleted", "with UIDs only")
        action = command_pb2.ExpungeMessages(
            account_id=request.account_id,
            messages=chosen.selection,
            only_deleted=request.only_deleted,
        )
        done = await changing.change(
            self._shards, request, call, "expunge_messages", action, chosen.content
        )
        outcome = done.reply.expunged
        return message_service_pb2.ExpungeMessagesResponse(
            state=done.state,
            served=done.served,
            destroyed_ids=map(tokens.message_id, outcome.destroyed),
            vanished_ranges=outcome.vanished,
            highest_modseq=outcome.highest_modseq,
            not_found_ids=chosen.not_found_ids(outcome.not_found),
            remaining=chosen.remaining(outcome.resume_uid),
        )

    async def UndeleteMessages(
        self, request: message_service_pb2.UndeleteMessagesRequest, call: Call
    ) -> message_service_pb2.UndeleteMessagesResponse:
        """With validate_only it is a read, at the cluster's default level."""
        changing.check(request)
        action, unknown = _undelete(request)
        if request.validate_only:
            at = await levels.read(self._shards, request.account_id, common_pb2.ReadOptions(), call)
            outcome = undelete.preview(at.view, request.account_id, self._shards.wall_ms(), action)
            state, served, view = at.state, at.served, at.view
        else:
            done = await changing.change(self._shards, request, call, "undelete_messages", action)
            outcome, state, served = done.reply.undeleted, done.state, done.served
            view = self._shards.replica_for_account(request.account_id).view
        show = convert.Messages(view, request.account_id, convert.BASIC)
        return message_service_pb2.UndeleteMessagesResponse(
            state=state,
            served=served,
            messages=map(show.show, outcome.messages),
            not_found_ids=[*unknown, *map(tokens.message_id, outcome.not_found)],
            more=outcome.more,
        )


def _undelete(
    request: message_service_pb2.UndeleteMessagesRequest,
) -> tuple[command_pb2.UndeleteMessages, list[str]]:
    action = command_pb2.UndeleteMessages(account_id=request.account_id)
    unknown: list[str] = []
    match request.WhichOneof("selector"):
        case "ids":
            numbers, unknown = changing.message_ids(request.ids, "ids")
            action.messages.extend(numbers)
        case "expunged":
            asked = request.expunged
            action.since.SetInParent()
            action.since.from_ms = asked.from_ms
            if asked.mailbox_id:
                action.since.mailbox = validate.mailbox_id(asked.mailbox_id)
        case _:
            raise validate.bad("ids", "ids or expunged")
    if request.HasField("target"):
        (target,) = validate.targets([request.target], "target")
        action.target.CopyFrom(target)
    return action, unknown

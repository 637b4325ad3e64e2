"""ModifyKeywords."""

from __future__ import annotations

from mailraft.internal.v1 import command_pb2
from mailraft.v1 import message_service_pb2
from mailraft.wire import tokens

from . import changing, validate
from .base import Call, Shards


class Keywords:
    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def ModifyKeywords(
        self, request: message_service_pb2.ModifyKeywordsRequest, call: Call
    ) -> message_service_pb2.ModifyKeywordsResponse:
        changing.check(request)
        chosen = changing.chosen(request.messages)
        action = _action(request, chosen)
        done = await changing.change(
            self._shards, request, call, "modify_keywords", action, chosen.content
        )
        outcome = done.reply.changed
        return message_service_pb2.ModifyKeywordsResponse(
            state=done.state,
            served=done.served,
            changed=map(_shown, outcome.changed),
            modified_ids=modified_ids(outcome),
            modified_ranges=modified_ranges(outcome),
            not_found_ids=chosen.not_found_ids(outcome.not_found),
            remaining=chosen.remaining(outcome.resume_uid),
        )


def modified_ids(outcome: command_pb2.ChangeOutcome) -> list[str]:
    return [tokens.message_id(each.message) for each in outcome.modified]


def modified_ranges(outcome: command_pb2.ChangeOutcome) -> list[int]:
    """By UID: MODIFIED (RFC 7162 section 3.1.3), as pairs."""
    found: list[int] = []
    for uid in (each.uid for each in outcome.modified if each.uid):
        if found and found[-1] == uid - 1:
            found[-1] = uid
        else:
            found += (uid, uid)
    return found


def _action(
    request: message_service_pb2.ModifyKeywordsRequest, chosen: changing.Chosen
) -> command_pb2.ModifyKeywords:
    action = command_pb2.ModifyKeywords(
        account_id=request.account_id,
        messages=chosen.selection,
        add=validate.keywords(request.add, "add"),
        remove=validate.keywords(request.remove, "remove"),
        replace=request.HasField("replace"),
        keywords=validate.keywords(request.replace.keywords, "replace.keywords"),
    )
    if set(action.add) & set(action.remove):
        raise validate.bad("add", "not what is removed too")
    if action.replace and (action.add or action.remove):
        raise validate.bad("replace", "not together with add or remove")
    if request.HasField("unchanged_since"):
        action.unchanged_since = request.unchanged_since
    if request.HasField("deleted"):
        if chosen.uid_set is None:
            raise validate.bad("deleted", "with UIDs only: it is of one mailbox")
        action.deleted = request.deleted
    return action


def _shown(changed: command_pb2.ChangedMessage) -> message_service_pb2.KeywordChange:
    return message_service_pb2.KeywordChange(
        message_id=tokens.message_id(changed.message),
        modseq=changed.modseq,
        keywords=changed.keywords,
        uid=changed.uid,
        deleted=changed.deleted,
    )

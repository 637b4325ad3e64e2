"""ListChanges and ListMailboxChanges: what a client that knows a state has missed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import TypeAlias

from mailraft.internal.v1 import record_pb2
from mailraft.node.mailstore import changes, changes_mailbox
from mailraft.v1 import change_pb2, common_pb2
from mailraft.wire import tokens

from . import levels, validate
from .base import Call, Shards

Type: TypeAlias = common_pb2.ObjectType.ValueType

TYPES: dict[changes.Kind, Type] = {
    record_pb2.OBJECT_KIND_ACCOUNT: common_pb2.OBJECT_TYPE_ACCOUNT,
    record_pb2.OBJECT_KIND_MAILBOX: common_pb2.OBJECT_TYPE_MAILBOX,
    record_pb2.OBJECT_KIND_MESSAGE: common_pb2.OBJECT_TYPE_MESSAGE,
    changes.THREAD: common_pb2.OBJECT_TYPE_THREAD,
}
_KINDS = {shown: kind for kind, shown in TYPES.items()}


class Changes:
    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def ListChanges(
        self, request: change_pb2.ListChangesRequest, call: Call
    ) -> change_pb2.ListChangesResponse:
        """The page ends within a command that changed more than it holds; so does new_state."""
        validate.account_id(request.account_id)
        since = state(request.since_state, "since_state")
        kinds = kinds_of(request.types, "types")
        options = at_least(request.read_options, since)
        at = await levels.read(self._shards, request.account_id, options, call)
        found = changes.changes(
            at.view,
            request.account_id,
            place_of(since),
            kinds,
            validate.page_size(request.page_size),
        )
        name = _names(request.account_id)
        response = change_pb2.ListChangesResponse(
            state=at.state,
            served=at.served,
            new_state=token_at(since, found.place),
            more=found.more,
        )
        for kind in sorted(found.kinds):
            each = found.kinds[kind]
            response.changes.add(
                type=TYPES[kind],
                created=map(name[kind], each.created),
                updated=map(name[kind], each.updated),
                destroyed=map(name[kind], each.destroyed),
                only_counts=each.only_counts,
            )
        return response

    async def ListMailboxChanges(
        self, request: change_pb2.ListMailboxChangesRequest, call: Call
    ) -> change_pb2.ListMailboxChangesResponse:
        """RFC 7162 section 3.2.5."""
        validate.account_id(request.account_id)
        if not request.uid_validity:
            raise validate.bad("uid_validity", "must not be 0")
        known = validate.uid_ranges(request.known_ranges, "known_ranges")
        number = validate.mailbox_id(request.mailbox_id)
        at = await levels.read(self._shards, request.account_id, request.read_options, call)
        found = changes_mailbox.mailbox_changes(
            at.view,
            request.account_id,
            number,
            request.uid_validity,
            request.since_modseq,
            validate.page_size(request.page_size),
        )
        response = change_pb2.ListMailboxChangesResponse(
            state=at.state,
            served=at.served,
            vanished_ranges=chain.from_iterable(changes_mailbox.ranges(found.vanished, known)),
            new_modseq=found.modseq,
            more=found.more,
            highest_modseq=found.mailbox.highest_modseq,
            uid_next=found.mailbox.uid_next,
        )
        for each in found.changed:
            response.changed.add(
                uid=each.uid,
                message_id=tokens.message_id(each.message),
                modseq=each.modseq,
                keywords=each.keywords,
                deleted=each.deleted,
            )
        return response


def state(text: str, field: str) -> tokens.State:
    """A state that a caller has; BAD_FIELD for a string that is none."""
    try:
        return tokens.decode_state(text)
    except ValueError:
        raise validate.bad(field, "a state of this account") from None


def place_of(since: tokens.State) -> changes.Place:
    return changes.Place(since.modseq, since.position)


def token_at(since: tokens.State, place: changes.Place) -> str:
    """The token of a place in the same incarnation."""
    return tokens.encode_state(tokens.State(*since.incarnation, *place))


def at_least(options: common_pb2.ReadOptions, since: tokens.State) -> common_pb2.ReadOptions:
    """The options, with `since` as a min_state unless they ask for more: so a replica that has not
    seen it waits or is left, and one of another life of the account says so.
    """
    wanted = tokens.State(*since.incarnation, place_of(since).reached_modseq)
    if options.min_state:
        seen = state(options.min_state, "read_options.min_state")
        if seen.incarnation > since.incarnation:  # the caller has seen a later life already
            raise levels.too_old()
        wanted = max(wanted, seen)
    raised = common_pb2.ReadOptions()
    raised.CopyFrom(options)
    raised.min_state = tokens.encode_state(wanted)
    return raised


def kinds_of(types: Iterable[Type], field: str) -> frozenset[changes.Kind] | None:
    """The kinds of object that are asked for; None: all."""
    asked = set(types)
    if not asked:
        return None
    if not asked <= set(common_pb2.ObjectType.values()) - {common_pb2.OBJECT_TYPE_UNSPECIFIED}:
        raise validate.bad(field, "types of objects")
    return frozenset(_KINDS[each] for each in asked)


def _names(account_id: str) -> dict[changes.Kind, Callable[[int], str]]:
    return {
        record_pb2.OBJECT_KIND_ACCOUNT: lambda _: account_id,
        record_pb2.OBJECT_KIND_MAILBOX: tokens.mailbox_id,
        record_pb2.OBJECT_KIND_MESSAGE: tokens.message_id,
        changes.THREAD: tokens.thread_id,
    }

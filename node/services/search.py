"""SearchMessages. Each page is read in one go, in bounded work (mailstore/search.py)."""

from __future__ import annotations

from collections.abc import Callable, MutableSequence, Sequence

from mailraft.internal.v1 import record_pb2
from mailraft.node.interfaces import View
from mailraft.node.mailstore import filters, queries, search
from mailraft.v1 import message_pb2, search_pb2
from mailraft.wire import errors, tokens

from . import convert, levels, validate
from .base import REPLY_MAX_BYTES, Call, Shards

_NEWEST_FIRST: search.SortKey = (search.Property.RECEIVED, True)


class Search:
    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def SearchMessages(
        self, request: search_pb2.SearchMessagesRequest, call: Call
    ) -> search_pb2.SearchMessagesResponse:
        validate.account_id(request.account_id)
        shown = validate.view(request.view)
        sort = _sort(request.sort)
        if request.collapse_threads:
            raise errors.FilterUnsupportedError("collapse_threads is not supported")
        asked = request.filter if request.HasField("filter") else None
        bound = (
            "SearchMessages",
            request.account_id,
            request.mailbox_id,
            b"".join(each.SerializeToString(deterministic=True) for each in request.sort).hex(),
            asked.SerializeToString(deterministic=True).hex() if asked is not None else "",
        )
        position = tokens.open_page_token(request.page_token, bound) if request.page_token else b""
        at = await levels.read(self._shards, request.account_id, request.read_options, call)
        mailbox = validate.mailbox_id(request.mailbox_id) if request.mailbox_id else 0
        if mailbox:
            queries.mailbox(at.view, request.account_id, mailbox)
        query = search.Query(
            account_id=request.account_id,
            mailbox=mailbox or _mailbox_of(at.view, request.account_id, asked),
            test=compiled(at.view, request.account_id, mailbox, asked),
            sort=sort,
            count=validate.page_size(request.page_size),
        )
        try:
            found = search.search(at.view, query, position)
        except ValueError:
            raise errors.BadPageTokenError from None
        response = search_pb2.SearchMessagesResponse(
            state=at.state, served=at.served, examined_messages=found.examined
        )
        following = _show(
            found, convert.Messages(at.view, request.account_id, shown).show, response.messages
        )
        if following:
            response.next_page_token = tokens.page_token(bound, following)
        return response


def compiled(
    view: View,
    account_id: str,
    mailbox: int,
    asked: search_pb2.MessageFilter | None,
    *,
    own_record: bool = False,
) -> filters.Test:
    """The conditions as one function; without any, everything matches."""
    if asked is None:
        return lambda _: True

    def check(number: int, uid_validity: int) -> None:
        queries.check_uid_validity(queries.mailbox(view, account_id, number), uid_validity)

    return filters.Compiler(mailbox, check, own_record=own_record).compile(asked)


def _sort(asked: Sequence[search_pb2.SortKey]) -> list[search.SortKey]:
    if len(asked) > search.SORT_KEYS_MAX:
        raise validate.bad("sort", f"at most {search.SORT_KEYS_MAX}")
    found: list[search.SortKey] = []
    for each in asked:
        wanted = each.property or search_pb2.SORT_PROPERTY_RECEIVED_TIME
        if wanted not in search_pb2.SortProperty.values():
            raise validate.bad("sort", f"{wanted} is no property")
        found.append((search.Property(wanted), each.descending))
    return found or [_NEWEST_FIRST]


def _mailbox_of(view: View, account_id: str, asked: search_pb2.MessageFilter | None) -> int:
    """The mailbox that every match is in, where the filter says so in plain sight; else 0."""
    if asked is None:
        return 0
    kind = asked.WhichOneof("condition")
    for each in asked.all_of.filters if kind == "all_of" else (asked,):
        if each.WhichOneof("condition") == "in_mailbox_id":
            number = validate.mailbox_id(each.in_mailbox_id)
            queries.mailbox(view, account_id, number)
            return number
    return 0


def _show(
    found: search.Found,
    show: Callable[[record_pb2.MessageRecord], message_pb2.Message],
    into: MutableSequence[message_pb2.Message],
) -> bytes:
    """Fills a reply up to its limit; where the next page goes on, empty: nowhere."""
    left_bytes, last = REPLY_MAX_BYTES, b""
    for record, position in zip(found.messages, found.positions, strict=True):
        message = show(record)
        left_bytes -= message.ByteSize() + 8
        if left_bytes < 0 and last:
            return last
        into.append(message)
        last = position
    return found.following


assert {each.value for each in search.Property} == {
    value for value in search_pb2.SortProperty.values() if value
}

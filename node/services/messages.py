"""Reads of messages: one, many, pages of a mailbox, its UIDs.

A page is read in one go, at one state of the account, and ends early where the reply would be too
large. Page tokens say where the last page ended, so mail may arrive and go in between.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import chain

from mailraft.internal.v1 import record_pb2
from mailraft.node.interfaces import View
from mailraft.node.mailstore import queries, search, thread_queries
from mailraft.v1 import message_pb2, message_service_pb2
from mailraft.wire import errors, limits, tokens
from mailraft.wire.ready import Ready

from . import convert, levels, validate
from .base import REPLY_MAX_BYTES, Call, Shards
from .search import compiled
from .summaries import Summaries

UID_PAIRS_MAX = 100_000
_UID = struct.Struct(">I")
_CURSOR = struct.Struct(">IIq")  # UIDVALIDITY, last UID, last received time

_ORDERS = {
    message_pb2.MESSAGE_ORDER_UNSPECIFIED: queries.Order.UID_ASCENDING,
    message_pb2.MESSAGE_ORDER_UID_ASC: queries.Order.UID_ASCENDING,
    message_pb2.MESSAGE_ORDER_UID_DESC: queries.Order.UID_DESCENDING,
    message_pb2.MESSAGE_ORDER_RECEIVED_ASC: queries.Order.RECEIVED_ASCENDING,
    message_pb2.MESSAGE_ORDER_RECEIVED_DESC: queries.Order.RECEIVED_DESCENDING,
}
_BY_UID = (queries.Order.UID_ASCENDING, queries.Order.UID_DESCENDING)
_DESCENDING = (queries.Order.UID_DESCENDING, queries.Order.RECEIVED_DESCENDING)


class Messages:
    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._summaries = Summaries()

    async def GetMessage(
        self, request: message_service_pb2.GetMessageRequest, call: Call
    ) -> message_service_pb2.GetMessageResponse:
        validate.account_id(request.account_id)
        shown = validate.view(request.view)
        at = await levels.read(self._shards, request.account_id, request.read_options, call)
        number = validate.message_id(request.message_id)
        record = queries.message(at.view, request.account_id, number)
        message = convert.Messages(at.view, request.account_id, shown).show(record)
        return message_service_pb2.GetMessageResponse(
            state=at.state, served=at.served, message=message
        )

    async def BatchGetMessages(
        self, request: message_service_pb2.BatchGetMessagesRequest, call: Call
    ) -> message_service_pb2.BatchGetMessagesResponse:
        validate.account_id(request.account_id)
        shown = validate.view(request.view)
        selector = request.messages.WhichOneof("selector")
        if selector is None:
            raise validate.bad("messages", "ids or uid_set")
        # One request goes on with one selector: its bytes are what a token is bound to.
        bound = (request.account_id, request.messages.SerializeToString(deterministic=True).hex())
        start = _opened(request.page_token, ("BatchGetMessages", *bound), _UID)
        ids = request.messages.ids.ids
        ranges: list[tuple[int, int]] = []
        if selector == "ids":
            if not 1 <= len(ids) <= limits.PAGE_SIZE_MAX:
                raise validate.bad("messages.ids", f"1 to {limits.PAGE_SIZE_MAX}")
            validate.unique(ids, "messages.ids")
        else:
            ranges = validate.uid_set(request.messages.uid_set, "messages.uid_set")
        at = await levels.read(self._shards, request.account_id, request.read_options, call)
        response = message_service_pb2.BatchGetMessagesResponse(state=at.state, served=at.served)
        show = convert.Messages(at.view, request.account_id, shown)
        first = start[0] if start else 0
        if selector == "ids":
            following = _by_ids(at.view, request.account_id, ids, first, show, response)
        else:
            mailbox_id = request.messages.uid_set.mailbox_id
            uid_validity = request.messages.uid_set.uid_validity
            found, following = queries.messages_by_uid(
                at.view,
                request.account_id,
                validate.mailbox_id(mailbox_id),
                uid_validity,
                [(max(low, first), high) for low, high in ranges if high >= first],
                limits.PAGE_SIZE_MAX,
            )
            room = _Room()
            for uid, record in found:
                message = show.show(record)
                if not room.take(message.ByteSize()):
                    following = uid
                    break
                response.messages.append(message)
        if following:
            response.next_page_token = tokens.page_token(
                ("BatchGetMessages", *bound), _UID.pack(following)
            )
        return response

    async def ListMessages(
        self, request: message_service_pb2.ListMessagesRequest, call: Call
    ) -> Ready:
        """A ListMessagesResponse."""
        validate.account_id(request.account_id)
        shown = validate.view(request.view)
        if request.order not in _ORDERS:
            raise validate.bad("order", f"{request.order} is no order")
        order = _ORDERS[request.order]
        _check_start(request, order)
        at = await levels.read(self._shards, request.account_id, request.read_options, call)
        record = _mailbox(at.view, request)
        bound: tuple[str | int, ...] = (
            "ListMessages",
            request.account_id,
            record.mailbox,
            int(order),
        )
        if request.HasField("filter"):
            bound += (request.filter.SerializeToString(deterministic=True).hex(),)
        page = _page(at.view, request, record, order, _cursor(request, record, order, bound))
        response = message_service_pb2.ListMessagesResponse(
            state=at.state,
            served=at.served,
            mailbox_id=tokens.mailbox_id(record.mailbox),
            uid_validity=record.uid_validity,
            total_messages=record.total_messages,
        )
        show, summary = convert.Messages(at.view, request.account_id, shown), self._summaries.of
        fitting: list[bytes] = []
        room = _Room()
        for stored in page.stored:
            message = summary(stored, show)
            if not room.take(len(message)):
                break
            fitting.append(message)
        following = page.following
        if fitting and len(fitting) < len(page.stored):
            following = _cut_at(page, len(fitting) - 1, record, order)
        if following:
            position = _CURSOR.pack(
                record.uid_validity, following.last_uid, following.last_received_ms
            )
            response.next_page_token = tokens.page_token(bound, position)
        return Ready((response.SerializeToString(), *fitting))

    async def ListUids(
        self, request: message_service_pb2.ListUidsRequest, call: Call
    ) -> message_service_pb2.ListUidsResponse:
        """At most queries.UIDS_MAX UIDs a page, so that no call holds up the others for long."""
        validate.account_id(request.account_id)
        at = await levels.read(self._shards, request.account_id, request.read_options, call)
        record = _mailbox(at.view, request)
        bound = ("ListUids", request.account_id, record.mailbox, record.uid_validity)
        start = _opened(request.page_token, bound, _UID)
        ranges, following = queries.uid_ranges(
            at.view, request.account_id, record.mailbox, start[0] if start else 0
        )
        pairs_max = validate.page_size(request.page_size, UID_PAIRS_MAX, UID_PAIRS_MAX)
        if len(ranges) > pairs_max:
            del ranges[pairs_max:]
            following = ranges[-1][1]
        token = tokens.page_token(bound, _UID.pack(following)) if following else ""
        return message_service_pb2.ListUidsResponse(
            state=at.state,
            served=at.served,
            ranges=chain.from_iterable(ranges),
            next_page_token=token,
            mailbox_id=tokens.mailbox_id(record.mailbox),
            uid_validity=record.uid_validity,
            uid_next=record.uid_next,
        )


class _Room:
    """What still fits a reply. One message always does."""

    def __init__(self) -> None:
        self._left_bytes = REPLY_MAX_BYTES

    def take(self, size_bytes: int) -> bool:
        first = self._left_bytes == REPLY_MAX_BYTES
        self._left_bytes -= size_bytes + 8
        return first or self._left_bytes >= 0


def _by_ids(
    view: View,
    account_id: str,
    ids: Iterable[str],
    first: int,
    show: convert.Messages,
    response: message_service_pb2.BatchGetMessagesResponse,
) -> int:
    """Fills the response from the id at place `first`; the place to go on from, or 0."""
    room = _Room()
    for place, asked in enumerate(ids):
        if place < first:
            continue
        try:
            found, _ = queries.messages(view, account_id, [tokens.parse_message_id(asked)])
        except ValueError:
            found = []
        if not found:
            response.not_found_ids.append(asked)
            continue
        message = show.show(found[0])
        if not room.take(message.ByteSize()):
            return place
        response.messages.append(message)
    return 0


def _mailbox(
    view: View,
    request: message_service_pb2.ListMessagesRequest | message_service_pb2.ListUidsRequest,
) -> record_pb2.MailboxRecord:
    """The mailbox that is named by id or role, under the UIDVALIDITY that is asked for, if any."""
    match request.WhichOneof("mailbox"):
        case "mailbox_id":
            number = validate.mailbox_id(request.mailbox_id)
            record = queries.mailbox(view, request.account_id, number)
        case "mailbox_role":
            role = validate.role(request.mailbox_role, "mailbox_role")
            record = queries.mailbox_by_role(view, request.account_id, role)
        case _:
            raise validate.bad("mailbox_id", "mailbox_id or mailbox_role")
    if request.uid_validity:
        queries.check_uid_validity(record, request.uid_validity)
    return record


def _page(
    view: View,
    request: message_service_pb2.ListMessagesRequest,
    record: record_pb2.MailboxRecord,
    order: queries.Order,
    cursor: queries.PageCursor | None,
) -> queries.MessagePage:
    """The page behind the cursor; with a filter it may be short or empty and not the last."""
    account_id, count = request.account_id, validate.page_size(request.page_size)
    if not request.HasField("filter"):
        return queries.page(view, account_id, record.mailbox, order, count, cursor)
    threads = thread_queries.Threads(view, account_id)
    test, _ = compiled(view, account_id, record.mailbox, request.filter, threads, own_record=True)
    by = search.Property.UID if order in _BY_UID else search.Property.RECEIVED
    query = search.Query(account_id, record.mailbox, test, [(by, order in _DESCENDING)], count)
    position = b""
    if cursor is not None:
        queries.check_uid_validity(record, cursor.uid_validity)
        received_ms = 0 if order in _BY_UID else cursor.last_received_ms
        position = search.walked_position(record.mailbox, cursor.last_uid, received_ms)
    found = search.search(view, query, position)
    following = None
    if found.following:
        place = search.walked_place(found.following)
        following = queries.PageCursor(record.mailbox, record.uid_validity, order, *place)
    uids = tuple(search.walked_place(each)[0] for each in found.positions)
    stored = tuple(each.SerializeToString() for each in found.messages)
    return queries.MessagePage(stored, uids, following)


def _cut_at(
    page: queries.MessagePage,
    place: int,
    record: record_pb2.MailboxRecord,
    order: queries.Order,
) -> queries.PageCursor:
    """Behind the message at a place of a page, of which no more fits the reply."""
    received_ms = record_pb2.MessageRecord.FromString(page.stored[place]).internal_time_ms
    return queries.PageCursor(
        record.mailbox, record.uid_validity, order, page.uids[place], received_ms
    )


def _check_start(request: message_service_pb2.ListMessagesRequest, order: queries.Order) -> None:
    start = request.WhichOneof("start")
    if start is None:
        return
    if request.page_token:
        raise validate.bad(start, "must be absent with a page_token")
    if (start == "start_uid") != (order in _BY_UID):
        raise validate.bad(
            start, "start_uid goes with orders by UID, start_time_ms with the others"
        )
    if start == "start_time_ms":
        validate.internal_time(request.start_time_ms, start)


def _cursor(
    request: message_service_pb2.ListMessagesRequest,
    record: record_pb2.MailboxRecord,
    order: queries.Order,
    bound: tuple[str | int, ...],
) -> queries.PageCursor | None:
    """Behind which row the page begins: from the token, or just before the asked start."""
    opened = _opened(request.page_token, bound, _CURSOR)
    if opened:
        uid_validity, last_uid, received_ms = opened
        return queries.PageCursor(record.mailbox, uid_validity, order, last_uid, received_ms)
    descending = order in _DESCENDING
    uid, time_ms = 0, 0
    match request.WhichOneof("start"):
        case "start_uid":
            uid = request.start_uid + 1 if descending else request.start_uid - 1
            if not 0 < uid <= validate.UINT32_MAX:
                return None
        case "start_time_ms":
            time_ms = request.start_time_ms + 1 if descending else request.start_time_ms
        case _:
            return None
    return queries.PageCursor(record.mailbox, record.uid_validity, order, uid, time_ms)


def _opened(
    token: str, bound: tuple[str | int, ...], layout: struct.Struct
) -> tuple[int, ...] | None:
    if not token:
        return None
    position = tokens.open_page_token(token, bound)
    if len(position) != layout.size:
        raise errors.BadPageTokenError
    return layout.unpack(position)

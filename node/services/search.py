"""SearchMessages. Each page is read in one go, in bounded work (mailstore/search.py).

Where the text decides, those that nothing else rules out are read afterwards (search_texts.py), one
by one: so many of them, so many bytes and so long as a page may take, and the next page goes on
behind the last.
"""

from __future__ import annotations

from collections.abc import Callable, MutableSequence, Sequence

from mailraft.internal.v1 import record_pb2
from mailraft.node.interfaces import View
from mailraft.node.mailstore import filters, queries, search, thread_queries
from mailraft.v1 import message_pb2, search_pb2
from mailraft.wire import errors, tokens

from . import convert, levels, validate
from .base import REPLY_MAX_BYTES, Call, Shards
from .search_texts import TEXTS_MAX, Texts

# Of a call's time, what is left for the reply.
REPLY_S = 0.5

_Show = Callable[[record_pb2.MessageRecord], message_pb2.Message]
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
        asked = request.filter if request.HasField("filter") else None
        bound = (
            "SearchMessages",
            request.account_id,
            request.mailbox_id,
            b"".join(each.SerializeToString(deterministic=True) for each in request.sort).hex(),
            asked.SerializeToString(deterministic=True).hex() if asked is not None else "",
            *(("collapsed",) if request.collapse_threads else ()),
        )
        position = tokens.open_page_token(request.page_token, bound) if request.page_token else b""
        at = await levels.read(self._shards, request.account_id, request.read_options, call)
        mailbox = validate.mailbox_id(request.mailbox_id) if request.mailbox_id else 0
        if mailbox:
            queries.mailbox(at.view, request.account_id, mailbox)
        threads = thread_queries.Threads(at.view, request.account_id)
        test, reads_text = compiled(at.view, request.account_id, mailbox, asked, threads)
        page_size = validate.page_size(request.page_size)
        query = search.Query(
            account_id=request.account_id,
            mailbox=mailbox or _mailbox_of(at.view, request.account_id, asked),
            test=test,
            sort=sort,
            count=TEXTS_MAX if reads_text else page_size,
            threads=threads,
            collapse=request.collapse_threads,
        )
        try:
            found = search.search(at.view, query, position)
        except ValueError:
            raise errors.BadPageTokenError from None
        response = search_pb2.SearchMessagesResponse(
            state=at.state, served=at.served, examined_messages=found.examined + threads.read
        )
        show: _Show = convert.Messages(at.view, request.account_id, shown).show
        if reads_text:
            found, show = await self._by_text(at, query, found, show, page_size, call)
        following = _show(found, show, response.messages)
        if following:
            response.next_page_token = tokens.page_token(bound, following)
        return response

    async def _by_text(
        self,
        at: levels.Reading,
        query: search.Query,
        found: search.Found,
        show: _Show,
        page_size: int,
        call: Call,
    ) -> tuple[search.Found, _Show]:
        """What matches of what was found, as far as this page gets. Raises BLOB_CORRUPT, and
        FILTER_UNSUPPORTED where too much is to be read to know whether one match shows.
        """
        # The view is good until the first await: what needs it comes before.
        shown = {record.message: show(record) for record in found.messages}
        texts = Texts(self._shards, at, query, found)
        messages: list[record_pb2.MessageRecord] = []
        positions: list[bytes] = []
        last = b""
        until_s = call.deadline_s - REPLY_S

        def until_last() -> tuple[search.Found, _Show]:
            return search.Found(messages, positions, found.examined, last), _of(shown)

        for record, position in zip(found.messages, found.positions, strict=True):
            late = texts.spent or self._shards.now_s() > until_s
            if last and (late or len(messages) == page_size):
                return until_last()
            matches = await texts.matches(record)
            if matches and (rivals := found.rivals.get(record.message)):
                if not last:
                    texts.renew()  # or a long message would leave nothing for them
                hidden = await texts.any_matches(rivals)
                if hidden is None and last:
                    return until_last()
                if hidden is None:
                    raise errors.FilterUnsupportedError("collapse_threads: too long texts before")
                matches = not hidden
            if matches:
                messages.append(record)
                positions.append(position)
            last = position
        return search.Found(messages, positions, found.examined, found.following), _of(shown)


def _of(shown: dict[int, message_pb2.Message]) -> _Show:
    return lambda record: shown[record.message]


def compiled(
    view: View,
    account_id: str,
    mailbox: int,
    asked: search_pb2.MessageFilter | None,
    threads: thread_queries.Threads,
    *,
    own_record: bool = False,
) -> tuple[filters.Test, bool]:
    """The conditions as one function; without any, everything matches. And whether it reads text:
    then it may answer that it does not know.
    """
    if asked is None:
        return lambda _: True, False

    def check(number: int, uid_validity: int) -> None:
        queries.check_uid_validity(queries.mailbox(view, account_id, number), uid_validity)

    compiler = filters.Compiler(mailbox, check, threads.keywords_of, own_record=own_record)
    test = compiler.compile(asked)
    return test, compiler.reads_text


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
    show: _Show,
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

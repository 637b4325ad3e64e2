"""Finds messages by conditions, page by page, in bounded steps (RFC 8621 section 4.4).

Two ways, by the order that is asked:

  walked   by received time, or by UID in one mailbox: the index rows are walked in that order, from
           behind the last message that was told. A page ends when it is full or EXAMINED_MAX were
           looked at, whatever was found. Mail may arrive and go: who stays is told exactly once.
  sorted   any other order: all messages in scope are looked at for each page, and the first behind
           the last one told are kept. Refused where the scope has more than SORTED_MAX messages.

In a search over all mailboxes, a message shows where its membership of the lowest mailbox is.
With collapsed threads one shows if no other match of its thread comes before it (collapse.py).
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge, nsmallest
from itertools import islice
from typing import Any

from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import View

from . import queries, thread_queries, visible
from .account_change import prefix_of
from .collapse import Collapse
from .filters import Candidate, Test, address_text, folded, unsupported

EXAMINED_MAX = 2_000  # messages that a walked page looks at: about 50 ms of a node's time
SORTED_MAX = 10_000  # messages in scope of a sorted search: about 200 ms
SORT_KEYS_MAX = 4
# A text sorts by its beginning: page tokens hold it.
SORT_TEXT_MAX_BYTES = 128
# Of one mailbox: no scan stays open while others are read. And messages of one look-up.
_ROWS_AT_ONCE = 64

_WALKED = struct.Struct(">qII")  # received time (0 by UID), mailbox, UID
_NUMBER = struct.Struct(">Q")
_BIAS = 1 << 63
_INVERTED = bytes(255 - byte for byte in range(256))
# RFC 5256 section 2.1: prefixes and suffixes that do not count.
_REPLY = re.compile(r"(?:\[[^\]]*\]\s*)*(?:re|fwd?)\s*(?:\[[^\]]*\]\s*)?:\s*|\[[^\]]*\]\s*(?=\S)")
_FORWARDED = re.compile(r"\s*\(fwd\)\s*$")
# Of a subject, and of what it may be rid of: each look is as long as the subject, and who sends a
# mail chooses it.
_SUBJECT_CHARS_MAX, _PREFIXES_MAX = 256, 16


class Property(enum.IntEnum):
    """As mailraft.v1.SortProperty."""

    RECEIVED = 1
    UID = 2
    SENT = 3
    SIZE = 4
    SUBJECT = 5
    FROM = 6
    TO = 7


SortKey = tuple[Property, bool]  # descending?
_Records = list[record_pb2.MessageRecord]


@dataclass(frozen=True, slots=True)
class Query:
    """mailbox 0: all. sort: one key or more. Found is what the test does not rule out."""

    account_id: str
    mailbox: int
    test: Test
    sort: Sequence[SortKey]
    count: int
    threads: thread_queries.Threads | None = None  # what the test asks, if it does
    collapse: bool = False  # to the first match of each thread, with threads only


@dataclass(frozen=True, slots=True)
class Found:
    messages: list[record_pb2.MessageRecord]
    positions: list[bytes]  # of each: where a page that ends with it goes on
    examined: int
    following: bytes  # where the next page goes on; empty: all was looked at
    # With collapsed threads, by message: those of its thread before it of which the test does not
    # know. If one of them matches, this one does not show.
    rivals: dict[int, _Records] = field(default_factory=dict)


def search(view: View, query: Query, position: bytes = b"") -> Found:
    """The page behind `position` (empty: the first). Raises FILTER_UNSUPPORTED for an order that
    cannot be paged in bounded memory, ValueError for a position that no page ended at.
    """
    first, descending = query.sort[0]
    if not query.mailbox and any(wanted is Property.UID for wanted, _ in query.sort):
        raise unsupported("sort by UID without a mailbox")
    if len(query.sort) == 1 and first in (Property.RECEIVED, Property.UID):
        return _walk(view, query, first is Property.UID, descending, position)
    return _sorted(view, query, position)


def walked_position(mailbox: int, uid: int, received_ms: int) -> bytes:
    """Behind a message of a mailbox; by UID without its time."""
    return _WALKED.pack(received_ms, mailbox, uid)


def walked_place(position: bytes) -> tuple[int, int]:
    """UID and received time of a position."""
    received_ms, _, uid = _WALKED.unpack(position)
    return uid, received_ms


# ---- walked --------------------------------------------------------------------------------------


def _walk(view: View, query: Query, by_uid: bool, descending: bool, position: bytes) -> Found:
    prefix = prefix_of(query.account_id)
    without = visible.hidden(view, prefix, queries.account(view, query.account_id))
    if position and len(position) != _WALKED.size:
        raise ValueError("not a position of this search")
    messages: list[record_pb2.MessageRecord] = []
    positions: list[bytes] = []
    rivals: dict[int, _Records] = {}
    collapse = _collapse(query, lambda each: _walked_key(each.record, query, by_uid, descending))
    examined, last = 0, b""
    rows = _walked_rows(view, prefix, query, by_uid, descending, position)
    while chunk := list(islice(rows, _ROWS_AT_ONCE)):
        records = queries.pointed_at(view, prefix, [target for *_, target in chunk], without)
        for (time_ms, mailbox, uid, _), record in zip(chunk, records, strict=True):
            if len(messages) >= query.count or examined >= EXAMINED_MAX:
                return Found(messages, positions, examined, last, rivals)
            if last and _costs_too_much(query.threads, record.thread):
                return Found(messages, positions, examined, last, rivals)
            last = _WALKED.pack(time_ms, mailbox, uid)
            examined += 1
            shows = query.mailbox or min(each.mailbox for each in record.memberships)
            if shows != mailbox or query.test(Candidate(record)) is False:
                continue
            before = collapse.before(Candidate(record)) if collapse else []
            if before is not None:
                messages.append(record)
                positions.append(last)
                rivals[record.message] = before
    return Found(messages, positions, examined, b"", rivals)


def _walked_key(
    record: record_pb2.MessageRecord, query: Query, by_uid: bool, descending: bool
) -> tuple[int, int, int]:
    """Sorts as the index rows are walked."""
    shows = query.mailbox or min(each.mailbox for each in record.memberships)
    uid = next(each.uid for each in record.memberships if each.mailbox == shows)
    time_ms = 0 if by_uid else record.internal_time_ms
    return (-time_ms, -shows, -uid) if descending else (time_ms, shows, uid)


def _collapse(query: Query, key_of: Callable[[Candidate], Any]) -> Collapse | None:
    if not query.collapse:
        return None
    assert query.threads is not None
    return Collapse(query.threads, query.mailbox, query.test, key_of)


def _costs_too_much(threads: thread_queries.Threads | None, thread: int) -> bool:
    """Whether the next page shall read this thread: this one read enough of others."""
    return threads is not None and threads.read >= EXAMINED_MAX and thread not in threads


_Row = tuple[int, int, int, bytes]  # received time (0 by UID), mailbox, UID, target


def _walked_rows(
    view: View, prefix: bytes, query: Query, by_uid: bool, descending: bool, position: bytes
) -> Iterator[_Row]:
    place = _WALKED.unpack(position) if position else None
    if query.mailbox:
        return _rows(view, prefix, query.mailbox, by_uid, descending, place)
    each = [
        _rows(view, prefix, number, by_uid, descending, place)
        for number in _mailbox_numbers(view, query.account_id)
    ]
    return merge(*each, key=lambda row: row[:3], reverse=descending)


def _mailbox_numbers(view: View, account_id: str) -> Iterator[int]:
    after = 0
    while True:
        page, after = queries.mailboxes(view, account_id, after, queries.ROWS_MAX)
        yield from (each.mailbox for each in page if each.total_messages)
        if not after:
            return


def _rows(
    view: View,
    prefix: bytes,
    mailbox: int,
    by_uid: bool,
    descending: bool,
    place: tuple[int, int, int] | None,
) -> Iterator[_Row]:
    """Index rows of one mailbox behind a place in the common order (time, mailbox, UID)."""
    whole = (keys.uid_mailbox if by_uid else keys.received_mailbox)(prefix, mailbox)
    start, end = whole, keys.after(whole)
    if place is not None:
        bound = _bound(prefix, mailbox, by_uid, descending, place)
        start, end = (start, bound) if descending else (bound, end)
    while True:
        last = b""
        rows = view.scan(start, end, reverse=descending)
        for _ in range(_ROWS_AT_ONCE):
            key, target = next(rows, (b"", b""))
            if not key:
                return
            last = key
            if by_uid:
                yield 0, mailbox, keys.uid_of(key), target
            else:
                time_ms, uid = keys.received_of(key)
                yield time_ms, mailbox, uid, target
        start, end = (start, last) if descending else (last + b"\x00", end)


def _bound(
    prefix: bytes, mailbox: int, by_uid: bool, descending: bool, place: tuple[int, int, int]
) -> bytes:
    """The first key of a mailbox behind a place; descending: the one that ends what is behind."""
    time_ms, told_mailbox, uid = place
    if by_uid:
        key = keys.uid(prefix, mailbox, uid)
    elif mailbox == told_mailbox:
        key = keys.received(prefix, mailbox, time_ms, uid)
    else:
        # Rows of the same time in other mailboxes come before or behind as a whole.
        told = mailbox < told_mailbox
        return keys.received(prefix, mailbox, time_ms + 1 if told else time_ms, 0)
    return key if descending else key + b"\x00"


# ---- sorted --------------------------------------------------------------------------------------


def _sorted(view: View, query: Query, position: bytes) -> Found:
    if len(query.sort) > SORT_KEYS_MAX:
        raise unsupported(f"a sort by more than {SORT_KEYS_MAX} properties")
    prefix = prefix_of(query.account_id)
    _check_scope(view, query)
    without = visible.hidden(view, prefix, queries.account(view, query.account_id))
    key_of = _key_maker(query.sort, query.mailbox)
    collapse = _collapse(query, key_of)
    examined = 0

    def matches() -> Iterator[tuple[bytes, record_pb2.MessageRecord, _Records]]:
        nonlocal examined
        for record in _scope(view, prefix, query.mailbox, without):
            examined += 1
            candidate = Candidate(record)
            if query.test(candidate) is not False:
                key = key_of(candidate)
                before = collapse.before(candidate) if collapse and key > position else []
                if key > position and before is not None:
                    yield key, record, before

    page = nsmallest(query.count + 1, matches(), key=lambda each: each[0])
    more = len(page) > query.count
    del page[query.count :]
    positions = [key for key, *_ in page]
    rivals = {record.message: before for _, record, before in page}
    following = positions[-1] if more else b""
    return Found([record for _, record, _ in page], positions, examined, following, rivals)


def _check_scope(view: View, query: Query) -> None:
    if query.mailbox:
        total = queries.mailbox(view, query.account_id, query.mailbox).total_messages
    else:
        total = queries.account(view, query.account_id).used_messages
    if total > SORTED_MAX:
        raise unsupported(f"this order of more than {SORTED_MAX} messages")


def _scope(
    view: View, prefix: bytes, mailbox: int, without: visible.Hidden
) -> Iterator[record_pb2.MessageRecord]:
    if mailbox:
        whole = keys.uid_mailbox(prefix, mailbox)
        rows = view.scan(whole, keys.after(whole))
        while chunk := list(islice(rows, _ROWS_AT_ONCE)):
            yield from queries.pointed_at(view, prefix, [target for _, target in chunk], without)
        return
    for _, stored in view.scan(
        keys.message_record(prefix), keys.message_record(prefix, (1 << 64) - 1)
    ):
        record = visible.message(stored, without)
        if record is not None:
            yield record


def _key_maker(sort: Sequence[SortKey], mailbox: int) -> Callable[[Candidate], bytes]:
    """Bytes that sort as the messages shall; the message's number breaks ties."""
    text_max_bytes = SORT_TEXT_MAX_BYTES // len(sort)

    def make(candidate: Candidate) -> bytes:
        parts = []
        for wanted, descending in sort:
            value = _value(candidate, wanted, mailbox)
            if isinstance(value, int):
                part = _NUMBER.pack(max(0, min(value + _BIAS, (1 << 64) - 1)))
            else:
                part = value.replace("\0", "").encode("utf-8", "replace")[:text_max_bytes] + b"\0"
            parts.append(part.translate(_INVERTED) if descending else part)
        return b"".join(parts) + _NUMBER.pack(candidate.record.message)

    return make


def _value(candidate: Candidate, wanted: Property, mailbox: int) -> int | str:
    record = candidate.record
    match wanted:
        case Property.RECEIVED:
            return record.internal_time_ms
        case Property.SENT:
            sent_ms = candidate.sent_ms
            return record.internal_time_ms if sent_ms is None else sent_ms
        case Property.SIZE:
            return record.size_bytes
        case Property.UID:
            return next(each.uid for each in record.memberships if each.mailbox == mailbox)
        case Property.SUBJECT:
            return base_subject(candidate.derived.envelope.subject)
        case _:
            envelope = candidate.derived.envelope
            addresses = envelope.from_addrs if wanted is Property.FROM else envelope.to_addrs
            first = next(iter(addresses), None)
            return "" if first is None else folded(first.name or address_text(first))


def base_subject(subject: str) -> str:
    """Without what replying and forwarding puts around it (RFC 5256 section 2.1)."""
    text = folded(" ".join(subject[:_SUBJECT_CHARS_MAX].split()))
    for _ in range(_PREFIXES_MAX):
        before = text
        text = _FORWARDED.sub("", text)
        if match := _REPLY.match(text):
            text = text[match.end() :]
        if text.startswith("[fwd:") and text.endswith("]"):
            text = text[5:-1].strip()
        if text == before:
            break
    return text

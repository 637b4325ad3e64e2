"""Reads of one account, or of a shard's accounts: pure functions of a View.

Each raises Refused with the public reason. What can be long comes in pages of a bounded number of
rows, at the same cost anywhere in the mailbox; a cursor stays valid while mail arrives and goes,
since it names the last row that was told and not a count.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import View
from mailraft.v1 import error_pb2

from . import rules, visible
from .account_change import account_not_found, prefix_of, state_of
from .errors import Refused, bad_field, mailbox_not_found

ROWS_MAX = 1_000  # of one page of records
KEYWORDS_TOLD_MAX = 1_000  # of one mailbox
UIDS_MAX = 20_000  # rows that one call for UIDs walks: about 100 ms of a node's time


class Order(enum.IntEnum):
    """How a mailbox is paged. Stored in page tokens: numbers are never reused."""

    UID_ASCENDING = 1
    UID_DESCENDING = 2
    RECEIVED_ASCENDING = 3
    RECEIVED_DESCENDING = 4


@dataclass(frozen=True, slots=True)
class PageCursor:
    """Where a page of a mailbox ended: what an opaque page token stands for."""

    mailbox: int
    uid_validity: int
    order: Order
    last_uid: int
    last_received_ms: int = 0  # of the received orders only


@dataclass(frozen=True, slots=True)
class MessagePage:
    stored: tuple[bytes, ...]  # the records of the messages
    uids: tuple[int, ...]  # of each message in the mailbox that was asked for
    following: PageCursor | None

    @property
    def messages(self) -> tuple[record_pb2.MessageRecord, ...]:
        return tuple(map(record_pb2.MessageRecord.FromString, self.stored))


@dataclass(frozen=True, slots=True)
class BodyRow:
    """Where a body lies and what it must be.

    parts: of a blob that lies in several bodies, where they lie, in order; their hash is not known.
    """

    index: int
    ordinal: int
    size_bytes: int
    stored_bytes: int
    sha256: bytes
    parts: tuple[BodyRow, ...] = ()


# ---- accounts ----------------------------------------------------------------------------------


def account(view: View, account_id: str) -> record_pb2.AccountRecord:
    stored = view.get(keys.account_record(prefix_of(account_id)))
    if stored is None:
        raise account_not_found()
    return record_pb2.AccountRecord.FromString(stored)


def account_state(view: View, account_id: str) -> command_pb2.AccountState:
    return state_of(account(view, account_id))


def accounts(
    view: View, after: str, count: int
) -> tuple[list[tuple[str, record_pb2.AccountRecord]], str]:
    """Accounts of the shard behind `after` (empty: from the first), and where to go on (empty: the
    end). One seek an account, however much mail lies between. The order means nothing.
    """
    found: list[tuple[str, record_pb2.AccountRecord]] = []
    start = keys.after(prefix_of(after)) if after else b""
    while True:
        key, _ = next(view.scan(start, keys.SHARD_ROWS), (b"", b""))
        if not key:
            return found, ""
        if len(found) >= _bounded(count):
            return found, found[-1][0]
        name = keys.account_of(key)
        prefix = key[: keys.ACCOUNT_HEADER_BYTES + len(name)]
        start = keys.after(prefix)
        stored = view.get(keys.account_record(prefix))
        if stored is not None:
            found.append((name.decode(), record_pb2.AccountRecord.FromString(stored)))


# ---- mailboxes ---------------------------------------------------------------------------------


def mailbox(view: View, account_id: str, number: int) -> record_pb2.MailboxRecord:
    return _mailbox(view, _existing(view, account_id), number)


def mailbox_by_role(view: View, account_id: str, role: int) -> record_pb2.MailboxRecord:
    prefix = _existing(view, account_id)
    number = view.get(keys.mailbox_role(prefix, role))
    if number is None:
        raise mailbox_not_found("no mailbox has this role")
    return _mailbox(view, prefix, int.from_bytes(number))


def mailbox_by_path(view: View, account_id: str, names: Sequence[str]) -> record_pb2.MailboxRecord:
    """The mailbox at a path, given as its names from the top. The separator is a front end's."""
    prefix = _existing(view, account_id)
    if not 1 <= len(names) <= rules.MAILBOX_DEPTH_MAX:
        raise mailbox_not_found("no such path")
    number = 0
    for name in names:
        stored = view.get(keys.mailbox_name(prefix, number, name.encode()))
        if stored is None:
            raise mailbox_not_found("no such path")
        number = int.from_bytes(stored)
    return _mailbox(view, prefix, number)


def mailboxes(
    view: View, account_id: str, after: int, count: int
) -> tuple[list[record_pb2.MailboxRecord], int]:
    """Mailboxes by number behind `after` (0: from the first), and where to go on (0: the end)."""
    prefix = _existing(view, account_id)
    rows = view.scan(
        keys.mailbox_record(prefix, after + 1), keys.mailbox_record(prefix, rules.UINT32_MAX)
    )
    found: list[record_pb2.MailboxRecord] = []
    for _, value in rows:
        if len(found) >= _bounded(count):
            return found, found[-1].mailbox
        found.append(record_pb2.MailboxRecord.FromString(value))
    return found, 0


# ---- messages ----------------------------------------------------------------------------------


def message(view: View, account_id: str, number: int) -> record_pb2.MessageRecord:
    prefix, without = _readable(view, account_id)
    stored = view.get(keys.message_record(prefix, number))
    record = None if stored is None else visible.message(stored, without)
    if record is None:
        raise Refused(error_pb2.ERROR_REASON_MESSAGE_NOT_FOUND, "no such message")
    return record


def messages(
    view: View, account_id: str, numbers: Sequence[int]
) -> tuple[list[record_pb2.MessageRecord], list[int]]:
    """The messages that exist, in the order asked, and the numbers that name none."""
    prefix, without = _readable(view, account_id)
    if len(numbers) > ROWS_MAX:
        raise bad_field(f"ids: at most {ROWS_MAX}")
    found, missing = [], []
    stored = view.get_many([keys.message_record(prefix, number) for number in numbers])
    for number, each in zip(numbers, stored, strict=True):
        record = None if each is None else visible.message(each, without)
        if record is None:
            missing.append(number)
        else:
            found.append(record)
    return found, missing


def messages_by_uid(
    view: View,
    account_id: str,
    number: int,
    uid_validity: int,
    ranges: Iterable[tuple[int, int]],
    count: int,
) -> tuple[list[tuple[int, record_pb2.MessageRecord]], int]:
    """(UID, message) for UIDs in inclusive ascending ranges; UIDs that name nothing are passed over
    (RFC 9051 section 6.4.9). Stops after `count`: the UID to go on from, or 0.

    Raises UID_VALIDITY_MISMATCH when the mailbox has another UIDVALIDITY now.
    """
    prefix, without = _readable(view, account_id)
    check_uid_validity(_mailbox(view, prefix, number), uid_validity)
    rows = (row for first, last in ranges for row in _uids(view, prefix, number, first, last))
    told = list(islice(rows, _bounded(count)))
    following = next(rows, (0, b""))[0]
    found = pointed_at(view, prefix, [target for _, target in told], without)
    return [(uid, each) for (uid, _), each in zip(told, found, strict=True)], following


def page(
    view: View,
    account_id: str,
    number: int,
    order: Order,
    count: int,
    cursor: PageCursor | None = None,
) -> MessagePage:
    """The messages of a mailbox behind the cursor, in the order asked.

    Raises BAD_PAGE_TOKEN for a cursor of another listing, UID_VALIDITY_MISMATCH for one of an
    earlier life of the mailbox.
    """
    prefix, without = _readable(view, account_id)
    record = _mailbox(view, prefix, number)
    if cursor is not None:
        if (cursor.mailbox, cursor.order) != (number, order):
            raise Refused(error_pb2.ERROR_REASON_BAD_PAGE_TOKEN, "the token is of another listing")
        check_uid_validity(record, cursor.uid_validity)
    rows = _rows_behind(view, prefix, number, order, cursor)
    told = list(islice(rows, _bounded(count)))
    more = next(rows, None) is not None
    found = _stored_at(view, prefix, [target for _, target in told], without)
    return MessagePage(
        tuple(found),
        tuple(keys.uids_of(told)),
        _cursor_at(record, order, told[-1][0]) if more else None,
    )


def uid_ranges(
    view: View, account_id: str, number: int, after: int = 0, rows: int = UIDS_MAX
) -> tuple[list[tuple[int, int]], int]:
    """UIDs of a mailbox above `after` as inclusive ranges, and the UID to go on from (0: the end).

    Walks at most `rows` rows, so that a caller can let others run between the steps.
    """
    prefix = _existing(view, account_id)
    _mailbox(view, prefix, number)
    found: list[tuple[int, int]] = []
    last = after
    for walked, (uid, _) in enumerate(_uids(view, prefix, number, after + 1, rules.UINT32_MAX)):
        if walked >= rows:
            return found, last
        if found and found[-1][1] == uid - 1:
            found[-1] = (found[-1][0], uid)
        else:
            found.append((uid, uid))
        last = uid
    return found, 0


def check_uid_validity(record: record_pb2.MailboxRecord, uid_validity: int) -> None:
    if record.uid_validity != uid_validity:
        raise Refused(
            error_pb2.ERROR_REASON_UID_VALIDITY_MISMATCH,
            "the mailbox has another UIDVALIDITY",
            {"mailbox": record.mailbox, "uid_validity": record.uid_validity},
        )


def keywords_in_use(view: View, account_id: str, number: int) -> list[str]:
    """Keywords that messages of a mailbox have, sorted, at most 1,000 (RFC 9051 section 7.3.5)."""
    start = keys.keyword(prefix_of(account_id), number)
    rows = view.scan(start, keys.after(start))
    return [key[len(start) :].decode() for key, _ in islice(rows, KEYWORDS_TOLD_MAX)]


# ---- bodies ------------------------------------------------------------------------------------


def body(view: View, account_id: str, index: int, ordinal: int) -> BodyRow:
    """A body, if this account may read it; BLOB_NOT_FOUND for another's as for none at all."""
    prefix = _existing(view, account_id)
    stored = view.get(keys.blob(index, ordinal))
    if stored is None or view.get(keys.blob_access(prefix, index, ordinal)) is None:
        raise Refused(error_pb2.ERROR_REASON_BLOB_NOT_FOUND, "no such blob in this account")
    blob = record_pb2.BlobRecord.FromString(stored)
    return _body_row(index, ordinal, blob)


def body_of_message(view: View, account_id: str, number: int) -> BodyRow:
    record = message(view, account_id, number)
    index, ordinal = record.body.index, record.body.ordinal
    if record.size_bytes > rules.UPLOAD_PART_MIN_BYTES:  # else it has no parts
        stored = view.get(keys.blob(index, ordinal))
        assert stored is not None, f"body {index}/{ordinal} is not counted"
        return _body_row(index, ordinal, record_pb2.BlobRecord.FromString(stored))
    return BodyRow(index, ordinal, record.size_bytes, record.stored_bytes, record.sha256)


def upload(view: View, account_id: str, request_id: bytes) -> tuple[BodyRow, ...]:
    """The parts of an upload that are there, in order; none if there is no such upload."""
    stored = view.get(keys.upload(prefix_of(account_id), request_id))
    if stored is None:
        return ()
    return tuple(
        BodyRow(each.index, each.ordinal, each.size_bytes, each.stored_bytes, b"")
        for each in record_pb2.UploadRecord.FromString(stored).parts
    )


# ---- within -------------------------------------------------------------------------------------


def _readable(view: View, account_id: str) -> tuple[bytes, visible.Hidden]:
    prefix = prefix_of(account_id)
    return prefix, visible.hidden(view, prefix, account(view, account_id))


def _body_row(index: int, ordinal: int, blob: record_pb2.BlobRecord) -> BodyRow:
    parts = tuple(
        BodyRow(each.index, each.ordinal, each.size_bytes, each.stored_bytes, b"")
        for each in blob.parts
    )
    return BodyRow(index, ordinal, blob.size_bytes, blob.stored_bytes, blob.sha256, parts)


def _existing(view: View, account_id: str) -> bytes:
    prefix = prefix_of(account_id)
    if view.get(keys.account_record(prefix)) is None:
        raise account_not_found()
    return prefix


def _mailbox(view: View, prefix: bytes, number: int) -> record_pb2.MailboxRecord:
    stored = view.get(keys.mailbox_record(prefix, number))
    if stored is None:
        raise mailbox_not_found("no such mailbox")
    return record_pb2.MailboxRecord.FromString(stored)


def pointed_at(
    view: View, prefix: bytes, targets: Sequence[bytes], without: visible.Hidden
) -> list[record_pb2.MessageRecord]:
    """The messages that index rows name by their values, in one look-up."""
    found = _stored_at(view, prefix, targets, without)
    return list(map(record_pb2.MessageRecord.FromString, found))


def _stored_at(
    view: View, prefix: bytes, targets: Sequence[bytes], without: visible.Hidden
) -> list[bytes]:
    stored = view.get_many(keys.messages_named(prefix, targets))
    found = [each and visible.stored_message(each, without) for each in stored]
    assert None not in found, "an index row names a message that is not there"
    return cast("list[bytes]", found)


def _uids(
    view: View, prefix: bytes, number: int, first: int, last: int
) -> Iterator[tuple[int, bytes]]:
    if first > last or first > rules.UINT32_MAX:
        return
    end = keys.after(keys.uid(prefix, number, min(last, rules.UINT32_MAX)))
    for key, value in view.scan(keys.uid(prefix, number, first), end):
        yield keys.uid_of(key), value


def _rows_behind(
    view: View, prefix: bytes, number: int, order: Order, cursor: PageCursor | None
) -> Iterator[tuple[bytes, bytes]]:
    """Index rows of a mailbox from just behind the cursor, in the order asked."""
    by_uid = order in (Order.UID_ASCENDING, Order.UID_DESCENDING)
    whole = (keys.uid_mailbox if by_uid else keys.received_mailbox)(prefix, number)
    start, end = whole, keys.after(whole)
    descending = order in (Order.UID_DESCENDING, Order.RECEIVED_DESCENDING)
    if cursor is not None:
        uid, received_ms = cursor.last_uid, cursor.last_received_ms
        told = (
            keys.uid(prefix, number, uid)
            if by_uid
            else keys.received(prefix, number, received_ms, uid)
        )
        start, end = (start, told) if descending else (told + b"\x00", end)
    return view.scan(start, end, reverse=descending)


def _cursor_at(record: record_pb2.MailboxRecord, order: Order, key: bytes) -> PageCursor:
    if order in (Order.UID_ASCENDING, Order.UID_DESCENDING):
        return PageCursor(record.mailbox, record.uid_validity, order, keys.uid_of(key))
    received_ms, uid = keys.received_of(key)
    return PageCursor(record.mailbox, record.uid_validity, order, uid, received_ms)


def _bounded(count: int) -> int:
    return max(1, min(count, ROWS_MAX))

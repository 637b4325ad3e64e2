"""What is read from a message's header before it is proposed: mailraft.v1.Derived.

One bounded pass over the header block, no MIME parse. Not authoritative: the bytes are. A header
that is malformed gives less, never an error and never a refused message.

Left empty for now: preview (it needs a MIME parse). has_attachment is a guess from the top
Content-Type alone.
"""

from __future__ import annotations

import re
from datetime import date
from email.utils import parsedate_tz

from mailraft.v1 import message_pb2

from . import addresses
from .encoded_words import decoded

PARSER_VERSION = 1  # raise it with every change of what derive() answers

HEADER_MAX_BYTES = 64 * 1024  # looked at
FIELDS_MAX = 200  # of those that are wanted
FIELD_MAX_BYTES = 16 * 1024  # of one field, unfolded
SUBJECT_MAX_BYTES = 2 * 1024
DATE_MAX_CHARS = 256
IDS_MAX = 100  # of one field
ID_MAX_CHARS = 512
DERIVED_MAX_BYTES = 32 * 1024

_BLANK_LINE = re.compile(rb"\n\r?\n")
_SKIPPED_FIRST = (b"From ", b">From ")  # what mbox puts before a message
_ADDRESS_FIELDS = {
    b"from": "from_addrs",
    b"sender": "sender_addrs",
    b"reply-to": "reply_to_addrs",
    b"to": "to_addrs",
    b"cc": "cc_addrs",
    b"bcc": "bcc_addrs",
}
# On a block in lower case. A field with its folded lines (RFC 5322 section 2.2.3); a blank before
# the colon is obsolete, and read.
_FIELD = re.compile(
    rb"\n(bcc|cc|content-type|date|from|in-reply-to|message-id|re(?:ply-to|ferences)"
    rb"|s(?:ubject|ender)|to)[ \t]*:(.*(?:\n[ \t].*)*)"
)
# Fields that may come again are joined (RFC 5322 allows one; gateways send more). The first counts
# of the others.
_JOINED = frozenset({b"to", b"cc", b"bcc", b"references", b"in-reply-to"})

_ID = re.compile(r"<([^<>\s]{1,512})>")
_DATE = re.compile(
    r"\s*(?:[A-Za-z]{3},\s*)?(\d{1,2})\s+([A-Za-z]{3})\s+(\d{4})\s+(\d\d):(\d\d)(?::(\d\d))?"
    r"\s+([+-])(\d\d)(\d\d)(?:\s|$)"
)
_MONTHS = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), 1
    )
}
_YEAR_MAX = 9999
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_TEXTUAL = ("text/", "multipart/", "message/")


def derive(raw: bytes) -> message_pb2.Derived:
    """The envelope, references and attachment guess of a message, whatever its bytes are."""
    fields, truncated = _fields(raw)
    derived = message_pb2.Derived(parser_version=PARSER_VERSION)
    envelope = derived.envelope
    envelope.SetInParent()
    for name, value in fields.items():
        match name:
            case b"subject":
                envelope.subject, cut = _cut(decoded(value), SUBJECT_MAX_BYTES)
                truncated |= cut
            case b"date":
                _read_date(envelope, value)
            case b"message-id":
                envelope.message_id = next(iter(_ids(value)), "")
            case b"in-reply-to":
                found = _ids(value)
                envelope.in_reply_to.extend(found[:IDS_MAX])
                truncated |= len(found) > IDS_MAX
            case b"references":
                found = _ids(value)
                derived.references.extend(found[-IDS_MAX:])
                truncated |= len(found) > IDS_MAX
            case b"content-type":
                derived.has_attachment = _has_attachment(value)
            case _:
                truncated |= _read_addresses(envelope, _ADDRESS_FIELDS[name], value)
    derived.truncated = truncated
    return _within_limit(derived)


def _fields(raw: bytes) -> tuple[dict[bytes, str], bool]:
    """The wanted fields, unfolded, by their names in lower case; and whether something was cut."""
    block, whole = _block(raw)
    cut = not whole
    found: dict[bytes, bytes] = {}
    for count, match in enumerate(_FIELD.finditer(block.lower())):
        if count == FIELDS_MAX:
            cut = True
            break
        name = match[1]
        start, end = match.span(2)
        value = block[start:end]
        if name not in found:
            found[name] = value
        elif name in _JOINED and len(found[name]) <= FIELD_MAX_BYTES:
            found[name] += b", " + value
    if len(block) > FIELD_MAX_BYTES and any(len(each) > FIELD_MAX_BYTES for each in found.values()):
        cut = True
    return {name: _text(value[:FIELD_MAX_BYTES]) for name, value in found.items()}, cut


def _block(raw: bytes) -> tuple[bytes, bool]:
    """The header block, a line end before each line; and whether all of it is there."""
    whole = len(raw) <= HEADER_MAX_BYTES
    bound = min(len(raw), HEADER_MAX_BYTES)
    if raw.find(b"\n", 0, bound) < 0:
        raw = raw[:bound].replace(b"\r", b"\n")
    start = 0
    if raw.startswith(_SKIPPED_FIRST):
        start = raw.find(b"\n", 0, bound) + 1 or bound
    if raw.startswith((b"\n", b"\r\n"), start):
        return b"", True
    end = _BLANK_LINE.search(raw, start, bound)
    if end is not None:
        return b"\n" + raw[start : end.start()], True
    return b"\n" + raw[start:bound], whole


def _text(value: bytes) -> str:
    """UTF-8 where it is (RFC 6532); other bytes are U+FFFD. Line ends and NUL are removed."""
    return value.translate(None, b"\r\n\x00").decode("utf-8", "replace").strip()


def _cut(text: str, max_bytes: int) -> tuple[str, bool]:
    if len(text) * 4 <= max_bytes:
        return text, False
    encoded = text.encode("utf-8", "replace")
    return encoded[:max_bytes].decode("utf-8", "ignore"), len(encoded) > max_bytes


def _ids(value: str) -> list[str]:
    """Message ids without < and >. One that stands without them is taken if it stands alone."""
    found = _ID.findall(value)
    if not found and "<" not in value and " " not in value and "\t" not in value and value:
        return [value[:ID_MAX_CHARS]]
    return found


def _read_date(envelope: message_pb2.Envelope, value: str) -> None:
    envelope.date = value[:DATE_MAX_CHARS]
    time_ms = _time_ms(envelope.date)
    if time_ms is not None:
        envelope.sent_time_ms = time_ms


def _time_ms(date: str) -> int | None:
    match = _DATE.match(date)
    month = _MONTHS.get(match[2].lower()) if match else None
    if match is None or month is None:
        return _time_ms_slowly(date)
    day, _, year, hour, minute, second, sign, hours, minutes = match.groups()
    offset_s = (int(hours) * 60 + int(minutes)) * 60
    if sign == "-":
        offset_s = -offset_s
    clock = (int(hour), int(minute), int(second or 0))
    return _since_epoch_ms(int(year), month, int(day), clock, offset_s)


def _time_ms_slowly(date: str) -> int | None:
    """Obsolete and broken forms (RFC 5322 section 4.3)."""
    try:
        read = parsedate_tz(date)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if read is None:
        return None
    year, month, day, hour, minute, second = read[:6]
    return _since_epoch_ms(year, month, day, (hour, minute, second), read[9] or 0)


def _since_epoch_ms(
    year: int, month: int, day: int, clock: tuple[int, int, int], offset_s: int
) -> int | None:
    hour, minute, second = clock
    if not (0 < year <= _YEAR_MAX and 1 <= month <= 12 and 1 <= day <= 31):
        return None
    if not (0 <= hour < 24 and 0 <= minute < 60 and 0 <= second <= 60 and abs(offset_s) < 360_000):
        return None
    # As calendar.timegm: a day or a second too many counts into what follows.
    days = date(year, month, 1).toordinal() - _EPOCH_DAY + day - 1
    return (((days * 24 + hour) * 60 + minute) * 60 + second - offset_s) * 1000


def _read_addresses(envelope: message_pb2.Envelope, field: str, value: str) -> bool:
    found, cut = addresses.parse(value)
    add = getattr(envelope, field).add
    for name, local, domain in found:
        one = add()
        one.name, one.mailbox, one.host = name, local, domain
    return cut


def _has_attachment(content_type: str) -> bool:
    """multipart/mixed, or one part that is no text: a guess, right for most mail."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/mixed":
        return True
    return "/" in kind and not kind.startswith(_TEXTUAL)


def _within_limit(derived: message_pb2.Derived) -> message_pb2.Derived:
    """Halves the longest lists until the whole is small enough. The ids thread: they go last."""
    while derived.ByteSize() > DERIVED_MAX_BYTES:
        envelope = derived.envelope
        lists = [getattr(envelope, name) for name in _ADDRESS_FIELDS.values()]
        longest = max(lists, key=len)
        derived.truncated = True
        if len(longest) > 1:
            del longest[len(longest) // 2 :]
        elif len(derived.references) > 1:
            del derived.references[: len(derived.references) // 2 + 1]
        else:
            del envelope.in_reply_to[len(envelope.in_reply_to) // 2 :]
    return derived

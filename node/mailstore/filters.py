"""Conditions on messages, compiled once and asked of each (RFC 8621 section 4.4.1; RFC 9051
section 6.4.4). Pure: what neither a message's own record, nor its Derived, nor its text, nor the
keywords of its thread tell is FILTER_UNSUPPORTED.

Header text comes from Derived, which is cut at its limits: what was cut away is not found. For what
is not in there, the message's bytes have to be read. Whoever asks does that, and only where it
matters: without a text a test answers None when the text decides (three-valued logic).
"""

from __future__ import annotations

import functools
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mailraft.internal.v1 import record_pb2
from mailraft.v1 import error_pb2, message_pb2, search_pb2
from mailraft.wire import tokens

from .errors import Refused, bad_field, mailbox_not_found

LEVELS_MAX = 16
NODES_MAX = 256
FILTER_MAX_BYTES = 16 * 1024
# Of one header field that is looked at: casefolding costs about 10 ns a character.
FOLDED_MAX_CHARS = 16 * 1024

_ADDRESSES = {
    "from": "from_addrs",
    "sender": "sender_addrs",
    "reply-to": "reply_to_addrs",
    "to": "to_addrs",
    "cc": "cc_addrs",
    "bcc": "bcc_addrs",
}
_TEXT_FIELDS = {
    search_pb2.TEXT_FIELD_FROM: "from",
    search_pb2.TEXT_FIELD_TO: "to",
    search_pb2.TEXT_FIELD_CC: "cc",
    search_pb2.TEXT_FIELD_BCC: "bcc",
    search_pb2.TEXT_FIELD_SUBJECT: "subject",
}


@dataclass(frozen=True, slots=True)
class Text:
    """What a message's bytes say, decoded; as folded() and spaced() make it."""

    fields: Sequence[tuple[str, str]]  # of the header: the name in lower case, and the value
    body: str


class Candidate:
    """A message that may match. Derived is read when a condition asks for it."""

    __slots__ = ("__dict__", "record", "text")

    def __init__(self, record: record_pb2.MessageRecord, text: Text | None = None) -> None:
        self.record, self.text = record, text

    @functools.cached_property
    def derived(self) -> message_pb2.Derived:
        return message_pb2.Derived.FromString(self.record.derived)

    @property
    def sent_ms(self) -> int | None:
        envelope = self.derived.envelope
        return envelope.sent_time_ms if envelope.HasField("sent_time_ms") else None


Test = Callable[[Candidate], bool | None]  # None: the text decides, and is not there
# Of a thread: keywords that all of its messages have, and that some have.
KeywordsOf = Callable[[int], tuple[frozenset[str], frozenset[str]]]
CheckUidValidity = Callable[[int, int], None]  # mailbox number, UIDVALIDITY; raises Refused


def unsupported(what: str) -> Refused:
    return Refused(error_pb2.ERROR_REASON_FILTER_UNSUPPORTED, f"filter: {what} is not supported")


def folded(text: str) -> str:
    """For comparisons without case (as RFC 5051: decomposed, and case-folded)."""
    return unicodedata.normalize("NFKD", text[:FOLDED_MAX_CHARS]).casefold()


def spaced(text: str) -> str:
    """With one blank wherever lines or words part: a line end within a phrase hides nothing."""
    return " ".join(text.split())


def header_texts(candidate: Candidate, name: str) -> list[str] | None:
    """The values of a header field as far as Derived has them; None: it never has this field."""
    derived = candidate.derived
    envelope = derived.envelope
    if name in _ADDRESSES:
        return [address_text(each) for each in getattr(envelope, _ADDRESSES[name])]
    match name:
        case "subject":
            found: Iterable[str] = [envelope.subject]
        case "date":
            found = [envelope.date]
        case "message-id":
            found = [f"<{envelope.message_id}>"] if envelope.message_id else []
        case "in-reply-to":
            found = [f"<{each}>" for each in envelope.in_reply_to]
        case "references":
            found = [f"<{each}>" for each in derived.references]
        case _:
            return None
    return [each for each in found if each]


def address_text(address: message_pb2.Address) -> str:
    """As it stands in a header: name <mailbox@host>."""
    if not address.host:
        return address.name or address.mailbox  # a group
    plain = f"{address.mailbox}@{address.host}"
    return f"{address.name} <{plain}>" if address.name else plain


class Compiler:
    """Turns a condition tree into one function. `mailbox`: the one that is searched, 0: all.

    own_record: refuse what needs more than the record (ListMessages). reads_text, once something
    was compiled: whether a test may answer None.
    """

    def __init__(
        self,
        mailbox: int,
        check_uid_validity: CheckUidValidity,
        keywords_of: KeywordsOf,
        *,
        own_record: bool = False,
    ) -> None:
        self._mailbox, self._check = mailbox, check_uid_validity
        self._keywords_of, self._own_record = keywords_of, own_record
        self._nodes = 0
        self.reads_text = False

    def compile(self, asked: search_pb2.MessageFilter) -> Test:
        """Raises BAD_FIELD, FILTER_UNSUPPORTED, UID_VALIDITY_MISMATCH, MAILBOX_NOT_FOUND."""
        if asked.ByteSize() > FILTER_MAX_BYTES:
            raise bad_field(f"filter: at most {FILTER_MAX_BYTES} bytes")
        return self._node(asked, 1)

    def _node(self, asked: search_pb2.MessageFilter, level: int) -> Test:
        self._nodes += 1
        if level > LEVELS_MAX or self._nodes > NODES_MAX:
            raise bad_field(f"filter: at most {LEVELS_MAX} levels and {NODES_MAX} conditions")
        kind = asked.WhichOneof("condition")
        match kind:
            case None:
                raise bad_field("filter: exactly one condition")
            case "all_of":
                return _first(False, self._several(asked.all_of, level))
            case "any_of":
                return _first(True, self._several(asked.any_of, level))
            case "none_of":
                test = _first(True, self._several(asked.none_of, level))
                return lambda each: None if (found := test(each)) is None else not found
            case "header" | "text" | "sent" | "has_attachment":
                if self._own_record:
                    raise unsupported(f"{kind} in a listing (search instead)")
                return self._derived(kind, asked)
            case "in_mailbox_id" | "in_other_than" | "deleted" | "saved" | "uid_set":
                return self._membership(kind, asked)
            case (
                "all_in_thread_have_keyword"
                | "some_in_thread_have_keyword"
                | "none_in_thread_have_keyword"
            ):
                if self._own_record:
                    raise unsupported(f"{kind} in a listing (search instead)")
                return self._thread(kind, getattr(asked, kind).lower())
            case _:
                return _record(kind, asked)

    def _several(self, asked: search_pb2.FilterList, level: int) -> list[Test]:
        if not asked.filters:
            raise bad_field("filter: a list of conditions holds at least one")
        return [self._node(each, level + 1) for each in asked.filters]

    # ---- what the record's memberships tell

    def _membership(self, kind: str, asked: search_pb2.MessageFilter) -> Test:
        match kind:
            case "in_mailbox_id":
                wanted = _mailbox_number(asked.in_mailbox_id)
                return lambda each: any(m.mailbox == wanted for m in each.record.memberships)
            case "in_other_than":
                but = {_mailbox_number(each) for each in asked.in_other_than.ids}
                return lambda each: any(m.mailbox not in but for m in each.record.memberships)
            case "deleted":
                flag = asked.deleted
                return lambda each: any(m.deleted == flag for m in self._members(each))
            case "saved":
                begin, end = _bounds(asked.saved)
                return lambda each: any(begin <= m.saved_ms < end for m in self._members(each))
            case _:
                return self._uids(asked)

    def _members(self, each: Candidate) -> Sequence[record_pb2.MembershipRecord]:
        """Those of the searched mailbox, or all."""
        if not self._mailbox:
            return each.record.memberships
        return [m for m in each.record.memberships if m.mailbox == self._mailbox]

    def _uids(self, asked: search_pb2.MessageFilter) -> Test:
        numbers = list(asked.uid_set.ranges)
        mailbox = _mailbox_number(asked.uid_set.mailbox_id)
        if len(numbers) % 2 or sorted(numbers) != numbers:
            raise bad_field("filter: uid_set.ranges are ascending pairs")
        self._check(mailbox, asked.uid_set.uid_validity)
        firsts, lasts = numbers[::2], numbers[1::2]

        def test(each: Candidate) -> bool:
            for member in each.record.memberships:
                if member.mailbox == mailbox:
                    place = bisect_right(firsts, member.uid) - 1
                    return place >= 0 and member.uid <= lasts[place]
            return False

        return test

    # ---- what the whole thread tells, this message included

    def _thread(self, kind: str, wanted: str) -> Test:
        keywords_of = self._keywords_of
        match kind:
            case "all_in_thread_have_keyword":
                return lambda each: wanted in keywords_of(each.record.thread)[0]
            case "some_in_thread_have_keyword":
                return lambda each: wanted in keywords_of(each.record.thread)[1]
            case _:
                return lambda each: wanted not in keywords_of(each.record.thread)[1]

    # ---- what Derived tells

    def _derived(self, kind: str, asked: search_pb2.MessageFilter) -> Test:
        match kind:
            case "sent":
                begin, end = _bounds(asked.sent)
                return lambda each: each.sent_ms is not None and begin <= each.sent_ms < end
            case "has_attachment":
                wanted = asked.has_attachment
                return lambda each: each.derived.has_attachment == wanted
            case "header":
                return self._header(asked.header.name.lower(), asked.header.value)
            case _:
                return self._text(asked.text.field, asked.text.value)

    def _header(self, name: str, value: str) -> Test:
        if not name:
            raise bad_field("filter: header.name must not be empty")
        if header_texts(Candidate(record_pb2.MessageRecord()), name) is not None:
            return _derived_header(name, value)
        self.reads_text = True
        wanted = folded(spaced(value))
        return _in_text(
            lambda text: any(name == field and wanted in found for field, found in text.fields)
        )

    def _text(self, field: search_pb2.TextField.ValueType, value: str) -> Test:
        if not value:
            raise bad_field("filter: text.value must not be empty")
        if field in _TEXT_FIELDS:
            return _derived_header(_TEXT_FIELDS[field], value)
        self.reads_text = True
        wanted = folded(spaced(value))
        in_body = _in_text(lambda text: wanted in text.body)
        match field:
            case search_pb2.TEXT_FIELD_BODY:
                return in_body
            case search_pb2.TEXT_FIELD_WHOLE:
                in_header = _in_text(lambda text: any(wanted in each for _, each in text.fields))
                return _first(True, [in_header, in_body])
            case search_pb2.TEXT_FIELD_ANY | search_pb2.TEXT_FIELD_UNSPECIFIED:
                fields = _TEXT_FIELDS.values()  # tidy: a plain dict
                return _first(True, [*(_derived_header(each, value) for each in fields), in_body])
            case _:
                raise bad_field("filter: text.field is none")


def _first(decides: bool, tests: Sequence[Test]) -> Test:
    """Any of them (True decides), or all of them (False does); None where that is not known yet."""

    def test(each: Candidate) -> bool | None:
        known = True
        for one in tests:
            found = one(each)
            if found is decides:
                return decides
            known = known and found is not None
        return (not decides) if known else None

    return test


def _in_text(says: Callable[[Text], bool]) -> Test:
    return lambda each: None if each.text is None else says(each.text)


def _derived_header(name: str, value: str) -> Test:
    wanted = folded(value)

    def test(each: Candidate) -> bool:
        found = header_texts(each, name) or ()
        return any(wanted in folded(text) for text in found)

    return test


def _record(kind: str, asked: search_pb2.MessageFilter) -> Test:
    match kind:
        case "has_keyword":
            wanted = asked.has_keyword.lower()
            return lambda each: wanted in each.record.keywords
        case "not_keyword":
            unwanted = asked.not_keyword.lower()
            return lambda each: unwanted not in each.record.keywords
        case "size_min_bytes":
            least = asked.size_min_bytes
            return lambda each: each.record.size_bytes >= least
        case "size_below_bytes":
            above = asked.size_below_bytes
            return lambda each: each.record.size_bytes < above
        case "received":
            begin, end = _bounds(asked.received)
            return lambda each: begin <= each.record.internal_time_ms < end
        case "thread_id":
            thread = _number(tokens.parse_thread_id, asked.thread_id)
            return lambda each: each.record.thread == thread
        case "modseq_min":
            modseq = asked.modseq_min
            return lambda each: each.record.modseq >= modseq
        case "ids":
            ids = {_number(tokens.parse_message_id, each) for each in asked.ids.ids}
            return lambda each: each.record.message in ids
        case _:
            raise unsupported(kind)


def _number(parse: Callable[[str], int], text: str) -> int:
    """-1, that nothing has, for an id that this store never gives."""
    try:
        return parse(text)
    except ValueError:
        return -1


def _mailbox_number(text: str) -> int:
    number = _number(tokens.parse_mailbox_id, text)
    if number < 0:
        raise mailbox_not_found("no such mailbox")
    return number


def _bounds(asked: search_pb2.TimeRange) -> tuple[int, float]:
    """Half-open; absent: no bound."""
    begin = asked.from_ms if asked.HasField("from_ms") else -(1 << 63)
    return begin, asked.below_ms if asked.HasField("below_ms") else float("inf")

"""The MIME parts of a message with their places in its bytes (RFC 2045, 2046).

For any bytes whatsoever: never fails, takes time in proportion to the size, and is bounded in
parts, levels and text. What is malformed is read as most mail programs do: a part's header ends at
the first line that is no header field; the end of an outer part ends what is open within; a
multipart whose boundary never comes has no parts. Line ends are CRLF, LF or CR.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from mailraft.v1 import blob_pb2

from .derive import derive
from .encoded_words import decoded
from .mime_fields import (
    HEADER_MAX_BYTES,
    boundary_of,
    header_fields,
    parameters,
    split_value,
    text_of,
)
from .pieces import Pieces

PARTS_MAX = 1_000
LEVELS_MAX = 32
# Text of all parts together: a reply holds it.
TEXT_MAX_BYTES = 1024 * 1024

# Lines that are header fields or go on with one (RFC 5322 section 2.2). Possessive: linear.
_HEADER = re.compile(
    rb"(?:From [^\r\n]*+(?:\r\n|[\r\n]|\Z))?"
    rb"(?:(?:[!-9;-~]*+[ \t]*+:|[ \t])[^\r\n]*+(?:\r\n|[\r\n]|\Z))*+"
)
# What may be the beginning of another field, or of the empty line.
_UNDECIDED = re.compile(rb"[!-9;-~]*+[ \t]*+|\r")
_LINE_END = re.compile(rb"\r\n|[\r\n]")
_BLANKS = b" \t"
# In which the end of a header is sought. One that is longer ends with the last.
_HEADER_WINDOWS_BYTES = (4 * 1024, 64 * 1024, 2 * 1024 * 1024)
_ENCODINGS_IN_PLACE = ("7bit", "8bit", "binary")


@dataclass(frozen=True, slots=True)
class Structure:
    root: blob_pb2.BodyPart
    truncated: bool


def parse(raw: bytes) -> Structure:
    """The message itself, its header being the root's."""
    return parse_pieces(Pieces.of(raw))


def parse_pieces(raw: Pieces) -> Structure:
    """As parse, of a message too large for memory; each level within reads its bytes again."""
    parser = _Parser(raw)
    root = blob_pb2.BodyPart()
    parser.message(root, 0, len(raw), "", 1)
    return Structure(root, parser.truncated)


class _Parser:
    def __init__(self, raw: Pieces) -> None:
        self._raw = raw
        self._parts = 0
        self._text_bytes = 0
        self._boundary = b""  # of the part whose header was read last
        self.truncated = False

    def message(
        self, part: blob_pb2.BodyPart, start: int, end: int, prefix: str, level: int
    ) -> None:
        """A whole message between two places: the outermost, or one in a message/rfc822 part.

        A multipart has no number of its own here; anything else is part 1 (RFC 9051, 6.4.5.1).
        """
        self._part(part, start, end, f"{prefix}1", level, ("text", "plain"))
        if part.type == "multipart":
            part.part_id = ""
            self._children(part, prefix, level)

    def _part(
        self,
        part: blob_pb2.BodyPart,
        start: int,
        end: int,
        part_id: str,
        level: int,
        default: tuple[str, str],
    ) -> None:
        """Everything of a part but the parts of a multipart."""
        self._parts += 1
        part.part_id = part_id
        body = self._header(part, start, end, default)
        part.header_offset_bytes, part.header_size_bytes = start, body - start
        part.body_offset_bytes, part.body_size_bytes = body, end - body
        if part.type == "text" or (part.type, part.subtype) == ("message", "rfc822"):
            part.body_lines = self._raw.lines(body, end)
        holds_message = part.type == "message" and part.subtype in ("rfc822", "global")
        if holds_message and part.encoding in _ENCODINGS_IN_PLACE and self._room(level):
            inner = part.parts.add()
            self.message(inner, body, end, f"{part_id}.", level + 1)
            header = self._raw.slice(body, min(end, body + HEADER_MAX_BYTES + 1))
            inner.envelope.CopyFrom(derive(header).envelope)
            self._text_bytes += inner.envelope.ByteSize()

    def _children(self, part: blob_pb2.BodyPart, prefix: str, level: int) -> None:
        boundary = self._boundary
        if not boundary:
            return
        default = ("message", "rfc822") if part.subtype == "digest" else ("text", "plain")
        begin = part.body_offset_bytes
        end = begin + part.body_size_bytes
        for number, (first, last) in enumerate(self._between(boundary, begin, end), start=1):
            if not self._room(level):
                return
            child = part.parts.add()
            self._part(child, first, last, f"{prefix}{number}", level + 1, default)
            if child.type == "multipart":
                self._children(child, f"{prefix}{number}.", level + 1)

    def _room(self, level: int) -> bool:
        if level < LEVELS_MAX and self._parts < PARTS_MAX and self._text_bytes < TEXT_MAX_BYTES:
            return True
        self.truncated = True
        return False

    def _between(self, boundary: bytes, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """What lies between the delimiter lines. The line end before one belongs to it (RFC 2046
        section 5.1.1).
        """
        raw = self._raw
        delimiter = b"--" + boundary
        first = -1
        at = raw.find(delimiter, begin, end)
        while at >= 0:
            after = at + len(delimiter)
            closes = raw.slice(after, min(after + 2, end)) == b"--"
            line_end = self._delimits(at, after + 2 if closes else after, begin, end)
            if line_end >= 0:
                if 0 <= first < at:  # two lines in a row are one
                    yield first, self._before_line_end(first, at)
                if closes:
                    return
                first = line_end
            at = raw.find(delimiter, after, end)
        if first >= 0:
            yield first, end

    def _delimits(self, at: int, after: int, begin: int, end: int) -> int:
        """Where the line behind a delimiter begins; -1 if it is none: it fills its whole line."""
        raw = self._raw
        if at > begin and raw.byte(at - 1) not in b"\r\n":
            return -1
        while after < end and raw.byte(after) in _BLANKS:
            after += 1
        if after == end:
            return end
        line_end = _LINE_END.match(raw.slice(after, min(after + 2, end)))
        return -1 if line_end is None else after + line_end.end()

    def _before_line_end(self, first: int, at: int) -> int:
        if at > first and self._raw.byte(at - 1) == 0x0A:
            at -= 1
        return at - 1 if at > first and self._raw.byte(at - 1) == 0x0D else at

    # ---- the header of a part

    def _header(
        self, part: blob_pb2.BodyPart, start: int, end: int, default: tuple[str, str]
    ) -> int:
        """Reads the fields; where the body begins, behind the empty line."""
        header, blank = self._header_block(start, end)
        body = start + len(header) + blank
        fields, cut = header_fields(header[: HEADER_MAX_BYTES + 1])
        self.truncated |= cut
        part.type, part.subtype = default
        part.encoding, self._boundary = "7bit", b""
        for name, value in fields.items():
            self._field(part, name, value)
        plain = (part.type, part.subtype) == ("text", "plain")
        if plain and all(each.name != "charset" for each in part.parameters):
            part.parameters.add(name="charset", value="us-ascii")  # RFC 2045 section 5.2
        return body

    def _header_block(self, start: int, end: int) -> tuple[bytes, int]:
        """The lines of the fields, and how long the empty line behind them is."""
        window, after = b"", 0
        for size in _HEADER_WINDOWS_BYTES:
            window = self._raw.slice(start, min(end, start + size))
            match = _HEADER.match(window)
            assert match is not None  # it matches nothing, too
            after = match.end()
            if start + len(window) == end or not _UNDECIDED.fullmatch(window, after):
                break
        else:
            self.truncated = True
        blank = _LINE_END.match(window, after)
        return window[:after], 0 if blank is None else blank.end() - after

    def _field(self, part: blob_pb2.BodyPart, name: bytes, value: bytes) -> None:
        match name:
            case b"content-type":
                kind, rest = split_value(value)
                main, _, sub = kind.partition("/")
                if main and sub and "/" not in sub:
                    part.type, part.subtype = main, sub
                else:
                    part.type, part.subtype = "text", "plain"
                _add(part.parameters, parameters(rest))
                if part.type == "multipart":
                    self._boundary = boundary_of(value)
            case b"content-disposition":
                part.disposition, rest = split_value(value)
                _add(part.disposition_parameters, parameters(rest))
            case b"content-transfer-encoding":
                part.encoding = split_value(value)[0] or "7bit"
            case b"content-id":
                part.content_id = text_of(value).strip("<> \t")
            case b"content-description":
                part.description = decoded(text_of(value))
            case b"content-language":
                tags = [tag.strip() for tag in text_of(value).split(",")]
                part.languages.extend(tag for tag in tags[:32] if tag)
            case b"content-location":
                part.location = text_of(value)
            case _:
                part.md5 = text_of(value)
        self._text_bytes += len(value)


def _add(into: RepeatedCompositeFieldContainer[blob_pb2.Parameter], found: dict[str, str]) -> None:
    for name, value in found.items():
        into.add(name=name, value=value)

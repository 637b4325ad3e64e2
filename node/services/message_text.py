"""What a message says, for searching: its header fields and the text of its text parts, decoded.

For any bytes whatsoever: never fails, takes time in proportion to the size, and is bounded by it.
Runs in another thread, so what is slow is done line by line: others get their turn in between.
"""

from __future__ import annotations

import binascii
import html
import re
from collections.abc import Iterator

from mailraft.node.mailstore.filters import Text, folded, spaced
from mailraft.v1 import blob_pb2

from . import mime
from .encoded_words import codec_of, decoded

# Of one message, from its beginning: long mails are long by what is attached.
MESSAGE_MAX_BYTES = 4 * 1024 * 1024
TEXT_MAX_CHARS = 1024 * 1024  # of that, decoded: about 1 s of a thread where it is not ASCII
FIELDS_MAX = 1_000
PIECE_CHARS = 8 * 1024  # folded at a time: below filters.FOLDED_MAX_CHARS

_FIELD = re.compile(rb"^([!-9;-~]{1,256})[ \t]*:(.*(?:\n[ \t].*)*)", re.MULTILINE)
_TAG = re.compile(r"<[^<>]*>")


def text_of(raw: bytes) -> Text:
    """As conditions compare it."""
    raw = raw[:MESSAGE_MAX_BYTES]
    root = mime.parse(raw).root
    fields = list(_fields(raw[: root.header_size_bytes]))
    return Text(fields, " ".join(_up_to_limit(_lines(raw, root))))


def _fields(header: bytes) -> Iterator[tuple[str, str]]:
    header = header.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for count, match in enumerate(_FIELD.finditer(header)):
        if count == FIELDS_MAX:
            return
        value = decoded(spaced(match[2].decode("utf-8", "replace")))
        yield match[1].decode().lower(), _folded(value)


def _up_to_limit(lines: Iterator[str]) -> Iterator[str]:
    left_chars = TEXT_MAX_CHARS
    for line in lines:
        yield line[:left_chars]
        left_chars -= len(line) + 1  # and a blank
        if left_chars <= 0:
            return


def _lines(raw: bytes, part: blob_pb2.BodyPart) -> Iterator[str]:
    """Of the text parts in their order, those of messages within too."""
    if part.type == "text":
        text = _decoded(raw, part)
        if part.subtype == "html":
            text = html.unescape(_TAG.sub(" ", text))
        for line in text.splitlines():
            if words := spaced(line):
                yield _folded(words)
    for child in part.parts:
        yield from _lines(raw, child)


def _folded(line: str) -> str:
    pieces = (line[at : at + PIECE_CHARS] for at in range(0, len(line), PIECE_CHARS))
    return "".join(map(folded, pieces))


def _decoded(raw: bytes, part: blob_pb2.BodyPart) -> str:
    content = raw[part.body_offset_bytes :][: part.body_size_bytes]
    match part.encoding:
        case "base64":
            content = _base64(content)
        case "quoted-printable":
            content = binascii.a2b_qp(content)
        case _:
            pass
    charset = next((each.value for each in part.parameters if each.name == "charset"), "")
    try:
        return content.decode(codec_of(charset) or "utf-8", "replace")
    except (LookupError, ValueError):
        return content.decode("utf-8", "replace")


def _base64(content: bytes) -> bytes:
    """What can be decoded: nothing of what is no base64 at all."""
    try:
        return binascii.a2b_base64(content + b"===")
    except binascii.Error:
        return b""

"""MIME header fields (RFC 2045 section 5.1, RFC 2231). Lenient, bounded, never raises."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

from .encoded_words import codec_of, decoded

HEADER_MAX_BYTES = 64 * 1024  # of one part, looked at
FIELD_MAX_BYTES = 8 * 1024
PARAMETERS_MAX = 64
VALUE_MAX_CHARS = 2 * 1024

_FIELD = re.compile(
    rb"(?:\A|[\r\n])(content-(?:type|disposition|transfer-encoding|id|description|language"
    rb"|location|md5))[ \t]*:([^\r\n]*(?:(?:\r\n|[\r\n])[ \t][^\r\n]*)*)",
    re.IGNORECASE,
)
_PARAMETER = re.compile(
    r";\s*+([^\s=;\"]++)\s*+=\s*+(?:\"((?:[^\"\\]|\\.)*+)\"?|([^;]*+))", re.DOTALL
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_COMMENT = re.compile(r"\([^()]*\)")
_PIECE = re.compile(r"([^*]+)(?:\*(\d{1,3}))?(\*)?")  # RFC 2231: name, section, is encoded


def header_fields(block: bytes) -> tuple[dict[bytes, bytes], bool]:
    """The MIME fields of a header block by lower-case name, the first of each; was it cut?"""
    cut = len(block) > HEADER_MAX_BYTES
    found: dict[bytes, bytes] = {}
    for match in _FIELD.finditer(block[:HEADER_MAX_BYTES]):
        value = match[2]
        if len(value) > FIELD_MAX_BYTES:
            value, cut = value[:FIELD_MAX_BYTES], True
        found.setdefault(match[1].lower(), value)
    return found, cut


def text_of(value: bytes) -> str:
    """Unfolded; bytes that are no UTF-8 are U+FFFD, NUL is removed."""
    return value.translate(None, b"\r\n\0").decode("utf-8", "replace").strip()[:VALUE_MAX_CHARS]


def split_value(value: bytes) -> tuple[str, str]:
    """What stands before the first semicolon or blank, in lower case and without comments; and the
    parameters behind it, where the semicolon may be forgotten.
    """
    text = value.translate(None, b"\r\n\0").decode("utf-8", "replace")
    return _split(text)


def _split(text: str) -> tuple[str, str]:
    first, semicolon, rest = text.partition(";")
    if "(" in first:
        first = _COMMENT.sub(" ", first)
    kind, *more = first.split(None, 1) or [""]
    forgotten = f";{more[0]}" if more and "=" in more[0] else ""
    return kind.lower()[:VALUE_MAX_CHARS], forgotten + semicolon + rest


def boundary_of(value: bytes) -> bytes:
    """The boundary that a Content-Type names, byte for byte; empty: none."""
    text = value.translate(None, b"\r\n").decode("latin-1")
    found = parameters(_split(text)[1], decode=False).get("boundary", "")
    return found.encode("latin-1", "replace").rstrip()


def parameters(rest: str, *, decode: bool = True) -> dict[str, str]:
    """Parameters in lower-case names, those that come in pieces joined and decoded (RFC 2231)."""
    plain: dict[str, str] = {}
    pieces: dict[str, dict[int, tuple[bool, str]]] = {}
    for count, match in enumerate(_PARAMETER.finditer(rest)):
        if count == PARAMETERS_MAX:
            break
        name, quoted, token = match.groups()
        value = (token.strip() if quoted is None else _ESCAPED.sub(r"\1", quoted))[:VALUE_MAX_CHARS]
        piece = _PIECE.fullmatch(name.lower())
        if piece is None or (piece[2] is None and piece[3] is None):
            plain.setdefault(name.lower(), decoded(value) if decode else value)
            continue
        place = int(piece[2] or 0)
        pieces.setdefault(piece[1], {}).setdefault(place, (piece[3] is not None, value))
    for name, parts in pieces.items():
        plain.setdefault(name, _joined(parts))
    return plain


def _joined(parts: dict[int, tuple[bool, str]]) -> str:
    charset = "utf-8"
    joined = b""
    for place in sorted(parts):
        is_encoded, value = parts[place]
        if is_encoded and not joined and value.count("'") >= 2:
            charset, _, value = value.split("'", 2)
        if is_encoded:
            joined += unquote_to_bytes(value)
        else:
            joined += value.encode("utf-8", "replace")
    try:
        text = joined.decode(codec_of(charset) or "utf-8", "replace")
    except (LookupError, ValueError):
        text = joined.decode("utf-8", "replace")
    return text.replace("\0", "")[:VALUE_MAX_CHARS]

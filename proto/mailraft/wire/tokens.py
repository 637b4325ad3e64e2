"""Opaque strings of the API: states, ids and page tokens.

    state       "1" + base64url(varints restore_epoch, creation_index, modseq, position | u16 check)
    ids         a letter for the kind + numbers in base 32 (0-9 a-v): one spelling each, case apart
                (RFC 8620 section 1.2 warns of ids that differ in case only)
    page token  "1" + base64url(u32 crc32c of what follows | u64 hash of the request | position)

The checks find mistakes, not forgeries: whoever opens a token validates what it says.
"""

from __future__ import annotations

import binascii
import functools
import struct
from collections.abc import Sequence
from typing import NamedTuple

import google_crc32c
import xxhash

from mailraft.wire import errors

TOKEN_MAX_CHARS = 1_024
_VERSION = "1"
_CHECK = struct.Struct(">H")
_PAGE = struct.Struct(">IQ")
_UINT64_MAX = 2**64 - 1
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_PLAIN = bytes.maketrans(b"-_", b"+/")
_DIGITS = "0123456789abcdefghijklmnopqrstuv"
_PAIRS = [high + low for high in _DIGITS for low in _DIGITS]


class State(NamedTuple):
    """Where an account is: incarnation (restore_epoch, creation_index), MODSEQ, place within."""

    restore_epoch: int
    creation_index: int
    modseq: int
    position: int = 0

    @property
    def incarnation(self) -> tuple[int, int]:
        return self.restore_epoch, self.creation_index


def encode_state(state: State) -> str:
    body = b"".join(map(_varint, state))
    return _VERSION + _base64(body + _CHECK.pack(google_crc32c.value(body) & 0xFFFF))


def decode_state(token: str) -> State:
    """Raises ValueError for what encode_state did not make."""
    body = _open(token, "state")
    body, check = body[: -_CHECK.size], body[-_CHECK.size :]
    if check != _CHECK.pack(google_crc32c.value(body) & 0xFFFF):
        raise ValueError(f"not a state: {token!r}")
    numbers = _varints(body)
    if len(numbers) != 4:
        raise ValueError(f"not a state: {token!r}")
    return State(*numbers)


# ---- ids ----------------------------------------------------------------------------------------


def mailbox_id(number: int) -> str:
    return "F" + _base32(number)


def parse_mailbox_id(text: str) -> int:
    """As every parse_ here, raises ValueError for what is not an id of its kind."""
    return _number(text, "F", "mailbox")


def message_id(number: int) -> str:
    return "M" + _base32(number)


def parse_message_id(text: str) -> int:
    return _number(text, "M", "message")


def thread_id(number: int) -> str:
    return "T" + _base32(number)


def parse_thread_id(text: str) -> int:
    return _number(text, "T", "thread")


def blob_id(index: int, ordinal: int) -> str:
    """The body that log entry `index` carried as its `ordinal`-th."""
    return f"B{_base32(index)}-{_base32(ordinal)}"


def parse_blob_id(text: str) -> tuple[int, int]:
    index, dash, ordinal = text.partition("-")
    if not dash:
        raise ValueError(f"not a blob id: {text!r}")
    return _number(index, "B", "blob"), _number("B" + ordinal, "B", "blob")


# ---- page tokens --------------------------------------------------------------------------------


def page_token(request: Sequence[str | int], position: bytes) -> str:
    """A token that goes on at `position`, for requests with these parameters only."""
    bound = struct.pack(">Q", _hash(request)) + position
    return _VERSION + _base64(struct.pack(">I", google_crc32c.value(bound)) + bound)


def open_page_token(token: str, request: Sequence[str | int]) -> bytes:
    """The position in a token; raises BadPageTokenError for another request's, or none at all."""
    try:
        body = _open(token, "page token")
        checksum, bound_to = _PAGE.unpack_from(body)
    except (ValueError, struct.error):
        raise errors.BadPageTokenError from None
    if google_crc32c.value(body[4:]) != checksum:
        raise errors.BadPageTokenError
    if bound_to != _hash(request):
        raise errors.BadPageTokenError("the page_token is of another request")
    return body[_PAGE.size :]


def _hash(parts: Sequence[str | int]) -> int:
    hasher = xxhash.xxh3_64()
    for part in parts:
        text = f"{type(part).__name__}:{part}".encode()
        hasher.update(struct.pack(">I", len(text)) + text)
    return hasher.intdigest()


# ---- letters and numbers ------------------------------------------------------------------------


def _base64(body: bytes) -> str:
    # As base64.urlsafe_b64encode, in one step: each answer of a delivery has one.
    return binascii.b2a_base64(body, newline=False).translate(_URL_SAFE).rstrip(b"=").decode()


def _open(token: str, what: str) -> bytes:
    if not token.startswith(_VERSION) or len(token) > TOKEN_MAX_CHARS:
        raise ValueError(f"not a {what}: {token[:TOKEN_MAX_CHARS]!r}")
    text = token[1:]
    try:
        plain = text.encode("ascii").translate(_PLAIN)
        body = binascii.a2b_base64(plain + b"=" * (-len(plain) % 4))
    except (binascii.Error, ValueError):
        raise ValueError(f"not a {what}: {token!r}") from None
    if _base64(body) != text:  # the decoder passes over foreign characters
        raise ValueError(f"not a {what}: {token!r}")
    return body


def _base32(number: int) -> str:
    if not 0 <= number <= _UINT64_MAX:
        raise ValueError(f"not an unsigned 64-bit number: {number}")
    digits = ""
    while number >= 1024:
        number, pair = divmod(number, 1024)
        digits = _PAIRS[pair] + digits
    return (_PAIRS[number] if number >= 32 else _DIGITS[number]) + digits


def _number(text: str, letter: str, kind: str) -> int:
    digits = text[1:]
    if text[:1] != letter or not digits or not set(digits) <= set(_DIGITS):
        raise ValueError(f"not a {kind} id: {text!r}")
    if len(digits) > 13 or (digits[0] == "0" and digits != "0"):
        raise ValueError(f"not a {kind} id: {text!r}")
    number = int(digits, 32)
    if number > _UINT64_MAX:
        raise ValueError(f"not a {kind} id: {text!r}")
    return number


@functools.lru_cache(maxsize=4096)  # the same accounts and small numbers, over and over
def _varint(number: int) -> bytes:
    if not 0 <= number <= _UINT64_MAX:
        raise ValueError(f"not an unsigned 64-bit number: {number}")
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _varints(body: bytes) -> list[int]:
    numbers: list[int] = []
    number = shift = 0
    for byte in body:
        if byte < 0x80 and not shift:
            numbers.append(byte)
            continue
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(number)
            number = shift = 0
    if shift or any(number > _UINT64_MAX for number in numbers):
        raise ValueError("not a state: its numbers are cut off or too great")
    return numbers

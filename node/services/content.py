"""The bytes of a mail on their way in: verified, compressed, hashed, their header read.

What a caller compressed is verified and kept as it is, if it used the dictionary that bodies of
that size are stored with; else it is compressed anew, as what comes raw is compressed here. A
`derived` of the caller counts only if it was made by this very version of the parser and is small
enough; otherwise it is made here, from the bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import NamedTuple

from mailraft.internal.v1 import command_pb2
from mailraft.node.mailstore import threads
from mailraft.v1 import delivery_pb2, error_pb2, message_pb2
from mailraft.wire import bodies, errors, limits

from . import validate
from .derive import DERIVED_MAX_BYTES, PARSER_VERSION, derive

# Above this hashing and compressing would hold up every other call of the node: another thread does
# it, without the interpreter's lock.
INLINE_MAX_BYTES = 128 * 1024
# Uncompressed, of one call: 4 MiB of zeros compressed would be gigabytes.
CONTENT_PER_CALL_MAX_BYTES = 64 * 1024 * 1024


class Prepared(NamedTuple):
    """A body as a command carries it."""

    packed: bytes
    size_bytes: int
    sha256: bytes
    derived: bytes
    thread_keys: list[int]  # what threads it, read from `derived`

    def new_body(self, ordinal: int) -> command_pb2.NewBody:
        body = command_pb2.NewBody()
        self.tell(body, ordinal=ordinal)
        return body

    def tell(self, body: command_pb2.NewBody, *, ordinal: int) -> None:
        body.ordinal, body.size_bytes = ordinal, self.size_bytes
        body.stored_bytes, body.sha256 = len(self.packed), self.sha256


class Budget:
    """How many bytes one call may still unpack."""

    def __init__(self) -> None:
        self._left_bytes = CONTENT_PER_CALL_MAX_BYTES

    def take(self, size_bytes: int) -> None:
        if size_bytes > self._left_bytes:
            raise errors.OverloadedError("the mails of this call are too large together")
        self._left_bytes -= size_bytes


async def prepare(
    content: delivery_pb2.Content,
    derived: message_pb2.Derived | None,
    budget: Budget,
    field: str,
    dictionary: int,
) -> Prepared:
    """dictionary: what all replicas have (dictionary_at). Raises BAD_FIELD, MESSAGE_TOO_LARGE,
    CONTENT_MISMATCH; OVERLOADED: the budget is spent.
    """
    size_bytes = _declared_bytes(content, field)
    budget.take(size_bytes)
    dictionary = bodies.suited(dictionary, size_bytes)
    if size_bytes <= INLINE_MAX_BYTES:
        return _prepare(content, derived, dictionary)
    return await asyncio.to_thread(_prepare, content, derived, dictionary)


def given_or_derived(given: message_pb2.Derived | None, raw: bytes) -> bytes:
    """A serialized Derived, of at most DERIVED_MAX_BYTES."""
    return _derived(given, raw)[1]


def _derived(given: message_pb2.Derived | None, raw: bytes) -> tuple[message_pb2.Derived, bytes]:
    if given is not None and given.parser_version == PARSER_VERSION:
        serialized = given.SerializeToString(deterministic=True)
        if len(serialized) <= DERIVED_MAX_BYTES:
            return given, serialized
    made = derive(raw)
    return made, made.SerializeToString(deterministic=True)


def _declared_bytes(content: delivery_pb2.Content, field: str) -> int:
    match content.WhichOneof("encoding"):
        case "raw":
            size_bytes = len(content.raw)
        case "zstd":
            size_bytes = content.zstd.size_bytes
            if len(content.zstd.sha256) != hashlib.sha256().digest_size:
                raise validate.bad(f"{field}.zstd.sha256", "32 bytes")
            if content.zstd.dictionary > bodies.MAIL_DICTIONARY:
                raise validate.bad(f"{field}.zstd.dictionary", "is not known here")
        case _:
            raise validate.bad(field, "raw or zstd")
    if not size_bytes:
        raise validate.bad(field, "must not be empty")
    if size_bytes > limits.MESSAGE_MAX_BYTES:
        raise errors.MessageTooLargeError(
            f"a message of {size_bytes} bytes: at most {limits.MESSAGE_MAX_BYTES} in a call, up to "
            f"{limits.UPLOAD_MAX_BYTES} by BlobService.UploadBlob",
            detail=error_pb2.MessageTooLarge(
                size_bytes=size_bytes,
                max_bytes=limits.MESSAGE_MAX_BYTES,
                upload_max_bytes=limits.UPLOAD_MAX_BYTES,
            ),
        )
    return size_bytes


def _prepare(
    content: delivery_pb2.Content, given: message_pb2.Derived | None, dictionary: int
) -> Prepared:
    if content.WhichOneof("encoding") == "zstd":
        zstd = content.zstd
        raw, packed = _verified(zstd, dictionary)
        sha256 = zstd.sha256
    else:
        raw = content.raw
        packed, sha256 = bodies.pack(raw, dictionary), hashlib.sha256(raw).digest()
    read, derived = _derived(given, raw)
    return Prepared(packed, len(raw), sha256, derived, threads.keys_of(read))


def _verified(zstd: delivery_pb2.Zstd, dictionary: int) -> tuple[bytes, bytes]:
    data, used = zstd.data, zstd.dictionary
    try:
        raw = bodies.open_zstd(data, zstd.size_bytes, used)
    except bodies.BodyCorruptError as error:
        raise errors.ContentMismatchError(str(error)) from None
    if hashlib.sha256(raw).digest() != zstd.sha256:
        raise errors.ContentMismatchError("the content has another sha256 than declared")
    # A frame that is no smaller than the bytes only costs its readers time.
    if used == dictionary and len(data) < len(raw):
        return raw, bodies.pack_zstd(data, used)
    return raw, bodies.pack(raw, dictionary)

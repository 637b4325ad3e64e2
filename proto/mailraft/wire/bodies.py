"""A message body as it is stored and replicated: compressed once, where it enters.

    u8 format (1) | u8 codec | u8 cipher (0, reserved) | u8 0
    | u32 crc32c of what follows, little-endian | payload

codec: 0 identity, 1 zstd, 2 zstd with the mail dictionary. The checksum is of the stored bytes, so
a copy can be verified without opening it.

The mail dictionary is text that most mail has some of (mail_dictionary_1.txt, its lines ended by
CRLF), as a raw-content dictionary of zstd: what is small anyway becomes a seventh smaller. Stored
bodies need it for ever: that file never changes, a better one is a codec and a number of its own.
"""

from __future__ import annotations

import struct
import threading
from functools import cache
from pathlib import Path

import google_crc32c
import zstandard

from . import feature_levels

_HEADER = struct.Struct("<BBBBI")
HEADER_BYTES = _HEADER.size
_FORMAT, _IDENTITY, _ZSTD = 1, 0, 1
ZSTD_LEVEL = 3
# With the dictionary: 4% fewer bytes than level 3, for 25 us a mail more.
DICTIONARY_LEVEL = 4
# Numbers of dictionaries, on the wire; behind _ZSTD, codecs.
NO_DICTIONARY, MAIL_DICTIONARY = 0, 1
# Of larger bodies it saves less than 2 in 100.
MAIL_DICTIONARY_BYTES_MAX = 64 * 1024


class _Compressors(threading.local):
    """One of each per thread: making one costs more than compressing a mail with it."""

    def __init__(self) -> None:
        text = zstandard.ZstdCompressionDict(
            mail_dictionary(), dict_type=zstandard.DICT_TYPE_RAWCONTENT
        )
        text.precompute_compress(level=DICTIONARY_LEVEL)
        # By the number of the dictionary.
        self.compress = (
            zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress,
            zstandard.ZstdCompressor(level=DICTIONARY_LEVEL, dict_data=text).compress,
        )
        self.decompress = (
            zstandard.ZstdDecompressor().decompress,
            zstandard.ZstdDecompressor(dict_data=text).decompress,
        )


@cache
def mail_dictionary() -> bytes:
    """What frames with MAIL_DICTIONARY are made with."""
    text = Path(__file__).with_name("mail_dictionary_1.txt").read_bytes()
    return text.replace(b"\n", b"\r\n")


_zstd = _Compressors()


class BodyCorruptError(Exception):
    """The stored bytes are not what was written."""


def dictionary_at(feature_level: int) -> int:
    """What every server of a cluster can open. 0: the level is not known."""
    return MAIL_DICTIONARY if feature_level >= feature_levels.MAIL_DICTIONARY else NO_DICTIONARY


def suited(known: int, size_bytes: int) -> int:
    """The dictionary for a body of so many bytes, of those up to `known`."""
    return known if size_bytes <= MAIL_DICTIONARY_BYTES_MAX else NO_DICTIONARY


def compress(raw: bytes, dictionary: int = NO_DICTIONARY) -> bytes:
    """One message as a zstd frame."""
    return _zstd.compress[dictionary](raw)


def pack(raw: bytes, dictionary: int = NO_DICTIONARY) -> bytes:
    """Compress one message, where that helps, and put its header before it."""
    compressed = _zstd.compress[dictionary](raw)
    if len(compressed) < len(raw):
        return _frame(_ZSTD + dictionary, compressed)
    return _frame(_IDENTITY, raw)


def pack_zstd(compressed: bytes, dictionary: int = NO_DICTIONARY) -> bytes:
    """Frame what a client compressed; verify it first (open_zstd)."""
    return _frame(_ZSTD + dictionary, compressed)


def open_zstd(compressed: bytes, size_bytes: int, dictionary: int = NO_DICTIONARY) -> bytes:
    """Decompress with a bound on the output; BodyCorruptError unless it is size_bytes long."""
    if dictionary > MAIL_DICTIONARY:
        raise BodyCorruptError(f"made with dictionary {dictionary}, which is not known here")
    try:
        # max_output_size binds only frames that do not declare their size (zstandard 0.25).
        declared = zstandard.frame_content_size(compressed)
        if declared not in (-1, size_bytes):
            raise BodyCorruptError(f"zstd frame declares {declared} bytes, not {size_bytes}")
        decompress = _zstd.decompress[dictionary]
        raw = decompress(compressed, max_output_size=size_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BodyCorruptError(f"not a zstd frame of {size_bytes} bytes: {error}") from error
    if len(raw) != size_bytes:
        raise BodyCorruptError(f"zstd frame holds {len(raw)} bytes, not {size_bytes}")
    return raw


def unpack(packed: bytes, size_bytes: int) -> bytes:
    """The raw message; raises BodyCorruptError when a bit of it changed."""
    codec, payload = _check(packed)
    if codec != _IDENTITY:
        return open_zstd(payload, size_bytes, codec - _ZSTD)
    if len(payload) != size_bytes:
        raise BodyCorruptError(f"body holds {len(payload)} bytes, not {size_bytes}")
    return payload


def zstd_payload(packed: bytes, known: int = NO_DICTIONARY) -> tuple[bytes, int] | None:
    """The zstd frame inside and its dictionary, for a reader that opens it itself and has the
    dictionaries up to `known`; None when it cannot.
    """
    codec, payload = _check(packed)
    if codec == _IDENTITY or codec - _ZSTD > known:
        return None
    return payload, codec - _ZSTD


def check(packed: bytes) -> None:
    """Raises BodyCorruptError when a bit of it changed; opens nothing."""
    _check(packed)


def _frame(codec: int, payload: bytes) -> bytes:
    return _HEADER.pack(_FORMAT, codec, 0, 0, google_crc32c.value(payload)) + payload


def _check(packed: bytes) -> tuple[int, bytes]:
    if len(packed) < HEADER_BYTES:
        raise BodyCorruptError("body is shorter than its header")
    form, codec, cipher, _, checksum = _HEADER.unpack_from(packed)
    payload = packed[HEADER_BYTES:]
    if google_crc32c.value(payload) != checksum:
        raise BodyCorruptError("body checksum does not match")
    if form != _FORMAT or codec > _ZSTD + MAIL_DICTIONARY or cipher:
        raise BodyCorruptError(f"unknown body format {form}, codec {codec}, cipher {cipher}")
    return codec, payload

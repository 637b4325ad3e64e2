"""A message body as it is stored and replicated: compressed once, where it enters.

    u8 format (1) | u8 codec (0 identity, 1 zstd) | u8 cipher (0, reserved) | u8 0
    | u32 crc32c of what follows, little-endian | payload

The checksum is of the stored bytes, so a copy can be verified without opening it.
"""

from __future__ import annotations

import struct
import threading

import google_crc32c
import zstandard

_HEADER = struct.Struct("<BBBBI")
HEADER_BYTES = _HEADER.size
_FORMAT, _IDENTITY, _ZSTD = 1, 0, 1
ZSTD_LEVEL = 3


class _Compressors(threading.local):
    """One of each per thread: making one costs more than compressing a mail with it."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress
        self.decompress = zstandard.ZstdDecompressor().decompress


_zstd = _Compressors()


class BodyCorruptError(Exception):
    """The stored bytes are not what was written."""


def compress(raw: bytes) -> bytes:
    """One message as a zstd frame."""
    return _zstd.compress(raw)


def pack(raw: bytes) -> bytes:
    """Compress one message, where that helps, and put its header before it."""
    compressed = _zstd.compress(raw)
    return _frame(_ZSTD, compressed) if len(compressed) < len(raw) else _frame(_IDENTITY, raw)


def pack_zstd(compressed: bytes) -> bytes:
    """Frame what a client compressed; verify it first (open_zstd)."""
    return _frame(_ZSTD, compressed)


def open_zstd(compressed: bytes, size_bytes: int) -> bytes:
    """Decompress with a bound on the output; BodyCorruptError unless it is size_bytes long."""
    try:
        # max_output_size binds only frames that do not declare their size (zstandard 0.25).
        declared = zstandard.frame_content_size(compressed)
        if declared not in (-1, size_bytes):
            raise BodyCorruptError(f"zstd frame declares {declared} bytes, not {size_bytes}")
        raw = _zstd.decompress(compressed, max_output_size=size_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BodyCorruptError(f"not a zstd frame of {size_bytes} bytes: {error}") from error
    if len(raw) != size_bytes:
        raise BodyCorruptError(f"zstd frame holds {len(raw)} bytes, not {size_bytes}")
    return raw


def unpack(packed: bytes, size_bytes: int) -> bytes:
    """The raw message; raises BodyCorruptError when a bit of it changed."""
    codec, payload = _check(packed)
    if codec == _ZSTD:
        return open_zstd(payload, size_bytes)
    if len(payload) != size_bytes:
        raise BodyCorruptError(f"body holds {len(payload)} bytes, not {size_bytes}")
    return payload


def zstd_payload(packed: bytes) -> bytes | None:
    """The zstd frame inside, for a reader that opens it itself; None when stored uncompressed."""
    codec, payload = _check(packed)
    return payload if codec == _ZSTD else None


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
    if form != _FORMAT or codec not in (_IDENTITY, _ZSTD) or cipher:
        raise BodyCorruptError(f"unknown body format {form}, codec {codec}, cipher {cipher}")
    return codec, payload

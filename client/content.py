"""Bodies on their way in and out: compressed once by the client, verified when they come back."""

from __future__ import annotations

import hashlib

import google_crc32c
import zstandard

from mailraft.client.failures import IntegrityError
from mailraft.v1 import blob_pb2, delivery_pb2, error_pb2
from mailraft.wire import bodies, errors, limits


def encode(raw: bytes, *, compress: bool) -> delivery_pb2.Content:
    """The content of one message: a zstd frame where that is smaller, else the bytes themselves.

    Raises MessageTooLargeError above limits.MESSAGE_MAX_BYTES, since no channel would carry it.
    """
    if len(raw) > limits.MESSAGE_MAX_BYTES:
        detail = error_pb2.MessageTooLarge(size_bytes=len(raw), max_bytes=limits.MESSAGE_MAX_BYTES)
        raise errors.MessageTooLargeError(detail=detail)
    if compress:
        data = zstandard.ZstdCompressor(level=bodies.ZSTD_LEVEL).compress(raw)
        if len(data) < len(raw):
            sha256 = hashlib.sha256(raw).digest()
            zstd = delivery_pb2.Zstd(data=data, size_bytes=len(raw), sha256=sha256)
            return delivery_pb2.Content(zstd=zstd)
    return delivery_pb2.Content(raw=raw)


def decode(content: delivery_pb2.Content) -> bytes:
    """The bytes; raises IntegrityError when they are not what the content declares."""
    if not content.HasField("zstd"):
        return content.raw
    zstd = content.zstd
    if zstd.size_bytes > limits.RPC_MAX_BYTES:
        raise IntegrityError(f"a zstd frame declares {zstd.size_bytes} bytes")
    try:
        raw = bodies.open_zstd(zstd.data, zstd.size_bytes)
    except bodies.BodyCorruptError as error:
        raise IntegrityError(str(error)) from error
    if zstd.sha256:
        verify_sha256(hashlib.sha256(raw).digest(), zstd.sha256)
    return raw


def verify_sha256(found: bytes, declared: bytes) -> None:
    """Raises IntegrityError unless both are the same."""
    if found != declared:
        raise IntegrityError(f"SHA-256 is {found.hex()}, not {declared.hex()}")


class Download:
    """What has come of a download, and how to go on with it when its stream breaks.

    before: bytes right before the asked ones that are here already; they count for the SHA-256.
    """

    def __init__(self, request: blob_pb2.DownloadBlobRequest, before: bytes = b"") -> None:
        self._asked = request
        self._from_start = request.offset_bytes == len(before)
        self._header: blob_pb2.DownloadHeader | None = None
        self._hash = hashlib.sha256(before)
        self.received_bytes = 0

    def request(self) -> blob_pb2.DownloadBlobRequest:
        """Asks for what is missing."""
        request = blob_pb2.DownloadBlobRequest()
        request.CopyFrom(self._asked)
        request.offset_bytes += self.received_bytes
        if request.length_bytes:
            request.length_bytes -= self.received_bytes
        return request

    @property
    def complete(self) -> bool:
        """Whether all asked bytes are here."""
        return self._header is not None and self.received_bytes == self._wanted_bytes(self._header)

    @property
    def state(self) -> str:
        """The account's state that the bytes were read at; empty before the header came."""
        return "" if self._header is None else self._header.state

    def feed(self, part: blob_pb2.DownloadBlobResponse) -> bytes:
        """The next bytes, or none; raises IntegrityError when they cannot be the right ones."""
        if part.HasField("header"):
            if self._header is not None and self._header.blob_id != part.header.blob_id:
                raise IntegrityError("the download went on with another blob")
            self._header = part.header
            return b""
        data = part.chunk.data
        if google_crc32c.value(data) != part.chunk.crc32c:
            raise IntegrityError(f"CRC-32C of a chunk of {len(data)} bytes does not match")
        self.received_bytes += len(data)
        self._hash.update(data)
        return data

    def finish(self) -> None:
        """Raises IntegrityError unless all is here, and the whole body has its SHA-256."""
        if self._header is None:
            raise IntegrityError("the download has no header")
        wanted = self._wanted_bytes(self._header)
        if self.received_bytes != wanted:
            raise IntegrityError(f"{self.received_bytes} bytes came instead of {wanted}")
        to_the_end = self._asked.offset_bytes + wanted == self._header.size_bytes
        if self._from_start and to_the_end:
            verify_sha256(self._hash.digest(), self._header.sha256)

    def _wanted_bytes(self, header: blob_pb2.DownloadHeader) -> int:
        left = max(0, header.size_bytes - self._asked.offset_bytes)
        return min(self._asked.length_bytes or left, left)

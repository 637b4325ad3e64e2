"""Bodies on their way in and out: compressed once by the client, verified when they come back."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import google_crc32c

from mailraft.client.failures import IntegrityError
from mailraft.v1 import blob_pb2, common_pb2, delivery_pb2, error_pb2
from mailraft.wire import bodies, errors, limits


class Packing(NamedTuple):
    """How bodies are sent: compressed or not, and with which dictionary (mailraft.wire.bodies)."""

    compress: bool
    dictionary: int = bodies.NO_DICTIONARY


def encode(raw: bytes, packing: Packing) -> delivery_pb2.Content:
    """The content of one message, as encode_into makes it."""
    content = delivery_pb2.Content()
    encode_into(content, raw, packing)
    return content


def encode_into(content: delivery_pb2.Content, raw: bytes, packing: Packing) -> None:
    """Make it hold one message: a zstd frame where that is smaller, else the bytes themselves.

    Raises MessageTooLargeError above limits.MESSAGE_MAX_BYTES, since no channel would carry it.
    """
    if len(raw) > limits.MESSAGE_MAX_BYTES:
        raise too_large(len(raw))
    if packing.compress:
        dictionary = bodies.suited(packing.dictionary, len(raw))
        data = bodies.compress(raw, dictionary)
        if len(data) < len(raw):
            zstd = content.zstd
            zstd.data, zstd.size_bytes = data, len(raw)
            zstd.sha256 = hashlib.sha256(raw).digest()
            if dictionary:
                zstd.dictionary = dictionary
            return
    content.raw = raw


def decode(content: delivery_pb2.Content) -> bytes:
    """The bytes; raises IntegrityError when they are not what the content declares."""
    if not content.HasField("zstd"):
        return content.raw
    zstd = content.zstd
    if zstd.size_bytes > limits.RPC_MAX_BYTES:
        raise IntegrityError(f"a zstd frame declares {zstd.size_bytes} bytes")
    try:
        raw = bodies.open_zstd(zstd.data, zstd.size_bytes, zstd.dictionary)
    except bodies.BodyCorruptError as error:
        raise IntegrityError(str(error)) from error
    if zstd.sha256:
        verify_sha256(hashlib.sha256(raw).digest(), zstd.sha256)
    return raw


def verify_sha256(found: bytes, declared: bytes) -> None:
    """Raises IntegrityError unless both are the same."""
    if found != declared:
        raise IntegrityError(f"SHA-256 is {found.hex()}, not {declared.hex()}")


def too_large(size_bytes: int) -> errors.MessageTooLargeError:
    """What a message is refused with that no server would take."""
    detail = error_pb2.MessageTooLarge(
        size_bytes=size_bytes,
        max_bytes=limits.MESSAGE_MAX_BYTES,
        upload_max_bytes=limits.UPLOAD_MAX_BYTES,
    )
    return errors.MessageTooLargeError(detail=detail)


class Upload:
    """Bytes on their way out, and where they go on after a stream broke.

    data: bytes, or a binary file that can seek, from where it stands to its end; it is read twice,
    for its hash and to be sent, and never held as a whole.
    """

    def __init__(
        self,
        account_id: str,
        data: bytes | BinaryIO,
        request_id: bytes,
        write_options: common_pb2.WriteOptions,
    ) -> None:
        self._file: BinaryIO = io.BytesIO(data) if isinstance(data, bytes) else data
        self._start = self._file.tell()
        self._header = blob_pb2.UploadHeader(
            account_id=account_id, request_id=request_id, write_options=write_options
        )

    def measure(self) -> None:
        """Tells the header how much it is and its hash. Raises MessageTooLargeError."""
        sha256, size_bytes = hashlib.sha256(), 0
        self._file.seek(self._start)
        while data := self._file.read(limits.CHUNK_BYTES):
            size_bytes += len(data)
            if size_bytes > limits.UPLOAD_MAX_BYTES:
                raise too_large(size_bytes)
            sha256.update(data)
        self._header.size_bytes, self._header.sha256 = size_bytes, sha256.digest()

    def header(self) -> blob_pb2.UploadBlobRequest:
        """The first message of a stream."""
        return blob_pb2.UploadBlobRequest(header=self._header)

    def chunks(self) -> Iterator[blob_pb2.UploadBlobRequest]:
        """The other messages of a stream, read as they are taken."""
        self._file.seek(self._start + self._header.offset_bytes)
        left = self._header.size_bytes - self._header.offset_bytes
        while left and (data := self._file.read(min(left, limits.CHUNK_BYTES))):
            left -= len(data)
            chunk = blob_pb2.BlobChunk(data=data, crc32c=google_crc32c.value(data))
            yield blob_pb2.UploadBlobRequest(chunk=chunk)

    def go_on(self, error: errors.UploadOffsetMismatchError) -> None:
        """The next stream begins where the server says; raises `error` if it does not say."""
        detail = error.detail
        if not isinstance(detail, error_pb2.UploadOffsetMismatch):
            raise error
        if detail.offset_bytes == self._header.offset_bytes:
            raise error
        self._header.offset_bytes = detail.offset_bytes


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

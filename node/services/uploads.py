"""UploadBlob: chunks as they come become parts, and each part a log entry's body.

The next chunks are taken only when the part before them is committed: so an upload holds one part
in memory, however large the whole is and however fast it comes.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import google_crc32c

from mailraft.internal.v1 import command_pb2
from mailraft.node.mailstore import queries
from mailraft.node.proposals import Committed
from mailraft.node.shard import Replica
from mailraft.v1 import blob_pb2, error_pb2
from mailraft.wire import bodies, errors, limits, tokens

from . import blob_source, convert, levels, mutations, validate, write_levels
from .base import Call, Shards

UPLOADS_AT_ONCE_MAX = 16  # of a node
RETRY_AFTER_MS = 1_000
# A part is what fills up to this: with one chunk more at most, far below the 1 MiB of a log entry.
PART_BYTES = 512 * 1024
PART_DEADLINE_S = 10.0  # to commit one
CHUNK_TIMEOUT_S = 60.0  # the next chunk must come within


class Uploads:
    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._running = 0

    async def UploadBlob(
        self, header: blob_pb2.UploadHeader, requests: AsyncIterator[blob_pb2.UploadBlobRequest]
    ) -> blob_pb2.UploadBlobResponse:
        """Raises UPLOAD_OFFSET_MISMATCH where an upload that broke off is to go on."""
        _check_form(header)
        replica = self._shards.replica_for_account(header.account_id)
        levels.check_leading(replica)
        if self._running >= UPLOADS_AT_ONCE_MAX:
            raise errors.OverloadedError(
                f"{self._running} uploads run here", retry_after_ms=RETRY_AFTER_MS
            )
        self._running += 1
        try:
            return await _Upload(self._shards, replica, header).run(requests)
        finally:
            self._running -= 1


class _Upload:
    """One stream's part in an upload."""

    def __init__(self, shards: Shards, replica: Replica, header: blob_pb2.UploadHeader) -> None:
        self._shards, self._replica, self._header = shards, replica, header
        self._level = write_levels.level_of(shards, header.write_options)
        self._hash = hashlib.sha256()
        self._sent_bytes = 0  # in the log so far
        self._chunks: list[bytes] = []  # that are not
        self._waiting_bytes = 0

    async def run(
        self, requests: AsyncIterator[blob_pb2.UploadBlobRequest]
    ) -> blob_pb2.UploadBlobResponse:
        header = self._header
        self._level.check(self._replica)
        begin = command_pb2.BeginUpload(
            account_id=header.account_id, size_bytes=header.size_bytes, sha256=header.sha256
        )
        committed, outcome = await self._propose(command_pb2.Command(begin_upload=begin))
        if not outcome.HasField("blob"):
            await self._resume(outcome.offset_bytes)
            committed, outcome = await self._take(requests)
        reply = mutations.reply_of(committed)
        call = Call(self._shards.now_s() + PART_DEADLINE_S)
        return blob_pb2.UploadBlobResponse(
            state=convert.state_token(reply.state),
            served=await self._level.reached(self._shards, self._replica, committed, call),
            blob_id=tokens.blob_id(outcome.blob.index, outcome.blob.ordinal),
            size_bytes=header.size_bytes,
            expires_time_ms=outcome.expires_ms,
        )

    async def _resume(self, offset_bytes: int) -> None:
        """Hash what is there already, so that the whole can be compared at the end."""
        header = self._header
        if header.offset_bytes != offset_bytes:
            raise errors.UploadOffsetMismatchError(
                f"the upload goes on at {offset_bytes}",
                detail=error_pb2.UploadOffsetMismatch(offset_bytes=offset_bytes),
            )
        if offset_bytes:
            for part in queries.upload(self._replica.view, header.account_id, header.request_id):
                if self._sent_bytes < offset_bytes:
                    raw = await blob_source.opened(self._shards, self._replica, part)
                    await asyncio.to_thread(self._hash.update, raw)
                    self._sent_bytes += len(raw)

    async def _take(
        self, requests: AsyncIterator[blob_pb2.UploadBlobRequest]
    ) -> tuple[Committed, command_pb2.UploadOutcome]:
        size_bytes = self._header.size_bytes
        while True:
            data = await _next_chunk(requests)
            self._chunks.append(data)
            self._waiting_bytes += len(data)
            received_bytes = self._sent_bytes + self._waiting_bytes
            if received_bytes > size_bytes:
                raise errors.ContentMismatchError(f"more than the {size_bytes} bytes declared")
            if received_bytes == size_bytes:
                return await self._send(last=True)
            if self._waiting_bytes >= PART_BYTES:
                await self._send(last=False)

    async def _send(self, *, last: bool) -> tuple[Committed, command_pb2.UploadOutcome]:
        packed, own_sha256 = await asyncio.to_thread(self._pack)
        if last and self._hash.digest() != self._header.sha256:
            drop = command_pb2.DropUpload(account_id=self._header.account_id)
            await self._propose(command_pb2.Command(drop_upload=drop))
            raise errors.ContentMismatchError("the upload has another sha256 than declared")
        part = command_pb2.UploadPart(
            account_id=self._header.account_id, offset_bytes=self._sent_bytes
        )
        part.body.size_bytes, part.body.stored_bytes = self._waiting_bytes, len(packed)
        part.body.sha256 = own_sha256
        answer = await self._propose(command_pb2.Command(upload_part=part), packed)
        self._sent_bytes += self._waiting_bytes
        self._waiting_bytes = 0
        return answer

    def _pack(self) -> tuple[bytes, bytes]:
        """The part as it is stored, and its own hash. Runs in another thread."""
        raw = b"".join(self._chunks)
        self._chunks.clear()
        self._hash.update(raw)
        known = bodies.dictionary_at(self._shards.cluster.feature_level)
        packed = bodies.pack(raw, bodies.suited(known, len(raw)))
        return packed, hashlib.sha256(raw).digest()

    async def _propose(
        self, command: command_pb2.Command, *packed: bytes
    ) -> tuple[Committed, command_pb2.UploadOutcome]:
        command.request_id = self._header.request_id
        call = Call(self._shards.now_s() + PART_DEADLINE_S)
        committed = await mutations.propose(self._shards, self._replica, command, call, packed)
        assert committed is not None
        reply = mutations.reply_of(committed)
        if reply.WhichOneof("outcome") == "refusal":
            raise convert.refusal(reply.refusal)
        return committed, reply.upload


def _check_form(header: blob_pb2.UploadHeader) -> None:
    validate.account_id(header.account_id)
    validate.request_id(header.request_id)
    write_levels.check(header.write_options)
    if header.write_options.if_in_state:
        raise validate.bad("write_options.if_in_state", "must be empty: an upload changes no state")
    if not header.size_bytes:
        raise validate.bad("size_bytes", "must not be 0")
    if len(header.sha256) != hashlib.sha256().digest_size:
        raise validate.bad("sha256", "32 bytes")
    if header.offset_bytes > header.size_bytes:
        raise validate.bad("offset_bytes", "at most size_bytes")
    if header.size_bytes > limits.UPLOAD_MAX_BYTES:
        raise errors.MessageTooLargeError(
            f"an upload of {header.size_bytes} bytes: at most {limits.UPLOAD_MAX_BYTES}",
            detail=error_pb2.MessageTooLarge(
                size_bytes=header.size_bytes,
                max_bytes=limits.MESSAGE_MAX_BYTES,
                upload_max_bytes=limits.UPLOAD_MAX_BYTES,
            ),
        )


async def _next_chunk(requests: AsyncIterator[blob_pb2.UploadBlobRequest]) -> bytes:
    try:
        async with asyncio.timeout(CHUNK_TIMEOUT_S):
            request = await anext(requests)
    except StopAsyncIteration:
        raise errors.ContentMismatchError(
            "the stream ended before all the bytes came; what came is kept for a resumption"
        ) from None
    except TimeoutError:
        raise errors.DeadlineExceededError("no chunk came for a while") from None
    if request.WhichOneof("part") != "chunk":
        raise validate.bad("chunk", "only the first message is a header")
    data = request.chunk.data
    if not 1 <= len(data) <= limits.CHUNK_BYTES:
        raise validate.bad("chunk.data", f"1 to {limits.CHUNK_BYTES} bytes")
    if google_crc32c.value(data) != request.chunk.crc32c:
        raise errors.ContentMismatchError("the checksum of a chunk does not match")
    return data

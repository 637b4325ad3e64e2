"""BlobService: the appended bytes, hash for hash, whole or a range of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import google_crc32c

from mailraft.node.mailstore import queries
from mailraft.v1 import blob_pb2
from mailraft.wire import bodies, limits, tokens

from . import blob_source, levels, validate
from .base import Call, Service, Shards
from .content import INLINE_MAX_BYTES
from .structure import Structures

PIECE_MAX_BYTES = 1024 * 1024


class Blobs:
    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def service(self) -> Service:
        return Service(
            blob_pb2.DESCRIPTOR.services_by_name["BlobService"],
            unary={
                "GetBlob": self.GetBlob,
                "GetStructure": Structures(self._shards).GetStructure,
            },
            streams={"DownloadBlob": self.DownloadBlob},
            later={
                "UploadBlob": "planned with messages above 3 MiB",
            },
        )

    async def GetBlob(
        self, request: blob_pb2.GetBlobRequest, call: Call
    ) -> blob_pb2.GetBlobResponse:
        at, row = await self._find(request, call)
        stored = blob_source.packed(self._shards, at.replica, row)
        response = blob_pb2.GetBlobResponse(
            state=at.state,
            served=at.served,
            blob_id=tokens.blob_id(row.index, row.ordinal),
            size_bytes=row.size_bytes,
            offset_bytes=request.offset_bytes,
            sha256=row.sha256,
        )
        length = min(request.length_bytes or PIECE_MAX_BYTES, PIECE_MAX_BYTES)
        frame = None
        if request.accept_zstd and not request.offset_bytes and length >= row.size_bytes:
            try:
                frame = bodies.zstd_payload(stored)  # its checksum is verified, its hash is not
            except bodies.BodyCorruptError as error:
                raise blob_source.corrupt(at.replica, row, str(error)) from None
        if frame is not None:
            zstd = response.content.zstd
            zstd.data, zstd.size_bytes, zstd.sha256 = frame, row.size_bytes, row.sha256
            return response
        raw = await _opened(at, row, stored)
        begin = request.offset_bytes
        response.content.raw = (
            raw if length >= len(raw) and not begin else raw[begin : begin + length]
        )
        return response

    async def DownloadBlob(
        self, request: blob_pb2.DownloadBlobRequest, call: Call
    ) -> AsyncIterator[blob_pb2.DownloadBlobResponse]:
        """Every byte is verified before the first one is sent."""
        at, row = await self._find(request, call)
        stored = blob_source.packed(self._shards, at.replica, row)
        raw = await _opened(at, row, stored)
        yield blob_pb2.DownloadBlobResponse(
            header=blob_pb2.DownloadHeader(
                state=at.state,
                served=at.served,
                blob_id=tokens.blob_id(row.index, row.ordinal),
                size_bytes=row.size_bytes,
                sha256=row.sha256,
                offset_bytes=request.offset_bytes,
            )
        )
        end = len(raw)
        if request.length_bytes:
            end = min(end, request.offset_bytes + request.length_bytes)
        for begin in range(request.offset_bytes, end, limits.CHUNK_BYTES):
            data = raw[begin : min(begin + limits.CHUNK_BYTES, end)]
            chunk = blob_pb2.BlobChunk(data=data, crc32c=google_crc32c.value(data))
            yield blob_pb2.DownloadBlobResponse(chunk=chunk)

    async def _find(
        self, request: blob_pb2.GetBlobRequest | blob_pb2.DownloadBlobRequest, call: Call
    ) -> tuple[levels.Reading, queries.BodyRow]:
        validate.account_id(request.account_id)
        at = await levels.read(self._shards, request.account_id, request.read_options, call)
        match request.WhichOneof("source"):
            case "blob_id":
                position = validate.blob_id(request.blob_id)
                return at, queries.body(at.view, request.account_id, *position)
            case "message_id":
                number = validate.message_id(request.message_id)
                return at, queries.body_of_message(at.view, request.account_id, number)
            case _:
                raise validate.bad("blob_id", "blob_id or message_id")


async def _opened(at: levels.Reading, row: queries.BodyRow, stored: bytes) -> bytes:
    if row.size_bytes <= INLINE_MAX_BYTES:
        return blob_source.raw(at.replica, row, stored)
    return await asyncio.to_thread(blob_source.raw, at.replica, row, stored)

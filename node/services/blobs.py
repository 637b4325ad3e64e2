"""BlobService: the appended bytes, hash for hash, whole or a range of them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import google_crc32c

from mailraft.node.mailstore import queries
from mailraft.v1 import blob_pb2
from mailraft.wire import bodies, limits, tokens

from . import blob_source, levels, validate
from .base import Call, Service, Shards
from .structure import Structures
from .uploads import Uploads

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
            uploads={"UploadBlob": Uploads(self._shards).UploadBlob},
        )

    async def GetBlob(
        self, request: blob_pb2.GetBlobRequest, call: Call
    ) -> blob_pb2.GetBlobResponse:
        at, row = await self._find(request, call)
        response = blob_pb2.GetBlobResponse(
            state=at.state,
            served=at.served,
            blob_id=tokens.blob_id(row.index, row.ordinal),
            size_bytes=row.size_bytes,
            offset_bytes=request.offset_bytes,
            sha256=row.sha256,
        )
        length = min(request.length_bytes or PIECE_MAX_BYTES, PIECE_MAX_BYTES)
        begin = request.offset_bytes
        if request.accept_zstd and not begin and length >= row.size_bytes and not row.parts:
            stored = blob_source.packed(self._shards, at.replica, row)
            try:
                # Its checksum is verified, its hash is not.
                found = bodies.zstd_payload(stored, request.accept_dictionary)
            except bodies.BodyCorruptError as error:
                raise blob_source.corrupt(at.replica, row, str(error)) from None
            if found is not None:
                zstd = response.content.zstd
                zstd.data, zstd.dictionary = found
                zstd.size_bytes, zstd.sha256 = row.size_bytes, row.sha256
                return response
        pieces = blob_source.pieces(self._shards, at.replica, row, begin, begin + length)
        response.content.raw = b"".join([piece async for piece in pieces])
        return response

    async def DownloadBlob(
        self, request: blob_pb2.DownloadBlobRequest, call: Call
    ) -> AsyncIterator[blob_pb2.DownloadBlobResponse]:
        """Every byte is verified before it is sent; of one body, before the first is."""
        at, row = await self._find(request, call)
        first, end = request.offset_bytes, row.size_bytes
        if request.length_bytes:
            end = min(end, first + request.length_bytes)
        pieces = blob_source.pieces(self._shards, at.replica, row, first, end)
        piece = await anext(pieces, b"")
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
        while piece:
            for begin in range(0, len(piece), limits.CHUNK_BYTES):
                data = piece[begin : begin + limits.CHUNK_BYTES]
                chunk = blob_pb2.BlobChunk(data=data, crc32c=google_crc32c.value(data))
                yield blob_pb2.DownloadBlobResponse(chunk=chunk)
            piece = await anext(pieces, b"")

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

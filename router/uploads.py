"""UploadBlob: a client stream to the leader; header first, then chunks as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from mailraft.router.attempts import Goal
from mailraft.router.failures import LostError
from mailraft.router.fleet import Fleet
from mailraft.router.methods import METHODS
from mailraft.router.pool import Node
from mailraft.router.tries import Tries
from mailraft.v1 import blob_pb2
from mailraft.wire import errors

# To find the leader; the stream itself has no deadline but its caller's.
UPLOAD_START_S = 10.0
# The next chunk must come, and be taken, within this.
CHUNK_TIMEOUT_S = 60.0
# Chunks that are sent again to another node by ourselves.
REPLAY_MAX_BYTES = 512 * 1024

_UPLOAD = METHODS["/mailraft.v1.BlobService/UploadBlob"]


async def upload(
    fleet: Fleet,
    goal: Goal,
    header: blob_pb2.UploadBlobRequest,
    chunks: AsyncIterator[blob_pb2.UploadBlobRequest],
    deadline_s: float | None,
) -> blob_pb2.UploadBlobResponse:
    """Carry one upload. After REPLAY_MAX_BYTES its caller resumes it, not we."""
    started_s = asyncio.get_running_loop().time()
    tries = Tries(fleet, goal, deadline_s or started_s + UPLOAD_START_S)
    taken = _Chunks(chunks)
    while True:
        place = tries.next()
        node = fleet.node(place)
        taken.rewind()
        try:
            timeout_s = None if deadline_s is None else tries.timeout_s()
            response = await _carry(fleet, node, header, taken, timeout_s)
        except LostError as error:
            if not taken.whole:
                raise errors.CommitUnknownError(f"the upload broke: {error.message}") from None
            await tries.failed(place, error)
        except errors.MailraftError as error:
            if taken.broken or not taken.whole:
                raise
            await tries.failed(place, error)
        else:
            tries.succeeded(place)
            return response


class _Chunks:
    """Chunks of the caller. The first are kept, for a node that says late that it does not lead."""

    def __init__(self, chunks: AsyncIterator[blob_pb2.UploadBlobRequest]) -> None:
        self._chunks = chunks
        self._kept: list[blob_pb2.UploadBlobRequest] = []
        self._kept_bytes = self._at = 0
        self.whole = True  # all that was taken can be sent again
        self.broken = False  # no more will come, and that is its caller's doing

    def rewind(self) -> None:
        self._at = 0

    async def next(self) -> blob_pb2.UploadBlobRequest | None:
        if self._at < len(self._kept):
            self._at += 1
            return self._kept[self._at - 1]
        try:
            chunk = await asyncio.wait_for(anext(self._chunks), CHUNK_TIMEOUT_S)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            self.broken = True
            raise errors.DeadlineExceededError("no chunk came for a while") from None
        except errors.MailraftError:
            self.broken = True
            raise
        self._kept_bytes += len(chunk.chunk.data)
        if self.whole and self._kept_bytes <= REPLAY_MAX_BYTES:
            self._kept.append(chunk)
            self._at += 1
        else:
            self.whole = False
            self._kept.clear()
            self._at = 0
        return chunk


async def _carry(
    fleet: Fleet,
    node: Node,
    header: blob_pb2.UploadBlobRequest,
    taken: _Chunks,
    timeout_s: float | None,
) -> blob_pb2.UploadBlobResponse:
    call = await node.open_stream(_UPLOAD, timeout_s, fleet.metadata())
    try:
        try:
            await call.write(header)
            while not call.done() and (chunk := await taken.next()) is not None:
                await asyncio.wait_for(call.write(chunk), CHUNK_TIMEOUT_S)
            if not call.done():
                await call.done_writing()
        except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
            pass  # the call has ended: awaiting it tells how
        except TimeoutError:
            raise LostError(f"{node.address} takes no more chunks") from None
        response = await call
    except grpc.aio.AioRpcError as error:
        raise node.failure(error) from None
    finally:
        call.cancel()
    assert isinstance(response, blob_pb2.UploadBlobResponse)
    return response

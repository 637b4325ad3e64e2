"""UploadBlob at a node: parts in the log, resumed by offset, a blob at the end, freed if unused."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import google_crc32c
import pytest
from tests.unit.test_housekeeper import keeper
from tests.unit.test_services_node import (
    ALICE,
    BOB,
    START_MS,
    Calls,
    delivery,
    item,
    refusal,
    request_id,
    running,
)

from mailbox_audit import audit
from mailraft.node.services import uploads
from mailraft.v1 import (
    account_pb2,
    blob_pb2,
    delivery_pb2,
    error_pb2,
    message_pb2,
    message_service_pb2,
)
from mailraft.wire import errors, limits

HEADER = b"From: Bob <bob@example.org>\r\nSubject: large\r\nMessage-ID: <9@example.org>\r\n\r\n"
LARGE = HEADER + hashlib.shake_128(b"large").digest(5 * 1024 * 1024)
DAY_MS = 24 * 3600 * 1000


def header(raw: bytes, account: str = ALICE, **fields: Any) -> blob_pb2.UploadHeader:
    """Of an upload of these bytes."""
    told: dict[str, Any] = {
        "account_id": account,
        "request_id": request_id(),
        "size_bytes": len(raw),
        "sha256": hashlib.sha256(raw).digest(),
        **fields,
    }
    return blob_pb2.UploadHeader(**told)


def chunks(raw: bytes, size_bytes: int = limits.CHUNK_BYTES) -> list[blob_pb2.BlobChunk]:
    """The bytes, each chunk with its checksum."""
    parts = [raw[at : at + size_bytes] for at in range(0, len(raw), size_bytes)]
    return [blob_pb2.BlobChunk(data=part, crc32c=google_crc32c.value(part)) for part in parts]


async def send(
    calls: Calls, first: blob_pb2.UploadHeader, rest: Sequence[blob_pb2.BlobChunk]
) -> blob_pb2.UploadBlobResponse:
    """One stream."""
    parts = [blob_pb2.UploadBlobRequest(chunk=chunk) for chunk in rest]
    return await _raw(calls, [blob_pb2.UploadBlobRequest(header=first), *parts])


async def _raw(
    calls: Calls, requests: Sequence[blob_pb2.UploadBlobRequest]
) -> blob_pb2.UploadBlobResponse:
    async def stream() -> AsyncIterator[blob_pb2.UploadBlobRequest]:
        for request in requests:
            yield request

    return await _stream(calls, stream())


async def _stream(
    calls: Calls, requests: AsyncIterator[blob_pb2.UploadBlobRequest]
) -> blob_pb2.UploadBlobResponse:
    call: Any = calls.channel.stream_unary(
        "/mailraft.v1.BlobService/UploadBlob",
        request_serializer=blob_pb2.UploadBlobRequest.SerializeToString,
        response_deserializer=blob_pb2.UploadBlobResponse.FromString,
    )
    response: blob_pb2.UploadBlobResponse = await call(requests)
    return response


async def read(calls: Calls, message_id: str, offset: int = 0, length: int = 0) -> bytes:
    """A range of a message, as DownloadBlob sends it."""
    request = blob_pb2.DownloadBlobRequest(
        account_id=ALICE, message_id=message_id, offset_bytes=offset, length_bytes=length
    )
    return b"".join([part.chunk.data async for part in calls.blobs.DownloadBlob(request)])


async def test_a_large_message_comes_back_byte_by_byte() -> None:
    """Uploaded, appended and delivered by its blob id, read whole and by ranges over its parts; no
    log entry is larger than a part, and nothing is copied.
    """
    async with running() as (node, calls):
        await calls.create(ALICE)
        done = await send(calls, header(LARGE), chunks(LARGE))
        shard = node.shard_of(ALICE)
        stored = dict(shard.bodies)
        assert all(len(each) <= 1024 * 1024 for each in stored.values())
        assert done.expires_time_ms == START_MS + limits.UPLOAD_WINDOW_MS
        appended = await calls.append(ALICE, delivery_pb2.AppendItem(blob_id=done.blob_id))
        asked = delivery(b"", ALICE)
        asked.ClearField("content")
        asked.recipients[0].blob_id = done.blob_id
        [[result]] = await calls.deliver(asked)
        assert not result.code, result
        message_id = appended.messages[0].message_id
        for each in (message_id, result.message_id):
            assert await calls.fetch(ALICE, each) == LARGE
        assert shard.bodies == stored
        for offset, length in ((0, 10), (600_000, 3_000_000), (len(LARGE) - 5, 0), (1_048_575, 2)):
            wanted = LARGE[offset : offset + length if length else None]
            assert await read(calls, message_id, offset, length) == wanted
            piece = await calls.blobs.GetBlob(
                blob_pb2.GetBlobRequest(
                    account_id=ALICE,
                    message_id=message_id,
                    offset_bytes=offset,
                    length_bytes=length,
                )
            )
            assert piece.content.raw == wanted[: 1024 * 1024]
        view = message_pb2.MESSAGE_VIEW_FULL
        get = message_service_pb2.GetMessageRequest(
            account_id=ALICE, message_id=message_id, view=view
        )
        told = (await calls.messages.GetMessage(get)).message
        assert (told.size_bytes, told.derived.envelope.subject) == (len(LARGE), "large")
        structure = await calls.blobs.GetStructure(
            blob_pb2.GetStructureRequest(account_id=ALICE, message_id=message_id)
        )
        assert structure.root.body_size_bytes == len(LARGE) - len(HEADER)
        audit(shard.view, shard.bodies)


async def test_an_upload_goes_on_where_it_broke() -> None:
    """Whole parts are kept; a stream that begins elsewhere is told where to go on, and the hash of
    the whole is proven over both.
    """
    async with running() as (node, calls):
        await calls.create(ALICE)
        first = header(LARGE)
        broken = await refusal(send(calls, first, chunks(LARGE)[:7]))
        assert isinstance(broken, errors.ContentMismatchError)
        told = await refusal(send(calls, first, chunks(LARGE)))
        assert isinstance(told.detail, error_pb2.UploadOffsetMismatch)
        offset = told.detail.offset_bytes
        assert offset == 6 * limits.CHUNK_BYTES
        first.offset_bytes = offset
        done = await send(calls, first, chunks(LARGE[offset:]))
        again = await send(calls, first, [])
        assert again.blob_id == done.blob_id
        other = header(LARGE + b"x", request_id=first.request_id)
        assert isinstance(await refusal(send(calls, other, [])), errors.RequestIdReusedError)
        audit(node.shard_of(ALICE).view, node.shard_of(ALICE).bodies)


async def test_what_is_damaged_on_the_way_is_not_stored() -> None:
    """A chunk's checksum, the hash of the whole, more bytes than declared, chunks of a bad size."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        bad = chunks(LARGE)
        bad[3].crc32c ^= 1
        mismatch = errors.ContentMismatchError
        assert isinstance(await refusal(send(calls, header(LARGE), bad)), mismatch)
        wrong = header(LARGE, sha256=b"x" * 32)
        assert isinstance(await refusal(send(calls, wrong, chunks(LARGE))), mismatch)
        assert isinstance(await refusal(send(calls, header(LARGE), chunks(LARGE + b"x"))), mismatch)
        large = chunks(LARGE, limits.CHUNK_BYTES + 1)
        assert isinstance(await refusal(send(calls, header(LARGE), large)), errors.BadFieldError)
        shard = node.shard_of(ALICE)
        late = keeper(node, START_MS + 3 * DAY_MS)
        while await late.turn():
            pass
        audit(shard.view, shard.bodies)


async def test_who_is_still_sending_is_told_why_it_is_refused() -> None:
    """What is on its way is taken first: a refusal in mid-write would look like a broken stream."""
    async with running() as (_, calls):
        await calls.create(ALICE)
        damaged = chunks(LARGE)
        damaged[0].crc32c ^= 1
        sent = 0

        async def stream() -> AsyncIterator[blob_pb2.UploadBlobRequest]:
            nonlocal sent
            yield blob_pb2.UploadBlobRequest(header=header(LARGE))
            for chunk in damaged:
                yield blob_pb2.UploadBlobRequest(chunk=chunk)
                sent += 1

        assert isinstance(await refusal(_stream(calls, stream())), errors.ContentMismatchError)
        assert sent == len(damaged)


@pytest.mark.parametrize("complete", [True, False])
async def test_an_upload_without_a_message_is_collected(complete: bool) -> None:
    """After a day it is gone, finished or not, with every body; its id means nothing then."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        first = header(LARGE)
        blob_id = ""
        if complete:
            blob_id = (await send(calls, first, chunks(LARGE))).blob_id
        else:
            await refusal(send(calls, first, chunks(LARGE)[:7]))
        shard = node.shard_of(ALICE)
        for _ in range(2):  # what is let go has its grace time
            node.time_ms += limits.UPLOAD_WINDOW_MS + 1
            while await keeper(node, node.time_ms).turn():
                pass
        assert not shard.bodies
        audit(shard.view, ())
        if complete:
            gone = await refusal(calls.append(ALICE, delivery_pb2.AppendItem(blob_id=blob_id)))
            assert isinstance(gone, errors.BlobNotFoundError)


async def test_a_blob_is_of_its_account_alone() -> None:
    """Who uploaded it may name it; for another account it is not there, whatever its hash."""
    async with running() as (_, calls):
        await calls.create(ALICE)
        await calls.create(BOB)
        done = await send(calls, header(LARGE), chunks(LARGE))
        stolen = await refusal(calls.append(BOB, delivery_pb2.AppendItem(blob_id=done.blob_id)))
        assert isinstance(stolen, errors.BlobNotFoundError)


async def test_uploads_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Size, quota, and how many run at once; a message in a call names the upload when refused."""
    async with running() as (_, calls):
        await calls.create(ALICE, max_bytes=1_000_000)
        quota = await refusal(send(calls, header(LARGE), chunks(LARGE)))
        assert isinstance(quota, errors.OverQuotaError)
        huge = header(LARGE, size_bytes=limits.UPLOAD_MAX_BYTES + 1)
        assert isinstance(await refusal(send(calls, huge, [])), errors.MessageTooLargeError)
        inline = await refusal(calls.append(ALICE, item(bytes(limits.MESSAGE_MAX_BYTES + 1))))
        assert isinstance(inline.detail, error_pb2.MessageTooLarge)
        assert inline.detail.upload_max_bytes == limits.UPLOAD_MAX_BYTES
        monkeypatch.setattr(uploads, "UPLOADS_AT_ONCE_MAX", 0)
        full = await refusal(send(calls, header(LARGE), []))
        assert isinstance(full, errors.OverloadedError)
        assert full.retry_after_ms


async def test_a_stream_begins_with_its_header() -> None:
    """And has only one."""
    async with running() as (_, calls):
        await calls.create(ALICE)
        twice = await refusal(_raw(calls, [blob_pb2.UploadBlobRequest(header=header(LARGE))] * 2))
        assert isinstance(twice, errors.BadFieldError)
        none = await refusal(_raw(calls, [blob_pb2.UploadBlobRequest()]))
        assert isinstance(none, errors.BadFieldError)


async def test_uploads_go_with_their_account() -> None:
    """Finished or not: when the account is deleted nothing of them stays behind for ever."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        await send(calls, header(LARGE), chunks(LARGE))
        await refusal(send(calls, header(LARGE), chunks(LARGE)[:7]))
        await calls.accounts.DeleteAccount(
            account_pb2.DeleteAccountRequest(account_id=ALICE, request_id=request_id())
        )
        shard = node.shard_of(ALICE)
        audit(shard.view, shard.bodies)
        node.time_ms += 2 * limits.UPLOAD_WINDOW_MS
        while await keeper(node, node.time_ms).turn():
            pass
        assert not shard.bodies
        audit(shard.view, ())

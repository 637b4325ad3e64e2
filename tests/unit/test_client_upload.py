"""Large messages from the client: by upload, by both clients alike."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator

import pytest
from tests.unit.test_client_fake import FakeStore, serving

from mailraft.client import AsyncClient, Client, NewMessage
from mailraft.wire import errors, limits

LARGE = hashlib.shake_128(b"large").digest(3 * limits.UPLOAD_ABOVE_BYTES)
CHUNKS = len(LARGE) // limits.CHUNK_BYTES


@pytest.fixture
async def store() -> AsyncIterator[FakeStore]:
    """A store with two accounts, that serves."""
    async with serving(FakeStore()) as found:
        async with AsyncClient(found.address, insecure=True) as mail:
            await mail.create_account("alice")
            await mail.create_account("bob")
        yield found


async def test_a_large_mail_is_uploaded_to_each_recipient(store: FakeStore) -> None:
    """No account may read what is another's, so each gets the bytes; who refuses is told apart."""
    async with AsyncClient(store.address, insecure=True) as mail:
        receipt = await mail.deliver(LARGE, to=["alice", "nobody", "bob"])
        assert list(receipt.failed) == ["nobody"]
        assert [each.account_id for each in receipt.recipients] == ["alice", "nobody", "bob"]
        for one in (receipt.recipients[0], receipt.recipients[2]):
            assert await mail.fetch_body(one.account_id, one.message_id) == LARGE
        delivery = store.asked("deliver")[0]
        assert not delivery.HasField("content")
        again = await mail.deliver(LARGE, to=["alice"], request_id=receipt.request_id)
        assert again.recipients[0].message_id == receipt.recipients[0].message_id


async def test_an_upload_goes_on_where_it_broke(store: FakeStore) -> None:
    """What the store has is not sent again, under one request id; a file is never held whole."""
    store.break_after_chunks = [5, 3, 0]
    async with AsyncClient(store.address, insecure=True) as mail:
        file = io.BytesIO(b"skipped" + LARGE)
        file.seek(7)
        blob_id = await mail.upload("alice", file)
    assert store.blobs["alice", blob_id] == LARGE
    asked = store.asked("UploadBlob")
    assert len({each.request_id for each in asked}) == 1
    offsets = [each.offset_bytes // limits.CHUNK_BYTES for each in asked]
    assert offsets[-1] == 8
    assert set(offsets) == {0, 5, 8}


async def test_the_blocking_client_uploads_too(store: FakeStore) -> None:
    """The same call, the same resumption."""
    store.break_after_chunks = [2]

    def run() -> str:
        with Client(store.address, insecure=True) as mail:
            return mail.upload("alice", LARGE)

    blob_id = await asyncio.to_thread(run)
    assert store.blobs["alice", blob_id] == LARGE


async def test_what_is_small_is_not_uploaded(store: FakeStore) -> None:
    """Up to 1 MiB a message travels in its call."""
    async with AsyncClient(store.address, insecure=True) as mail:
        await mail.deliver(LARGE[: limits.UPLOAD_ABOVE_BYTES], to=["alice"])
        assert not store.asked("UploadBlob")


async def test_an_upload_has_a_limit(store: FakeStore) -> None:
    """Above 50 MiB nothing is sent, and the error tells both limits."""
    async with AsyncClient(store.address, insecure=True) as mail:
        with pytest.raises(errors.MessageTooLargeError) as raised:
            await mail.append("alice", [NewMessage(bytes(limits.UPLOAD_MAX_BYTES + 1))])
        assert not store.asked("UploadBlob")
    detail = raised.value.detail
    assert isinstance(detail, errors.MessageTooLargeError.detail_type)
    assert detail.upload_max_bytes == limits.UPLOAD_MAX_BYTES

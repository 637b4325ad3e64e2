from typing import Any

import pytest
from tests.unit.test_services_node import (
    ALICE,
    BOB,
    ELSEWHERE,
    MAIL,
    Calls,
    account_in,
    delivery,
    item,
    pages,
    read_at,
    refusal,
    running,
)

from mailraft.node.services import messages
from mailraft.v1 import (
    account_pb2,
    blob_pb2,
    common_pb2,
    delivery_pb2,
    error_pb2,
    message_pb2,
    message_service_pb2,
    search_pb2,
)
from mailraft.wire import bodies, errors, metadata

Get = message_service_pb2.GetMessageRequest
List = message_service_pb2.ListMessagesRequest
BatchGet = message_service_pb2.BatchGetMessagesRequest
INBOX = common_pb2.MAILBOX_ROLE_INBOX
BIG = bytes(range(256)) * 3_000 + b"end"  # 768,003 bytes


async def filled(calls: Calls, count: int) -> list[str]:
    """An account with mails, in UID order; received times run against the UIDs."""
    await calls.create(ALICE)
    items = [item(MAIL + b"%d" % n, internal_time_ms=1_000 * (count - n)) for n in range(count)]
    done = await calls.append(ALICE, *items)
    return [each.message_id for each in done.messages]


@pytest.mark.parametrize(
    ("order", "ascending"),
    [
        (message_pb2.MESSAGE_ORDER_UNSPECIFIED, True),
        (message_pb2.MESSAGE_ORDER_UID_DESC, False),
        (message_pb2.MESSAGE_ORDER_RECEIVED_ASC, False),
        (message_pb2.MESSAGE_ORDER_RECEIVED_DESC, True),
    ],
)
async def test_a_mailbox_is_listed_page_by_page(
    order: message_pb2.MessageOrder.ValueType, ascending: bool
) -> None:
    """Every message once, in the order asked, while mail arrives between the pages."""
    async with running() as (_, calls):
        ids = await filled(calls, 7)
        request = List(account_id=ALICE, mailbox_role=INBOX, order=order, page_size=3)
        first = await calls.messages.ListMessages(request)
        assert (len(first.messages), first.total_messages, first.uid_validity > 0) == (3, 7, True)
        await calls.append(ALICE, item(MAIL, internal_time_ms=1))
        request.page_token = first.next_page_token
        rest = await pages(calls.messages.ListMessages, request)
        told = [each.id for page in [first, *rest] for each in page.messages]
        old = [each for each in told if each in ids]
        assert old == (ids if ascending else ids[::-1])
        assert len(told) == len(set(told))


async def test_a_listing_can_begin_anywhere() -> None:
    """start_uid and start_time_ms are inclusive, in the direction of the order."""
    async with running() as (_, calls):
        ids = await filled(calls, 5)  # UIDs 1..5, received at 5000..1000
        cases: tuple[tuple[Any, dict[str, Any], list[str]], ...] = (
            (message_pb2.MESSAGE_ORDER_UID_ASC, {"start_uid": 4}, ids[3:]),
            (message_pb2.MESSAGE_ORDER_UID_ASC, {"start_uid": 0}, ids),
            (message_pb2.MESSAGE_ORDER_UID_DESC, {"start_uid": 2}, ids[1::-1]),
            (message_pb2.MESSAGE_ORDER_UID_DESC, {"start_uid": 2**32 - 1}, ids[::-1]),
            (message_pb2.MESSAGE_ORDER_RECEIVED_ASC, {"start_time_ms": 4_000}, ids[1::-1]),
            (message_pb2.MESSAGE_ORDER_RECEIVED_DESC, {"start_time_ms": 2_000}, ids[3:]),
        )
        for order, start, expected in cases:
            request = List(account_id=ALICE, mailbox_role=INBOX, order=order, **start)
            page = await calls.messages.ListMessages(request)
            assert [each.id for each in page.messages] == expected, (order, start)


async def test_views_tell_more_and_more() -> None:
    """BASIC has no derived, ENVELOPE the header, FULL also the attachment guess."""
    raw = MAIL.replace(b"\r\n\r\n", b"\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n")
    async with running() as (_, calls):
        await calls.create(ALICE)
        [[stored]] = await calls.deliver(delivery(raw, ALICE))

        async def get(view: message_pb2.MessageView.ValueType) -> message_pb2.Message:
            request = Get(account_id=ALICE, message_id=stored.message_id, view=view)
            response = await calls.messages.GetMessage(request)
            assert response.state == stored.state
            assert isinstance(response.message, message_pb2.Message)
            return response.message

        basic = await get(message_pb2.MESSAGE_VIEW_UNSPECIFIED)
        assert not basic.HasField("derived")
        assert (basic.size_bytes, basic.blob_id) == (len(raw), stored.blob_id)
        assert basic.memberships[0].saved_time_ms
        envelope = (await get(message_pb2.MESSAGE_VIEW_ENVELOPE)).derived
        assert envelope.envelope.subject == "hello"
        assert not envelope.has_attachment
        assert (await get(message_pb2.MESSAGE_VIEW_FULL)).derived.has_attachment


async def test_many_messages_are_fetched_by_id_or_uid() -> None:
    """In the order asked, missing ones named; what does not fit a reply is continued."""
    async with running() as (_, calls):
        ids = await filled(calls, 5)
        asked = [ids[3], "Mzzzz", "nonsense", ids[0]]
        request = BatchGet(account_id=ALICE)
        request.messages.ids.ids.extend(asked)
        response = await calls.messages.BatchGetMessages(request)
        assert [each.id for each in response.messages] == [ids[3], ids[0]]
        assert list(response.not_found_ids) == ["Mzzzz", "nonsense"]
        listed = await calls.messages.ListMessages(List(account_id=ALICE, mailbox_role=INBOX))
        by_uid = BatchGet(account_id=ALICE)
        by_uid.messages.uid_set.mailbox_id = listed.mailbox_id
        by_uid.messages.uid_set.uid_validity = listed.uid_validity
        by_uid.messages.uid_set.ranges.extend([2, 3, 5, 2**32 - 1])
        response = await calls.messages.BatchGetMessages(by_uid)
        assert [each.id for each in response.messages] == [ids[1], ids[2], ids[4]]


async def test_replies_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page ends early where its reply would be too large, and the next one goes on from there."""
    async with running() as (_, calls):
        ids = await filled(calls, 9)
        monkeypatch.setattr(messages, "REPLY_MAX_BYTES", 150)
        by_id = BatchGet(account_id=ALICE)
        by_id.messages.ids.ids.extend(ids)
        listed = await calls.messages.ListMessages(List(account_id=ALICE, mailbox_role=INBOX))
        by_uid = BatchGet(account_id=ALICE)
        by_uid.messages.uid_set.mailbox_id = listed.mailbox_id
        by_uid.messages.uid_set.uid_validity = listed.uid_validity
        by_uid.messages.uid_set.ranges.extend([1, 4, 6, 9])
        for call, request, expected in (
            (calls.messages.ListMessages, List(account_id=ALICE, mailbox_role=INBOX), ids),
            (calls.messages.BatchGetMessages, by_id, ids),
            (calls.messages.BatchGetMessages, by_uid, ids[:4] + ids[5:]),
        ):
            found = await pages(call, request)
            assert len(found) > 2
            assert [each.id for page in found for each in page.messages] == expected


async def test_uids_are_listed_as_ranges() -> None:
    """Pairs, continued by a token, with the UIDNEXT of the same state."""
    async with running() as (_, calls):
        await filled(calls, 4)
        request = message_service_pb2.ListUidsRequest(account_id=ALICE, mailbox_role=INBOX)
        response = await calls.messages.ListUids(request)
        assert list(response.ranges) == [1, 4]
        assert (response.uid_next, response.next_page_token) == (5, "")


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 0),
        (0, 1),
        (5, 10),
        (262_143, 2),
        (700_000, 0),
        (700_000, 10**9),
        (768_003, 5),
        (10**12, 1),
    ],
)
async def test_a_range_is_a_slice(offset: int, length: int) -> None:
    """Whatever range is asked for, in one call or as a stream of checked chunks."""
    expected = BIG[offset:][: length or None]
    async with running() as (_, calls):
        await calls.create(ALICE)
        [[stored]] = await calls.deliver(delivery(BIG, ALICE))
        got = await calls.blobs.GetBlob(
            blob_pb2.GetBlobRequest(
                account_id=ALICE,
                blob_id=stored.blob_id,
                offset_bytes=offset,
                length_bytes=min(length, 2**31),
            )
        )
        assert (got.content.raw, got.size_bytes) == (expected, len(BIG))
        stream = calls.blobs.DownloadBlob(
            blob_pb2.DownloadBlobRequest(
                account_id=ALICE,
                message_id=stored.message_id,
                offset_bytes=offset,
                length_bytes=length,
            )
        )
        parts = [part async for part in stream]
        assert parts[0].header.size_bytes == len(BIG)
        assert all(len(part.chunk.data) <= 256 * 1024 for part in parts[1:])
        assert b"".join(part.chunk.data for part in parts[1:]) == expected


async def test_compressed_bytes_are_sent_as_they_lie() -> None:
    """With accept_zstd the whole blob comes as the frame that is stored, if the caller has the
    dictionary that it was made with.
    """
    async with running() as (_, calls):
        await calls.create(ALICE)
        for raw, dictionary in ((MAIL * 10, 1), (MAIL * 1_000, 0)):
            [[stored]] = await calls.deliver(delivery(raw, ALICE))
            request = blob_pb2.GetBlobRequest(account_id=ALICE, blob_id=stored.blob_id)
            assert (await calls.blobs.GetBlob(request)).content.raw == raw
            request.accept_zstd = True
            content = (await calls.blobs.GetBlob(request)).content
            assert content.WhichOneof("encoding") == ("raw" if dictionary else "zstd")
            request.accept_dictionary = 7  # of a newer client
            zstd = (await calls.blobs.GetBlob(request)).content.zstd
            assert zstd.dictionary == dictionary
            assert bodies.open_zstd(zstd.data, zstd.size_bytes, dictionary) == raw
            request.offset_bytes = 1
            assert (await calls.blobs.GetBlob(request)).content.raw == raw[1:]


@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
async def test_damaged_bytes_are_never_handed_out(damage: str) -> None:
    """BLOB_CORRUPT names the blob and the replica, before a byte is sent."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        [[stored]] = await calls.deliver(delivery(MAIL * 100, ALICE))
        shard = node.shard_of(ALICE)
        [(position, packed)] = shard.bodies.items()
        shard.bodies[position] = packed[:-1] + bytes((packed[-1] ^ 1,))
        if damage == "cut":
            shard.bodies[position] = packed[:-1]
        elif damage == "gone":
            del shard.bodies[position]
        for accept in (False, True):
            request = blob_pb2.GetBlobRequest(
                account_id=ALICE, blob_id=stored.blob_id, accept_zstd=accept
            )
            error = await refusal(calls.blobs.GetBlob(request))
            assert isinstance(error.detail, error_pb2.BlobCorrupt)
            assert error.detail.replica_ids == [shard.replica.replica]
        download = blob_pb2.DownloadBlobRequest(account_id=ALICE, blob_id=stored.blob_id)
        error = await refusal(calls.blobs.DownloadBlob(download).read())
        assert isinstance(error, errors.BlobCorruptError)


async def test_no_call_returns_bytes_of_another_account() -> None:
    """A blob_id or message_id opens nothing elsewhere: it is as if there were none."""
    async with running() as (_, calls):
        other = account_in(0, "other")
        await calls.create(ALICE)
        await calls.create(other)
        [[stored]] = await calls.deliver(delivery(MAIL, ALICE))
        by_blob = blob_pb2.GetBlobRequest(account_id=other, blob_id=stored.blob_id)
        assert isinstance(await refusal(calls.blobs.GetBlob(by_blob)), errors.BlobNotFoundError)
        by_id = blob_pb2.GetBlobRequest(account_id=other, message_id=stored.message_id)
        assert isinstance(await refusal(calls.blobs.GetBlob(by_id)), errors.MessageNotFoundError)


async def test_reads_that_are_refused() -> None:
    """Each with its own reason and, where it is a field's fault, the field."""
    async with running() as (_, calls):
        [message, *_] = await filled(calls, 3)
        listed = await calls.messages.ListMessages(
            List(account_id=ALICE, mailbox_role=INBOX, page_size=1)
        )
        token = listed.next_page_token
        listing = calls.messages.ListMessages
        get, batch_get = calls.messages.GetMessage, calls.messages.BatchGetMessages
        by_uid = BatchGet(account_id=ALICE)
        by_uid.messages.uid_set.mailbox_id = listed.mailbox_id
        by_uid.messages.uid_set.uid_validity = listed.uid_validity + 1
        by_uid.messages.uid_set.ranges.extend([1, 1])
        unordered = BatchGet(account_id=ALICE)
        unordered.messages.uid_set.uid_validity = 1
        unordered.messages.uid_set.ranges.extend([5, 4])
        twice = BatchGet(account_id=ALICE)
        twice.messages.ids.ids.extend([message, message])
        descending = message_pb2.MESSAGE_ORDER_UID_DESC
        level = read_at(common_pb2.CONSISTENCY_LOCAL)
        for call, request, kind in (
            (get, Get(account_id=ALICE), errors.MessageNotFoundError),
            (get, Get(account_id=ALICE, message_id="M0"), errors.MessageNotFoundError),
            (
                get,
                Get(account_id=account_in(1, "x"), message_id=message),
                errors.AccountNotFoundError,
            ),
            (get, Get(account_id=ELSEWHERE, message_id=message), errors.StaleRouteError),
            (get, Get(account_id="", message_id=message), errors.BadFieldError),
            (get, Get(account_id="ä" * 128, message_id=message), errors.BadFieldError),
            (get, Get(account_id=ALICE, message_id=message, view=9), errors.BadFieldError),  # type: ignore[arg-type]
            (listing, List(account_id=ALICE), errors.BadFieldError),
            (listing, List(account_id=ALICE, mailbox_id="Fzz"), errors.MailboxNotFoundError),
            (listing, List(account_id=ALICE, mailbox_role=99), errors.BadFieldError),  # type: ignore[arg-type]
            (listing, List(account_id=ALICE, mailbox_role=INBOX, order=99), errors.BadFieldError),  # type: ignore[arg-type]
            (
                listing,
                List(account_id=ALICE, mailbox_role=INBOX, uid_validity=1),
                errors.UidValidityMismatchError,
            ),
            (
                listing,
                List(account_id=ALICE, mailbox_role=INBOX, page_token="?"),
                errors.BadPageTokenError,
            ),
            (
                listing,
                List(account_id=ALICE, mailbox_role=INBOX, page_token=token, order=descending),
                errors.BadPageTokenError,
            ),
            (
                listing,
                List(account_id=BOB, mailbox_role=INBOX, page_token=token),
                errors.AccountNotFoundError,
            ),
            (
                listing,
                List(account_id=ALICE, mailbox_role=INBOX, start_time_ms=1),
                errors.BadFieldError,
            ),
            (
                listing,
                List(account_id=ALICE, mailbox_role=INBOX, filter=search_pb2.MessageFilter()),
                errors.BadFieldError,
            ),
            (
                listing,
                List(
                    account_id=ALICE,
                    mailbox_role=INBOX,
                    filter=search_pb2.MessageFilter(has_attachment=True),
                ),
                errors.FilterUnsupportedError,
            ),
            (batch_get, BatchGet(account_id=ALICE), errors.BadFieldError),
            (batch_get, by_uid, errors.UidValidityMismatchError),
            (batch_get, unordered, errors.BadFieldError),
            (batch_get, twice, errors.BadFieldError),
            (
                calls.blobs.GetBlob,
                blob_pb2.GetBlobRequest(account_id=ALICE, read_options=level),
                errors.BadFieldError,
            ),
        ):
            error = await refusal(call(request))
            assert isinstance(error, kind), (request, error)


async def test_metadata_must_name_the_account() -> None:
    """x-mailraft-account, on which a proxy decided, and field 1 are the same account."""
    async with running() as (_, calls):
        name = account_in(0, "a%ü ")
        await calls.create(name)
        request = account_pb2.GetAccountRequest(account_id=name)
        right = ((metadata.ACCOUNT_KEY, metadata.encode_account(name)),)
        response = await calls.accounts.GetAccount(request, metadata=right)
        assert response.account.account_id == name
        for wrong in ("bob", "%ff", ""):
            call = calls.accounts.GetAccount(request, metadata=((metadata.ACCOUNT_KEY, wrong),))
            assert metadata.ACCOUNT_KEY in (await refusal(call)).fields
        request_of_many = delivery_pb2.DeliverMessagesRequest(deliveries=[delivery(MAIL, name)])
        many = calls.messages.DeliverMessages(request_of_many, metadata=right)
        assert isinstance(await refusal(many), errors.BadFieldError)

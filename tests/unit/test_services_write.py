import hashlib
import logging

import pytest
import zstandard
from tests.unit.test_services_node import (
    ALICE,
    BOB,
    ELSEWHERE,
    MAIL,
    START_MS,
    Calls,
    FakeNode,
    account_in,
    delivery,
    item,
    refusal,
    request_id,
    running,
)

from mailraft.client.content import Packing, encode
from mailraft.node.services import content
from mailraft.v1 import (
    account_pb2,
    common_pb2,
    delivery_pb2,
    error_pb2,
    mailbox_pb2,
    message_pb2,
)
from mailraft.wire import bodies, errors, limits, tokens


def zstd(raw: bytes, size_bytes: int | None = None, sha256: bytes = b"") -> delivery_pb2.Content:
    """A compressed content, that says of itself what is true unless told otherwise."""
    return delivery_pb2.Content(
        zstd=delivery_pb2.Zstd(
            data=zstandard.compress(raw),
            size_bytes=len(raw) if size_bytes is None else size_bytes,
            sha256=sha256 or hashlib.sha256(raw).digest(),
        )
    )


# ---- what goes right


@pytest.mark.parametrize(
    "raw",
    [
        MAIL,
        b"\x00\x01\xff" * 5_000,
        b"Subject: caf\xe9\n\n\xe9",
        b"x",
        b"a\r\nb\nc\rd",
        bytes(range(256)),
    ],
    ids=["mail", "binary", "8-bit", "one byte", "mixed line ends", "every byte"],
)
async def test_a_mail_comes_back_as_it_was_sent(raw: bytes) -> None:
    """Fetched bytes are the delivered bytes, compressed on the way or not."""
    async with running() as (_, calls):
        await calls.create(ALICE)
        compressed = delivery(b"", ALICE)
        compressed.content.CopyFrom(zstd(raw))
        for sent in (delivery(raw, ALICE), compressed):
            [[result]] = await calls.deliver(sent)
            assert result.code == 0, result.message
            assert result.served.level_met == common_pb2.LEVEL_MET_YES
            assert result.memberships[0].uid
            assert await calls.fetch(ALICE, result.message_id) == raw


@pytest.mark.parametrize("enabled", [1, 2])
@pytest.mark.parametrize("sent", [None, bodies.NO_DICTIONARY, bodies.MAIL_DICTIONARY])
async def test_bodies_are_stored_with_what_every_node_can_open(
    enabled: int, sent: int | None
) -> None:
    """Below level 2 without the dictionary and from then on with it, whatever the caller used."""
    async with running() as (node, calls):
        node.cluster.feature_level = enabled
        await calls.create(ALICE)
        one = delivery(MAIL * 10, ALICE)
        if sent is not None:
            packing = Packing(True, sent)
            one.content.CopyFrom(encode(MAIL * 10, packing))
        [[result]] = await calls.deliver(one)
        assert await calls.fetch(ALICE, result.message_id) == MAIL * 10
        [packed] = node.shard_of(ALICE).bodies.values()
        assert bodies.unpack(packed, len(MAIL * 10)) == MAIL * 10
        found = bodies.zstd_payload(packed, bodies.MAIL_DICTIONARY)
        assert found is not None
        assert found[1] == (bodies.MAIL_DICTIONARY if enabled == 2 else bodies.NO_DICTIONARY)


async def test_a_dictionary_that_is_not_known_is_refused() -> None:
    """BAD_FIELD that names it, before anything is opened."""
    async with running() as (_, calls):
        await calls.create(ALICE)
        one = delivery(b"", ALICE)
        one.content.CopyFrom(zstd(MAIL))
        one.content.zstd.dictionary = 2
        [[result]] = await calls.deliver(one)
        assert result.reason == error_pb2.ERROR_REASON_BAD_FIELD
        assert "content.zstd.dictionary" in result.message


async def test_recipients_of_several_shards_answer_for_themselves() -> None:
    """One that fails leaves the others delivered, each with its own reason."""
    async with running() as (_, calls):
        await calls.create(ALICE)
        await calls.create(BOB, max_bytes=10)
        missing = account_in(0, "nobody")
        [results] = await calls.deliver(delivery(MAIL, ALICE, BOB, missing, ELSEWHERE))
        assert [each.reason for each in results] == [
            error_pb2.ERROR_REASON_UNSPECIFIED,
            error_pb2.ERROR_REASON_OVER_QUOTA,
            error_pb2.ERROR_REASON_ACCOUNT_NOT_FOUND,
            error_pb2.ERROR_REASON_STALE_ROUTE,
        ]
        assert [each.code for each in results] == [0, 8, 5, 14]
        assert not results[1].message_id
        assert await calls.fetch(ALICE, results[0].message_id) == MAIL


async def test_deliveries_of_one_call_share_log_entries() -> None:
    """64 deliveries to one shard are one entry of its log: never one round a message."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        before = node.shard_of(ALICE).entries
        results = await calls.deliver(*(delivery(MAIL, ALICE) for _ in range(64)))
        assert all(result.code == 0 for [result] in results)
        assert node.shard_of(ALICE).entries == before + 1


async def test_a_retry_answers_with_the_same_uid() -> None:
    """Sent again under its request_id a delivery does nothing, in whatever company it travels."""
    async with running() as (_, calls):
        await calls.create(ALICE)
        await calls.create(BOB)
        request = request_id()
        [[first]] = await calls.deliver(delivery(MAIL, ALICE, request=request))
        again = delivery(b"", ALICE, BOB, request=request)
        again.content.CopyFrom(zstd(MAIL))
        [[second, third]] = await calls.deliver(again)
        assert second.message_id == first.message_id
        assert second.memberships == first.memberships
        assert third.code == 0


async def test_an_append_is_all_or_nothing() -> None:
    """UIDs of one append rise in its order; one bad message leaves none of them behind."""
    async with running() as (node, calls):
        state = (await calls.create(ALICE)).state
        done = await calls.append(
            ALICE,
            item(MAIL, keywords=["$Seen", "$seen"]),
            item(MAIL + b"2", internal_time_ms=-5),
            write_options=common_pb2.WriteOptions(if_in_state=state),
        )
        assert [each.memberships[0].uid for each in done.messages] == [1, 2]
        rows = node.rows()
        bad_target = item(MAIL, targets=[message_pb2.MailboxTarget(mailbox_id="Fzz")])
        error = await refusal(calls.append(ALICE, item(MAIL), bad_target))
        assert isinstance(error, errors.MailboxNotFoundError)
        error = await refusal(
            calls.append(
                ALICE, item(MAIL), write_options=common_pb2.WriteOptions(if_in_state=state)
            )
        )
        assert isinstance(error, errors.StateMismatchError)
        assert isinstance(error.detail, error_pb2.StateMismatch)
        assert error.detail.state == done.state
        assert node.rows() == rows


async def test_bytes_that_the_account_has_can_be_appended_by_blob_id() -> None:
    """No bytes travel, none are stored again, and only the own account's blobs count."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        await calls.create(BOB)
        other = account_in(0, "other")
        await calls.create(other)
        [[stored]] = await calls.deliver(delivery(MAIL, ALICE))
        bodies = len(node.shard_of(ALICE).bodies)
        by_blob = delivery_pb2.AppendItem(blob_id=stored.blob_id)
        done = await calls.append(ALICE, by_blob)
        assert await calls.fetch(ALICE, done.messages[0].message_id) == MAIL
        recipient = delivery_pb2.Recipient(account_id=ALICE, blob_id=stored.blob_id)
        named = delivery_pb2.Delivery(request_id=request_id(), recipients=[recipient])
        [[result]] = await calls.deliver(named)
        assert await calls.fetch(ALICE, result.message_id) == MAIL
        assert len(node.shard_of(ALICE).bodies) == bodies
        for account_id in (BOB, other):
            rows = node.rows()
            assert isinstance(
                await refusal(calls.append(account_id, by_blob)), errors.BlobNotFoundError
            )
            recipient.account_id = account_id
            [[result]] = await calls.deliver(
                delivery_pb2.Delivery(request_id=request_id(), recipients=[recipient])
            )
            assert result.reason == error_pb2.ERROR_REASON_BLOB_NOT_FOUND
            assert node.rows() == rows


async def test_bytes_by_blob_id_count_as_if_they_had_travelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A call of a few bytes may not have a node read more mail at once than a call could bring."""
    async with running() as (_, calls):
        await calls.create(ALICE)
        [[stored]] = await calls.deliver(delivery(MAIL, ALICE))
        monkeypatch.setattr(content, "CONTENT_PER_CALL_MAX_BYTES", 2 * len(MAIL) + 1)
        recipient = delivery_pb2.Recipient(account_id=ALICE, blob_id=stored.blob_id)
        results = await calls.deliver(
            *(
                delivery_pb2.Delivery(request_id=request_id(), recipients=[recipient])
                for _ in range(4)
            )
        )
        reasons = [each.reason for [each] in results]
        assert reasons.count(error_pb2.ERROR_REASON_OVERLOADED) == 2
        assert sum(bool(each.message_id) for [each] in results) == 2


async def test_mailboxes_and_quota_can_be_set() -> None:
    """Creating is remembered by its request_id, an etag guards a change."""
    async with running() as (_, calls):
        created = await calls.create(ALICE)
        request = mailbox_pb2.CreateMailboxRequest(
            account_id=ALICE,
            request_id=request_id(),
            mailbox=mailbox_pb2.Mailbox(name="Söme", role=common_pb2.MAILBOX_ROLE_JUNK),
        )
        mailbox = (await calls.mailboxes.CreateMailbox(request)).mailbox
        assert (await calls.mailboxes.CreateMailbox(request)).mailbox == mailbox
        [[result]] = await calls.deliver(
            delivery_pb2.Delivery(
                request_id=request_id(),
                content=delivery_pb2.Content(raw=MAIL),
                recipients=[
                    delivery_pb2.Recipient(
                        account_id=ALICE,
                        targets=[
                            message_pb2.MailboxTarget(role=common_pb2.MAILBOX_ROLE_JUNK),
                            message_pb2.MailboxTarget(mailbox_id=created.inbox_id),
                        ],
                    )
                ],
            )
        )
        assert [each.mailbox_id for each in result.memberships] == [created.inbox_id, mailbox.id]
        update = account_pb2.UpdateAccountRequest(
            account_id=ALICE, request_id=request_id(), account=created.account
        )
        update.account.quota.max_messages = 1
        update.update_mask.paths.append("quota.max_messages")
        updated = await calls.accounts.UpdateAccount(update)
        assert updated.account.quota.max_messages == 1
        assert updated.account.usage.messages == 1
        update.request_id = request_id()
        error = await refusal(calls.accounts.UpdateAccount(update))
        assert isinstance(error.detail, error_pb2.EtagMismatch)
        assert error.detail.etag == updated.account.etag


# ---- what is refused, and stores nothing


async def test_deliveries_that_are_refused() -> None:
    """Each bad delivery gets its reason, and the good one beside it is delivered."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        size = len(MAIL)
        bomb = b"\x00" * 3_000_000
        unpacked = delivery_pb2.Content(zstd=delivery_pb2.Zstd(data=MAIL, size_bytes=size))
        unpacked.zstd.sha256 = hashlib.sha256(MAIL).digest()
        bad_keyword = delivery(MAIL, ALICE)
        bad_keyword.recipients[0].keywords.append("not a keyword")
        cases = {
            "CONTENT_MISMATCH": [
                zstd(bomb, size_bytes=100),
                zstd(MAIL, sha256=b"\0" * 32),
                zstd(MAIL, size_bytes=size + 1),
                unpacked,
            ],
            "MESSAGE_TOO_LARGE": [
                delivery_pb2.Content(raw=b"x" * (limits.MESSAGE_MAX_BYTES + 1)),
                zstd(MAIL, size_bytes=limits.MESSAGE_MAX_BYTES + 1),
            ],
            "BAD_FIELD": [
                delivery_pb2.Content(raw=b""),
                delivery_pb2.Content(),
                zstd(MAIL, sha256=b"short"),
                zstd(b""),
            ],
        }
        for reason, contents in cases.items():
            for bad in contents:
                sent = delivery(b"", ALICE)
                sent.content.CopyFrom(bad)
                await expect(node, calls, sent, reason)
        await expect(node, calls, bad_keyword, "BAD_FIELD")
        await expect(node, calls, delivery(MAIL, ALICE, ALICE), "BAD_FIELD")
        await expect(node, calls, delivery(MAIL, ALICE, request=b"0" * 16), "BAD_FIELD")
        future = request_id(START_MS + 11 * 60_000)
        await expect(node, calls, delivery(MAIL, ALICE, request=future), "BAD_FIELD")
        old = request_id(START_MS - 8 * 24 * 3_600_000)
        await expect(node, calls, delivery(MAIL, ALICE, request=old), "REQUEST_ID_TOO_OLD")
        many = delivery(MAIL, *(f"{number}" for number in range(1_001)))
        await expect(node, calls, many, "BAD_FIELD")


async def expect(node: FakeNode, calls: Calls, bad: delivery_pb2.Delivery, reason: str) -> None:
    """Every recipient gets the reason, nothing is stored, and a good delivery beside it is."""
    rows = node.rows()
    [results] = await calls.deliver(bad)
    assert {each.reason for each in results} == {
        error_pb2.ErrorReason.Value("ERROR_REASON_" + reason)
    }, results[0]
    assert node.rows() == rows
    if bad.ByteSize() < 100_000:
        [_, [good]] = await calls.deliver(bad, delivery(MAIL, ALICE))
        assert good.code == 0


async def test_a_delivery_call_of_bad_form_is_refused_as_a_whole() -> None:
    """Ten thousand recipients, no delivery at all, an option that is of one account."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        rows = node.rows()
        requests = [
            delivery_pb2.DeliverMessagesRequest(),
            delivery_pb2.DeliverMessagesRequest(
                deliveries=[delivery(MAIL, *(f"{number}" for number in range(10_000)))]
            ),
            delivery_pb2.DeliverMessagesRequest(deliveries=[delivery(b"x", ALICE)] * 257),
            delivery_pb2.DeliverMessagesRequest(
                deliveries=[delivery(MAIL, ALICE)],
                write_options=common_pb2.WriteOptions(if_in_state="x"),
            ),
        ]
        for request in requests:
            error = await refusal(calls.messages.DeliverMessages(request))
            assert isinstance(error, errors.BadFieldError)
            assert error.fields
        assert node.rows() == rows


async def test_appends_that_are_refused() -> None:
    """Each answers with a status that names the field, and nothing is stored."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        rows = node.rows()
        large = await refusal(calls.append(ALICE, item(b"x" * (limits.MESSAGE_MAX_BYTES + 1))))
        assert isinstance(large.detail, error_pb2.MessageTooLarge)
        assert large.detail.max_bytes == limits.MESSAGE_MAX_BYTES
        for kind, field, *items in (
            (errors.BadFieldError, "messages"),
            (errors.BadFieldError, "messages[1].content", item(MAIL), item(b"")),
            (errors.BadFieldError, "messages[0]", delivery_pb2.AppendItem()),
            (errors.BadFieldError, "messages[0].keywords", item(MAIL, keywords=["\\Seen"])),
            (
                errors.BadFieldError,
                "messages[0].internal_time_ms",
                item(MAIL, internal_time_ms=1 << 62),
            ),
            (errors.LimitReachedError, "", item(MAIL, keywords=[f"k{n}" for n in range(129)])),
            (errors.BlobNotFoundError, "", delivery_pb2.AppendItem(blob_id="not a blob")),
            (errors.BlobNotFoundError, "", delivery_pb2.AppendItem(blob_id=tokens.blob_id(99, 0))),
        ):
            error = await refusal(calls.append(ALICE, *items))
            assert isinstance(error, kind), (field, error)
            assert not field or field in error.fields
        assert node.rows() == rows
        unknown = await refusal(calls.append(account_in(0, "nobody"), item(MAIL)))
        assert isinstance(unknown, errors.AccountNotFoundError)


async def test_a_request_id_stands_for_one_content() -> None:
    """With other content, another mailbox or another kind of call it is REQUEST_ID_REUSED."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        request = request_id()
        [[first]] = await calls.deliver(delivery(MAIL, ALICE, request=request))
        assert first.code == 0
        rows = node.rows()
        other_keyword = delivery(MAIL, ALICE, request=request)
        other_keyword.recipients[0].keywords.append("$flagged")
        other_time = delivery(MAIL, ALICE, request=request)
        other_time.internal_time_ms = 5
        for sent in (delivery(MAIL + b"!", ALICE, request=request), other_keyword, other_time):
            [[result]] = await calls.deliver(sent)
            assert result.reason == error_pb2.ERROR_REASON_REQUEST_ID_REUSED
        append = delivery_pb2.AppendMessagesRequest(
            account_id=ALICE, request_id=request, messages=[item(MAIL)]
        )
        error = await refusal(calls.messages.AppendMessages(append))
        assert isinstance(error, errors.RequestIdReusedError)
        assert node.rows() == rows


async def test_levels_that_cannot_be_kept_are_refused() -> None:
    """One that is not allowed is LEVEL_NOT_ALLOWED, an unknown one BAD_FIELD."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        rows = node.rows()
        for ack, kind in (
            (common_pb2.ACK_LEVEL_ACCEPTED, errors.LevelNotAllowedError),
            (77, errors.BadFieldError),
        ):
            options = common_pb2.WriteOptions(ack=ack)  # type: ignore[arg-type]
            error = await refusal(calls.append(ALICE, item(MAIL), write_options=options))
            assert isinstance(error, kind)
        for bad in (common_pb2.WriteOptions(replicas=2), common_pb2.WriteOptions(if_in_state="?")):
            error = await refusal(calls.append(ALICE, item(MAIL), write_options=bad))
            assert isinstance(error, errors.BadFieldError)
        assert node.rows() == rows


async def test_a_follower_names_the_leader() -> None:
    """A write at a follower is NOT_LEADER for the call, or for each recipient of its shard."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        await calls.create(BOB)
        node.shard_of(ALICE).follow(8 << 32 | 1)
        [[alice, bob]] = await calls.deliver(delivery(MAIL, ALICE, BOB))
        assert alice.reason == error_pb2.ERROR_REASON_NOT_LEADER
        assert bob.code == 0
        error = await refusal(calls.append(ALICE, item(MAIL)))
        assert isinstance(error.detail, error_pb2.NotLeader)
        assert error.detail.leader_node_id == 8


async def test_a_commit_that_is_not_seen_in_time_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Proposed, not answered in time: COMMIT_UNKNOWN names the request_id to ask again with."""
    monkeypatch.setattr(limits, "DEADLINE_MAX_MS", 100)
    async with running() as (node, calls):
        await calls.create(ALICE)
        shard = node.shard_of(ALICE)
        shard.stalled = True
        request = delivery_pb2.AppendMessagesRequest(
            account_id=ALICE, request_id=request_id(), messages=[item(MAIL)]
        )
        error = await refusal(calls.messages.AppendMessages(request))
        assert isinstance(error, errors.CommitUnknownError)
        assert isinstance(error.detail, error_pb2.CommitUnknown)
        assert error.detail.request_id == request.request_id
        [[result]] = await calls.deliver(delivery(MAIL, ALICE))
        assert result.reason == error_pb2.ERROR_REASON_COMMIT_UNKNOWN
        assert result.retry_after_ms


async def test_a_bug_is_answered_with_an_incident(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has where it happened under the caller's number, and nothing of the mail."""

    def broken(*_: object) -> None:
        raise KeyError(MAIL)

    monkeypatch.setattr(content, "_prepare", broken)
    async with running() as (_, calls):
        await calls.create(ALICE)
        with caplog.at_level(logging.ERROR):
            error = await refusal(calls.append(ALICE, item(MAIL)))
        assert isinstance(error, errors.InternalError)
        assert error.metadata["incident"] in caplog.text
        assert "hello" not in caplog.text
        [[result]] = await calls.deliver(delivery(MAIL, ALICE))
        assert result.reason == error_pb2.ERROR_REASON_INTERNAL_ERROR

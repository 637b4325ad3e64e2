"""Bad input at a real cluster, through its router and at its nodes, with nothing but plain stubs:
each is refused with a status that a program can act on, and leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

import grpc
import pytest
import pytest_asyncio
import zstandard

from account_snapshot import unchanged
from mailraft.client.ids import request_ids
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.v1 import (
    account_pb2,
    batch_pb2,
    blob_pb2,
    common_pb2,
    delivery_pb2,
    error_pb2,
    mailbox_pb2,
    message_pb2,
    message_service_pb2,
)
from mailraft.wire import limits
from mailraft.wire.slots import slot_of
from plain_stubs import CALL_DEADLINE_S, Door, Doors, Refusal, Via, refusal_of_status

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("processes"),
    pytest.mark.timeout(120),
    pytest.mark.parametrize("via", ["router", "leader"]),
]

SHARD, SHARDS = 1, 4
INBOX = common_pb2.MAILBOX_ROLE_INBOX
MAIL = b"Subject: one\r\n\r\nbody\r\n"
OTHER = b"Subject: another\r\n\r\nbody\r\n"
RECIPIENTS = 10_000
_ELSEWHERE = (error_pb2.ERROR_REASON_NOT_LEADER, error_pb2.ERROR_REASON_NO_LEADER)

Reply = TypeVar("Reply")
Call = Callable[[Door], Awaitable[object]]


class Place:
    """One shard of a cluster: accounts in it, and calls to it."""

    def __init__(self, cluster: LocalCluster, doors: Doors) -> None:
        self.doors = doors
        self.shard = next(each for each in cluster.map.shards if each.id == SHARD)
        self._slots = next(each for each in cluster.map.slots if each.shard == SHARD)
        self._numbers = itertools.count()

    def name(self, *, elsewhere: bool = False) -> str:
        """Of an account that does not exist, in the shard or in another one."""
        while True:
            name = f"bad-input-{next(self._numbers)}"
            here = self._slots.first_slot <= slot_of(name) <= self._slots.last_slot
            if here is not elsewhere:
                return name

    async def account(
        self, *, mails: int = 1, max_bytes: int = 0, max_messages: int = 0, elsewhere: bool = False
    ) -> str:
        """A new account with so many times MAIL in its INBOX."""
        name, router = self.name(elsewhere=elsewhere), self.doors.router
        quota = account_pb2.Quota(max_bytes=max_bytes, max_messages=max_messages)
        request = account_pb2.CreateAccountRequest(
            account_id=name, request_id=request_ids.next(), account=account_pb2.Account(quota=quota)
        )
        await router.accounts.CreateAccount(request, timeout=CALL_DEADLINE_S)
        for _ in range(mails):
            await router.messages.AppendMessages(append(name, MAIL), timeout=CALL_DEADLINE_S)
        return name

    async def ask(self, via: Via, call: Callable[[Door], Awaitable[Reply]]) -> Reply:
        return await self.doors.ask(via, SHARD, call)

    async def refused(self, via: Via, call: Call, code: str, reason: str) -> Refusal:
        """How the call is refused: with this code, for this reason."""
        refusal = await self.doors.refused(via, SHARD, call)
        check(refusal, code, reason)
        return refusal

    async def deliver(
        self, via: Via, delivery: delivery_pb2.Delivery
    ) -> Sequence[delivery_pb2.RecipientResult]:
        """What became of it for each recipient."""
        request = delivery_pb2.DeliverMessagesRequest(deliveries=[delivery])
        while True:
            (result,) = (await self.ask(via, deliver(request))).results
            if not any(each.reason in _ELSEWHERE for each in result.recipients):
                return result.recipients
            await asyncio.sleep(0.1)

    async def undeliverable(
        self, via: Via, delivery: delivery_pb2.Delivery, code: str, reason: str
    ) -> None:
        """Nobody gets it: with this code, for this reason."""
        results = await self.deliver(via, delivery)
        assert len(results) == len(delivery.recipients)
        for each in results:
            check_result(each, code, reason)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    """A shard of three nodes and a router, ready, with certificates."""
    folder = tmp_path_factory.mktemp("bad-input") / "cluster"
    async with LocalCluster(folder, LocalOptions(shards=SHARDS)) as cluster:
        await cluster.wait_ready()
        async with Doors(cluster) as doors:
            yield Place(cluster, doors)


# ---- what is sent, what is answered --------------------------------------------------------------


def content(raw: bytes, *, compressed: bool = False) -> delivery_pb2.Content:
    """The bytes of a mail, either way."""
    if not compressed:
        return delivery_pb2.Content(raw=raw)
    zstd = delivery_pb2.Zstd(
        data=zstandard.compress(raw), size_bytes=len(raw), sha256=hashlib.sha256(raw).digest()
    )
    return delivery_pb2.Content(zstd=zstd)


def append(
    account: str, *mails: bytes | delivery_pb2.AppendItem, request_id: bytes = b""
) -> delivery_pb2.AppendMessagesRequest:
    """These mails for the INBOX."""
    items = [
        delivery_pb2.AppendItem(content=content(each)) if isinstance(each, bytes) else each
        for each in mails
    ]
    return delivery_pb2.AppendMessagesRequest(
        account_id=account, request_id=request_id or request_ids.next(), messages=items
    )


def mail_for(*accounts: str, raw: bytes = MAIL, request_id: bytes = b"") -> delivery_pb2.Delivery:
    """One mail for the INBOX of each."""
    return delivery_pb2.Delivery(
        request_id=request_id or request_ids.next(),
        content=content(raw),
        recipients=[delivery_pb2.Recipient(account_id=each) for each in accounts],
    )


def listing(account: str, token: str = "", uid_validity: int = 0) -> Call:
    """One message of the INBOX, the first or the next."""
    request = message_service_pb2.ListMessagesRequest(
        account_id=account,
        mailbox_role=INBOX,
        page_size=1,
        page_token=token,
        uid_validity=uid_validity,
    )
    return lambda at: at.messages.ListMessages(request, timeout=CALL_DEADLINE_S)


def appending(request: delivery_pb2.AppendMessagesRequest) -> Call:
    """One call that appends."""
    return lambda at: at.messages.AppendMessages(request, timeout=CALL_DEADLINE_S)


def deliver(
    request: delivery_pb2.DeliverMessagesRequest,
) -> Callable[[Door], Awaitable[delivery_pb2.DeliverMessagesResponse]]:
    """One call that delivers."""
    return lambda at: at.messages.DeliverMessages(request, timeout=CALL_DEADLINE_S)


def check(refusal: Refusal, code: str, reason: str) -> None:
    """A program can tell why, and a human too."""
    assert (refusal.code, refusal.domain, refusal.reason) == (code, "mailraft", reason)
    assert refusal.message


def check_result(result: delivery_pb2.RecipientResult, code: str, reason: str) -> None:
    """The same of a recipient, who has no status of their own."""
    assert result.code == grpc.StatusCode[code].value[0]
    assert error_pb2.ErrorReason.Name(result.reason) == f"ERROR_REASON_{reason}"
    assert result.message
    assert not result.message_id
    assert not result.memberships


# ---- accounts ------------------------------------------------------------------------------------


async def test_an_unknown_account(place: Place, via: Via) -> None:
    """Every call about an account that does not exist is NOT_FOUND, and none creates it."""
    name = place.name()
    account = account_pb2.GetAccountRequest(account_id=name)
    mailbox = mailbox_pb2.CreateMailboxRequest(
        account_id=name,
        request_id=request_ids.next(),
        mailbox=mailbox_pb2.Mailbox(name="Archive"),
    )
    blob = blob_pb2.GetBlobRequest(account_id=name, message_id="M1")
    calls: list[Call] = [
        lambda at: at.mailboxes.CreateMailbox(mailbox, timeout=CALL_DEADLINE_S),
        appending(append(name, MAIL)),
        listing(name),
        lambda at: at.blobs.GetBlob(blob, timeout=CALL_DEADLINE_S),
        lambda at: at.accounts.GetAccount(account, timeout=CALL_DEADLINE_S),
    ]
    for call in calls:
        await place.refused(via, call, "NOT_FOUND", "ACCOUNT_NOT_FOUND")


async def test_an_unknown_account_in_a_batch(place: Place, via: Via) -> None:
    """Calls that travel together are refused as they are alone: a status with ErrorInfo each."""
    name = place.name()
    request = batch_pb2.ExecuteRequest(
        items=[
            batch_pb2.BatchItem(get_account=account_pb2.GetAccountRequest(account_id=name)),
            batch_pb2.BatchItem(append_messages=append(name, MAIL)),
        ]
    )
    reply = await place.ask(via, lambda at: at.batches.Execute(request, timeout=CALL_DEADLINE_S))
    assert len(reply.results) == len(request.items)
    for result in reply.results:
        check(refusal_of_status(result.error), "NOT_FOUND", "ACCOUNT_NOT_FOUND")


async def test_an_unknown_recipient(place: Place, via: Via) -> None:
    """They are NOT_FOUND, and nobody else's delivery is the worse for it."""
    known, unknown = await place.account(mails=0), place.name()
    async with unchanged(place.doors.router, place.shard, known):
        await place.undeliverable(via, mail_for(unknown), "NOT_FOUND", "ACCOUNT_NOT_FOUND")
    first, second = await place.deliver(via, mail_for(known, unknown))
    assert first.code == 0
    assert [each.uid for each in first.memberships] == [1]
    check_result(second, "NOT_FOUND", "ACCOUNT_NOT_FOUND")
    await place.refused(via, listing(unknown), "NOT_FOUND", "ACCOUNT_NOT_FOUND")


async def test_over_quota(place: Place, via: Via) -> None:
    """What would pass the quota is refused and tells what is used and allowed; of several messages
    in one call none is kept, though the first would fit; what fits is taken afterwards.
    """
    account = await place.account(max_bytes=3 * len(MAIL), max_messages=3)
    code, reason = "RESOURCE_EXHAUSTED", "OVER_QUOTA"
    async with unchanged(place.doors.router, place.shard, account):
        large = 3 * MAIL
        refusal = await place.refused(via, appending(append(account, large)), code, reason)
        told = refusal.detail(error_pb2.OverQuota)
        assert (told.used_bytes, told.max_bytes) == (len(MAIL), 3 * len(MAIL))
        assert (told.used_messages, told.max_messages) == (1, 3)
        await place.refused(via, appending(append(account, MAIL, MAIL, b"x")), code, reason)
        small = [b"a", b"b", b"c"]
        await place.refused(via, appending(append(account, *small)), code, reason)
        await place.undeliverable(via, mail_for(account, raw=large), code, reason)
    await place.ask(via, appending(append(account, MAIL, MAIL)))
    async with unchanged(place.doors.router, place.shard, account):
        await place.undeliverable(via, mail_for(account, raw=b"x"), code, reason)


# ---- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True], ids=["raw", "zstd"])
async def test_a_message_above_the_limit(place: Place, via: Via, compressed: bool) -> None:
    """3 MiB and one byte are too large however small they travel, and tell the limit; 3 MiB are
    not.
    """
    account = await place.account()
    raw = MAIL.ljust(limits.MESSAGE_MAX_BYTES, b"x")
    above = content(raw + b"x", compressed=compressed)
    code, reason = "INVALID_ARGUMENT", "MESSAGE_TOO_LARGE"
    async with unchanged(place.doors.router, place.shard, account):
        item = delivery_pb2.AppendItem(content=above)
        refusal = await place.refused(via, appending(append(account, item)), code, reason)
        told = refusal.detail(error_pb2.MessageTooLarge)
        assert (told.size_bytes, told.max_bytes) == (len(raw) + 1, len(raw))
        delivery = mail_for(account)
        delivery.content.CopyFrom(above)
        await place.undeliverable(via, delivery, code, reason)
    delivery = mail_for(account)
    delivery.content.CopyFrom(content(raw, compressed=compressed))
    (result,) = await place.deliver(via, delivery)
    assert result.code == 0


async def test_an_empty_body(place: Place, via: Via) -> None:
    """No bytes, or no content at all, is a BAD_FIELD that names the field."""
    account = await place.account()
    empty = delivery_pb2.Content(zstd=delivery_pb2.Zstd(sha256=hashlib.sha256().digest()))
    code, reason = "INVALID_ARGUMENT", "BAD_FIELD"
    async with unchanged(place.doors.router, place.shard, account):
        for bad in (content(b""), empty, delivery_pb2.Content()):
            item = delivery_pb2.AppendItem(content=bad)
            call = appending(append(account, MAIL, item))
            refusal = await place.refused(via, call, code, reason)
            assert refusal.fields == ["messages[1].content"]
            delivery = mail_for(account)
            delivery.content.CopyFrom(bad)
            await place.undeliverable(via, delivery, code, reason)
        call = appending(append(account, delivery_pb2.AppendItem()))
        assert (await place.refused(via, call, code, reason)).fields == ["messages[0]"]
        call = appending(append(account))
        assert (await place.refused(via, call, code, reason)).fields == ["messages"]


async def test_a_blob_of_another_account(place: Place, via: Via) -> None:
    """Bytes of another account do not exist, in whatever shard it is: neither to be read, nor as
    mail of one's own.
    """
    mine, theirs = await place.account(), await place.account(mails=0)
    (stored,) = await place.deliver(via, mail_for(theirs, raw=OTHER))
    code, reason = "NOT_FOUND", "BLOB_NOT_FOUND"
    elsewhere = await place.account(elsewhere=True)
    for account, shard in ((mine, place.shard), (elsewhere, None)):
        get = blob_pb2.GetBlobRequest(account_id=account, blob_id=stored.blob_id)
        item = delivery_pb2.AppendItem(blob_id=stored.blob_id)
        delivery = mail_for(account)
        delivery.ClearField("content")
        delivery.recipients[0].blob_id = stored.blob_id
        if shard is None:
            refusal = await place.doors.refused("router", SHARD, get_blob(get))
            check(refusal, code, reason)
            continue
        async with unchanged(place.doors.router, shard, account, theirs):
            await place.refused(via, get_blob(get), code, reason)
            await place.refused(via, downloading(get), code, reason)
            await place.refused(via, appending(append(account, MAIL, item)), code, reason)
            await place.undeliverable(via, delivery, code, reason)


def get_blob(request: blob_pb2.GetBlobRequest) -> Call:
    """One call that reads a blob."""
    return lambda at: at.blobs.GetBlob(request, timeout=CALL_DEADLINE_S)


def downloading(request: blob_pb2.GetBlobRequest) -> Call:
    """The same blob as a stream."""

    async def call(at: Door) -> object:
        download = blob_pb2.DownloadBlobRequest(
            account_id=request.account_id, blob_id=request.blob_id
        )
        return [part async for part in at.blobs.DownloadBlob(download, timeout=CALL_DEADLINE_S)]

    return call


# ---- where one was -------------------------------------------------------------------------------


async def test_a_wrong_uid_validity(place: Place, via: Via) -> None:
    """UIDs of another UIDVALIDITY name nothing; the right one is told."""
    account = await place.account(mails=2)
    shown = await place.ask(via, first_page(account))
    right, wrong = shown.uid_validity, shown.uid_validity + 1
    uids = message_service_pb2.ListUidsRequest(
        account_id=account, mailbox_role=INBOX, uid_validity=wrong
    )
    for call in (
        listing(account, uid_validity=wrong),
        lambda at: at.messages.ListUids(uids, timeout=CALL_DEADLINE_S),
        by_uid(account, shown.mailbox_id, wrong),
    ):
        refusal = await place.refused(via, call, "ABORTED", "UID_VALIDITY_MISMATCH")
        told = refusal.detail(error_pb2.UidValidityMismatch)
        assert (told.mailbox_id, told.uid_validity) == (shown.mailbox_id, right)
    call = by_uid(account, shown.mailbox_id, 0)
    refusal = await place.refused(via, call, "INVALID_ARGUMENT", "BAD_FIELD")
    assert refusal.fields == ["messages.uid_set.uid_validity"]
    await place.ask(via, by_uid(account, shown.mailbox_id, right))


def first_page(
    account: str,
) -> Callable[[Door], Awaitable[message_service_pb2.ListMessagesResponse]]:
    """The first message of the INBOX, as it is now."""
    request = message_service_pb2.ListMessagesRequest(
        account_id=account,
        read_options=common_pb2.ReadOptions(consistency=common_pb2.CONSISTENCY_LINEARIZABLE),
        mailbox_role=INBOX,
        page_size=1,
    )
    return lambda at: at.messages.ListMessages(request, timeout=CALL_DEADLINE_S)


def by_uid(account: str, mailbox: str, uid_validity: int) -> Call:
    """The first two messages of a mailbox, by their UIDs."""
    uids = common_pb2.UidSet(mailbox_id=mailbox, uid_validity=uid_validity, ranges=[1, 2])
    request = message_service_pb2.BatchGetMessagesRequest(
        account_id=account, messages=common_pb2.MessageSelector(uid_set=uids)
    )
    return lambda at: at.messages.BatchGetMessages(request, timeout=CALL_DEADLINE_S)


async def test_a_bad_page_token(place: Place, via: Via) -> None:
    """A token that nobody gave, that was damaged or that is of another request is refused by every
    call with pages, and goes on to work where it came from.
    """
    account, other = await place.account(mails=2), await place.account(mails=2)
    token = (await place.ask(via, first_page(account))).next_page_token
    assert token
    damaged = token[:8] + ("A" if token[8] != "A" else "B") + token[9:]
    made_up = ("x", "1", "1AAAA", token + "A", damaged, token[:-1], "\N{SNOWMAN}", "9" * 5_000)
    code, reason = "INVALID_ARGUMENT", "BAD_PAGE_TOKEN"
    for bad in made_up:
        await place.refused(via, listing(account, bad), code, reason)
    of_another = message_service_pb2.ListMessagesRequest(
        account_id=account,
        mailbox_role=INBOX,
        page_token=token,
        order=message_pb2.MESSAGE_ORDER_UID_DESC,
    )
    uids = message_service_pb2.ListUidsRequest(
        account_id=account, mailbox_role=INBOX, page_token=token
    )
    mailboxes = mailbox_pb2.ListMailboxesRequest(account_id=account, page_token=token)
    accounts = account_pb2.ListAccountsRequest(shards=[SHARD], page_token=token)
    for call in (
        listing(other, token),
        lambda at: at.messages.ListMessages(of_another, timeout=CALL_DEADLINE_S),
        lambda at: at.messages.ListUids(uids, timeout=CALL_DEADLINE_S),
        lambda at: at.mailboxes.ListMailboxes(mailboxes, timeout=CALL_DEADLINE_S),
        lambda at: at.accounts.ListAccounts(accounts, timeout=CALL_DEADLINE_S),
    ):
        await place.refused(via, call, code, reason)
    await place.ask(via, listing(account, token))


# ---- deliveries ----------------------------------------------------------------------------------


async def test_ten_thousand_recipients(place: Place, via: Via) -> None:
    """Above 1,000 recipients a mail is delivered to none of them, also where its parts for single
    shards would be small enough; so many that no reply could answer for them refuse the call.
    """
    known = await place.account()
    names = [known, *(f"nobody-{number}" for number in range(1, RECIPIENTS))]
    code, reason = "INVALID_ARGUMENT", "BAD_FIELD"
    async with unchanged(place.doors.router, place.shard, known):
        request = delivery_pb2.DeliverMessagesRequest(deliveries=[mail_for(*names)])
        await place.refused(via, deliver(request), code, reason)
        few = names[: limits.RECIPIENTS_PER_DELIVERY_MAX + 1]
        await place.undeliverable(via, mail_for(*few), code, reason)


async def test_a_recipient_that_is_named_twice(place: Place, via: Via) -> None:
    """Nobody gets the mail, also where the others are in another shard."""
    here, there = await place.account(), await place.account(elsewhere=True)
    async with unchanged(place.doors.router, place.shard, here):
        delivery = mail_for(here, there, here)
        await place.undeliverable(via, delivery, "INVALID_ARGUMENT", "BAD_FIELD")


async def test_a_reused_request_id(place: Place, via: Via) -> None:
    """Other content under a request_id that was used is refused, whatever the first call was; the
    same content is answered as the first time, and not stored again.
    """
    account = await place.account()
    request_id = request_ids.next()
    delivery = mail_for(account, request_id=request_id)
    (first,) = await place.deliver(via, delivery)
    assert first.code == 0
    code, reason = "INVALID_ARGUMENT", "REQUEST_ID_REUSED"
    marked = mail_for(account, request_id=request_id)
    marked.recipients[0].keywords.append("$seen")
    mailbox = mailbox_pb2.CreateMailboxRequest(
        account_id=account, request_id=request_id, mailbox=mailbox_pb2.Mailbox(name="Archive")
    )
    async with unchanged(place.doors.router, place.shard, account):
        for other in (mail_for(account, raw=OTHER, request_id=request_id), marked):
            await place.undeliverable(via, other, code, reason)
        calls: list[Call] = [
            appending(append(account, MAIL, request_id=request_id)),
            lambda at: at.mailboxes.CreateMailbox(mailbox, timeout=CALL_DEADLINE_S),
        ]
        for call in calls:
            await place.refused(via, call, code, reason)
        (again,) = await place.deliver(via, delivery)
        assert again.code == 0
        assert again.message_id == first.message_id
        assert again.memberships == first.memberships

"""What lists keep of the messages that they showed."""

from typing import Any

import pytest
from tests.unit.test_services_node import (
    ALICE,
    BOB,
    MAIL,
    Calls,
    delivery,
    item,
    request_id,
    running,
)

from mailraft.internal.v1 import record_pb2
from mailraft.node.services import convert, summaries
from mailraft.node.services.summaries import Summaries
from mailraft.v1 import (
    common_pb2,
    mailbox_pb2,
    message_pb2,
    message_service_pb2,
)

List = message_service_pb2.ListMessagesRequest
Change = message_service_pb2.ModifyKeywordsRequest
INBOX = common_pb2.MAILBOX_ROLE_INBOX
VIEWS = (message_pb2.MESSAGE_VIEW_BASIC, message_pb2.MESSAGE_VIEW_FULL)


async def listed(
    calls: Calls, account: str, view: message_pb2.MessageView.ValueType = VIEWS[0]
) -> list[message_pb2.Message]:
    """The messages of an inbox."""
    request = List(account_id=account, mailbox_role=INBOX, view=view)
    return list((await calls.messages.ListMessages(request)).messages)


async def test_a_list_shows_a_message_as_the_call_for_one_does() -> None:
    """In every view, the first time and again, with several messages and after a change."""
    async with running() as (_, calls):
        await calls.create(ALICE)
        await calls.append(ALICE, item(MAIL), item(MAIL + b"x" * 300, keywords=["$seen", "later"]))
        for word in ("$flagged", "a"):
            messages = []
            for view in (*VIEWS, *VIEWS):
                messages = await listed(calls, ALICE, view)
                for told in messages:
                    one = message_service_pb2.GetMessageRequest(
                        account_id=ALICE, message_id=told.id, view=view
                    )
                    assert told == (await calls.messages.GetMessage(one)).message
            change = Change(account_id=ALICE, request_id=request_id(), add=[word])
            change.messages.ids.ids.append(messages[-1].id)
            await calls.messages.ModifyKeywords(change)
            assert word in (await listed(calls, ALICE))[-1].keywords


async def test_equal_records_of_two_accounts_are_shown_with_their_own_uidvalidity() -> None:
    """As after one delivery to both, of which each has its first mailbox."""
    async with running() as (_, calls):
        await calls.create(ALICE)
        await calls.create(BOB)
        mailbox = mailbox_pb2.CreateMailboxRequest(
            account_id=BOB, request_id=request_id(), mailbox=mailbox_pb2.Mailbox(name="other")
        )
        await calls.mailboxes.CreateMailbox(mailbox)
        await calls.deliver(delivery(MAIL, ALICE, BOB))
        for account in (ALICE, BOB, ALICE, BOB):
            inbox = mailbox_pb2.GetMailboxRequest(account_id=account, mailbox_role=INBOX)
            expected = (await calls.mailboxes.GetMailbox(inbox)).mailbox
            [message] = await listed(calls, account)
            [place] = message.memberships
            assert (place.mailbox_id, place.uid_validity) == (expected.id, expected.uid_validity)


class View:
    """Of mailboxes whose UIDVALIDITY the test sets."""

    def __init__(self) -> None:
        self.uid_validity = 5

    def get(self, key: bytes) -> bytes:
        return record_pb2.MailboxRecord(
            mailbox=1, uid_validity=self.uid_validity
        ).SerializeToString()


def record(number: int) -> bytes:
    """A message as it is stored."""
    made = record_pb2.MessageRecord(message=number, derived=b"", sha256=bytes(100))
    made.memberships.add(mailbox=1, uid=number)
    return made.SerializeToString()


def shown(summaries_: Summaries, view: Any, number: int) -> message_pb2.Message:
    """As a list shows it."""
    show = convert.Messages(view, ALICE, message_pb2.MESSAGE_VIEW_BASIC)
    reply = message_service_pb2.ListMessagesResponse.FromString(summaries_.of(record(number), show))
    [message] = reply.messages
    return message


def test_another_uidvalidity_is_seen() -> None:
    """Though the record has not changed."""
    kept, view = Summaries(), View()
    for uid_validity in (5, 5, 6, 5):
        view.uid_validity = uid_validity
        assert shown(kept, view, 1).memberships[0].uid_validity == uid_validity


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What came first goes, and is made again."""
    monkeypatch.setattr(summaries, "KEPT_BYTES_MAX", 5_000)
    kept, view = Summaries(), View()
    for _ in range(3):
        for number in range(1, 101):
            assert shown(kept, view, number).memberships[0].uid == number
            assert kept._bytes == sum(each.size_bytes for each in kept._kept.values()) <= 5_000
    assert 5 < len(kept._kept) < 20
    monkeypatch.setattr(summaries, "ONE_BYTES_MAX", 100)
    before = list(kept._kept)
    assert shown(kept, view, 7).memberships[0].uid == 7
    assert list(kept._kept) == before

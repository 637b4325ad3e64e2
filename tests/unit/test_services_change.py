"""Calls that change messages, mailboxes and accounts, through gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.unit.test_services_node import (
    ALICE,
    MAIL,
    Calls,
    FakeNode,
    item,
    refusal,
    request_id,
    running,
)

from mailraft.node.services import changing
from mailraft.v1 import account_pb2, common_pb2, mailbox_pb2, message_pb2, message_service_pb2
from mailraft.wire import errors, tokens

INBOX, OTHER = tokens.mailbox_id(1), tokens.mailbox_id(2)
ONE, TWO, THREE = (tokens.message_id(number) for number in (1, 2, 3))
TO_OTHER = message_pb2.MailboxTarget(mailbox_id=OTHER)
Modify = message_service_pb2.ModifyKeywordsRequest
Memberships = message_service_pb2.UpdateMembershipsRequest
Move = message_service_pb2.MoveMessagesRequest
Copy = message_service_pb2.CopyMessagesRequest
Expunge = message_service_pb2.ExpungeMessagesRequest
Undelete = message_service_pb2.UndeleteMessagesRequest


class Account:
    """Alice's, with an inbox of three messages and an empty mailbox."""

    def __init__(self, node: FakeNode, calls: Calls, uid_validity: int) -> None:
        self.node, self.calls, self.uid_validity = node, calls, uid_validity

    def uids(self, *ranges: int) -> common_pb2.MessageSelector:
        """UIDs of the inbox."""
        uid_set = common_pb2.UidSet(mailbox_id=INBOX, uid_validity=self.uid_validity, ranges=ranges)
        return common_pb2.MessageSelector(uid_set=uid_set)

    async def call(self, request: Any) -> Any:
        """Sends a request of the message service about the account."""
        request.account_id, request.request_id = ALICE, request_id()
        name = type(request).__name__.removesuffix("Request")
        return await getattr(self.calls.messages, name)(request)

    async def listed(self, mailbox_id: str) -> list[Any]:
        """The messages of a mailbox."""
        request = message_service_pb2.ListMessagesRequest(account_id=ALICE, mailbox_id=mailbox_id)
        return list((await self.calls.messages.ListMessages(request)).messages)

    async def mailbox(self, mailbox_id: str) -> mailbox_pb2.Mailbox:
        """A mailbox as it is."""
        request = mailbox_pb2.GetMailboxRequest(account_id=ALICE, mailbox_id=mailbox_id)
        response: mailbox_pb2.GetMailboxResponse = await self.calls.mailboxes.GetMailbox(request)
        return response.mailbox

    async def update(self, mailbox: mailbox_pb2.Mailbox, *paths: str) -> mailbox_pb2.Mailbox:
        """Changes these fields."""
        request = mailbox_pb2.UpdateMailboxRequest(
            account_id=ALICE, request_id=request_id(), mailbox=mailbox
        )
        request.update_mask.paths.extend(paths)
        response: mailbox_pb2.UpdateMailboxResponse
        response = await self.calls.mailboxes.UpdateMailbox(request)
        return response.mailbox


@asynccontextmanager
async def opened() -> AsyncIterator[Account]:
    """An account on a node that serves."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        create = mailbox_pb2.CreateMailboxRequest(
            account_id=ALICE, request_id=request_id(), mailbox=mailbox_pb2.Mailbox(name="Other")
        )
        await calls.mailboxes.CreateMailbox(create)
        done = await calls.append(ALICE, *(item(MAIL) for _ in range(3)))
        yield Account(node, calls, done.messages[0].memberships[0].uid_validity)


def ids(*names: str) -> common_pb2.MessageSelector:
    """Messages by id."""
    return common_pb2.MessageSelector(ids=common_pb2.MessageIds(ids=names))


async def test_keywords_change_by_uid() -> None:
    """Changed messages are told with UID, MODSEQ and keywords; failed ones as MODIFIED ranges."""
    async with opened() as alice:
        known = (await alice.listed(INBOX))[0].modseq
        await alice.call(Modify(messages=ids(TWO), add=["Late"]))
        done = await alice.call(
            Modify(
                messages=alice.uids(1, 4_294_967_295),
                add=["$Flagged"],
                unchanged_since=known,
                deleted=True,
            )
        )
        assert [(each.uid, list(each.keywords), each.deleted) for each in done.changed] == [
            (1, ["$flagged"], True),
            (3, ["$flagged"], True),
        ]
        assert (list(done.modified_ids), list(done.modified_ranges)) == ([TWO], [2, 2])
        assert not done.HasField("remaining")
        inbox = await alice.mailbox(INBOX)
        assert (inbox.deleted_messages, inbox.unseen_messages) == (2, 3)
        assert list(inbox.keywords_in_use) == ["$flagged", "late"]
        assert done.changed[0].modseq == inbox.highest_modseq


async def test_ids_that_name_nothing_are_told() -> None:
    """Whether they are of this store or not."""
    async with opened() as alice:
        nine = tokens.message_id(9)
        done = await alice.call(Modify(messages=ids("junk", nine, ONE), add=["x"]))
        assert set(done.not_found_ids) == {"junk", nine}
        assert [each.message_id for each in done.changed] == [ONE]


async def test_messages_move_and_copy() -> None:
    """The mappings say where each is now (COPYUID)."""
    async with opened() as alice:
        moved = await alice.call(Move(messages=alice.uids(2, 3), target=TO_OTHER))
        assert [(m.message_id, m.source_uid, m.mailbox_id, m.uid) for m in moved.moved] == [
            (TWO, 2, OTHER, 1),
            (THREE, 3, OTHER, 2),
        ]
        assert moved.moved[0].uid_validity == (await alice.mailbox(OTHER)).uid_validity
        linked = await alice.call(Copy(messages=ids(ONE), target=TO_OTHER))
        assert (linked.copied[0].uid, linked.copied[0].new_message_id) == (3, "")
        mode = message_service_pb2.COPY_MODE_DUPLICATE
        made = await alice.call(Copy(messages=ids(ONE), target=TO_OTHER, mode=mode))
        assert made.copied[0].new_message_id == tokens.message_id(4)
        assert [each.id for each in await alice.listed(OTHER)] == [
            TWO,
            THREE,
            ONE,
            tokens.message_id(4),
        ]
        inbox = message_pb2.MailboxTarget(role=common_pb2.MAILBOX_ROLE_INBOX)
        back = Move(messages=ids(TWO, ONE), source_mailbox_id=OTHER, target=inbox)
        assert [each.uid for each in (await alice.call(back)).moved] == [4, 1]


async def test_memberships_are_told_as_they_are() -> None:
    """All that a message has, with the flag Deleted, saved time and MODSEQ of each."""
    async with opened() as alice:
        mark = message_service_pb2.DeletedMark(mailbox_id=OTHER, deleted=True)
        done = await alice.call(Memberships(messages=ids(ONE), add=[TO_OTHER], deleted=[mark]))
        (changed,) = done.changed
        assert changed.memberships == (await alice.listed(INBOX))[0].memberships
        assert [each.deleted for each in changed.memberships] == [False, True]
        assert all(each.saved_time_ms for each in changed.memberships)
        removed = Memberships(messages=ids(ONE, TWO), remove_mailbox_ids=[INBOX])
        assert isinstance(await refusal(alice.call(removed)), errors.LastMembershipError)


async def test_messages_are_expunged_and_come_back() -> None:
    """A preview changes nothing; what comes back is told as it is now."""
    async with opened() as alice:
        gone = await alice.call(Expunge(messages=alice.uids(1, 2)))
        assert (list(gone.destroyed_ids), list(gone.vanished_ranges)) == ([ONE, TWO], [1, 2])
        assert gone.highest_modseq == (await alice.mailbox(INBOX)).highest_modseq
        since = message_service_pb2.ExpungedSince(mailbox_id=INBOX)
        seen = await alice.call(Undelete(expunged=since, validate_only=True))
        assert [(m.id, m.memberships[0].uid) for m in seen.messages] == [(TWO, 2), (ONE, 1)]
        assert seen.state == gone.state
        back = await alice.call(Undelete(ids=common_pb2.MessageIds(ids=[ONE, THREE, "junk"])))
        assert [(m.id, m.memberships[0].uid) for m in back.messages] == [(ONE, 4)]
        assert set(back.not_found_ids) == {THREE, "junk"}
        assert back.messages[0] == (await alice.listed(INBOX))[-1]
        assert await alice.calls.fetch(ALICE, ONE) == MAIL


async def test_what_is_behind_a_command_remains() -> None:
    """UIDs that were not reached are told, and sending them again reaches the end."""
    async with opened() as alice:
        odd = [uid for uid in range(1, 2 * changing.PAIRS_MAX + 3, 2) for _ in "12"]
        done = await alice.call(Modify(messages=alice.uids(*odd), add=["x"]))
        assert [each.uid for each in done.changed] == [1, 3]
        assert list(done.remaining.ranges) == [2001, 2001]
        assert (done.remaining.mailbox_id, done.remaining.uid_validity) == (
            INBOX,
            alice.uid_validity,
        )
        rest = Modify(messages=common_pb2.MessageSelector(uid_set=done.remaining), add=["x"])
        assert not (await alice.call(rest)).HasField("remaining")


def test_remaining_is_cut_where_the_command_ended() -> None:
    """Ranges before it are done, the one that it is in goes on there, later ones are whole."""
    uid_set = common_pb2.UidSet(mailbox_id=INBOX, uid_validity=7, ranges=[1, 5, 8, 4_294_967_295])
    chosen = changing.chosen(common_pb2.MessageSelector(uid_set=uid_set))
    assert chosen.remaining(0) is None
    for resume, ranges in ((3, [3, 5, 8, 4_294_967_295]), (9, [9, 4_294_967_295])):
        rest = chosen.remaining(resume)
        assert rest is not None
        assert list(rest.ranges) == ranges


async def test_mailboxes_are_renamed_and_deleted() -> None:
    """Only the fields of the mask change, under the etag; a deleted mailbox is not found."""
    async with opened() as alice:
        other = await alice.mailbox(OTHER)
        retention = mailbox_pb2.Retention(max_messages=9, undelete_window_ms=0)
        asked = mailbox_pb2.Mailbox(
            id=OTHER, name="New", parent_id=INBOX, retention=retention, etag=other.etag
        )
        changed = await alice.update(asked, "name", "retention")
        assert (changed.name, changed.parent_id, changed.uid_validity) == (
            "New",
            "",
            other.uid_validity,
        )
        assert changed.retention == retention
        assert changed == await alice.mailbox(OTHER)
        stale = await refusal(alice.update(asked, "parent_id"))
        assert isinstance(stale, errors.EtagMismatchError)
        asked.etag = changed.etag
        assert (await alice.update(asked, "parent_id")).parent_id == INBOX
        await alice.call(Move(messages=alice.uids(1, 1), target=TO_OTHER))
        delete = mailbox_pb2.DeleteMailboxRequest(
            account_id=ALICE, request_id=request_id(), mailbox_id=OTHER
        )
        full = await refusal(alice.calls.mailboxes.DeleteMailbox(delete))
        assert isinstance(full, errors.MailboxNotEmptyError)
        delete.force = True
        first = await alice.calls.mailboxes.DeleteMailbox(delete)
        assert (await alice.calls.mailboxes.DeleteMailbox(delete)).state == first.state
        assert isinstance(await refusal(alice.mailbox(OTHER)), errors.MailboxNotFoundError)


async def test_accounts_are_updated_and_deleted() -> None:
    """The undelete window is kept; deleting needs force, and answers with the last state."""
    async with opened() as alice:
        update = account_pb2.UpdateAccountRequest(account_id=ALICE, request_id=request_id())
        update.account.undelete_window_ms = 5
        update.update_mask.paths.append("undelete_window_ms")
        updated = await alice.calls.accounts.UpdateAccount(update)
        assert updated.account.undelete_window_ms == 5
        delete = account_pb2.DeleteAccountRequest(account_id=ALICE, request_id=request_id())
        full = await refusal(alice.calls.accounts.DeleteAccount(delete))
        assert isinstance(full, errors.AccountNotEmptyError)
        delete.force, delete.etag = True, updated.account.etag
        assert (await alice.calls.accounts.DeleteAccount(delete)).state == updated.state
        get = account_pb2.GetAccountRequest(account_id=ALICE)
        error = await refusal(alice.calls.accounts.GetAccount(get))
        assert isinstance(error, errors.AccountNotFoundError)
        again = await alice.calls.create(ALICE)
        assert tokens.decode_state(again.state) > tokens.decode_state(updated.state)
        get.read_options.min_state = updated.state
        error = await refusal(alice.calls.accounts.GetAccount(get))
        assert isinstance(error, errors.StateTooOldError)


async def test_appended_messages_can_be_marked() -> None:
    """AppendItem.deleted marks every membership."""
    async with opened() as alice:
        done = await alice.calls.append(ALICE, item(MAIL, deleted=True))
        assert [each.deleted for each in done.messages[0].memberships] == [True]
        assert done.messages[0].memberships == (await alice.listed(INBOX))[-1].memberships


async def test_a_change_can_be_retried() -> None:
    """Under its request_id it answers the same; with other content it is REQUEST_ID_REUSED."""
    async with opened() as alice:
        request = Modify(
            account_id=ALICE, request_id=request_id(), messages=ids(ONE), add=["a", "B"]
        )
        first = await alice.calls.messages.ModifyKeywords(request)
        await alice.call(Modify(messages=ids(ONE), replace=message_service_pb2.KeywordSet()))
        request.add[:] = ["b", "A"]
        again = await alice.calls.messages.ModifyKeywords(request)
        assert (again.changed, again.state) == (first.changed, first.state)
        request.add.append("c")
        error = await refusal(alice.calls.messages.ModifyKeywords(request))
        assert isinstance(error, errors.RequestIdReusedError)


async def test_a_state_guards_every_change() -> None:
    """if_in_state of another state refuses, whatever the call."""
    async with opened() as alice:
        old = (await alice.calls.append(ALICE, item(MAIL))).state
        await alice.calls.append(ALICE, item(MAIL))
        options = common_pb2.WriteOptions(if_in_state=old)
        for request in (
            Modify(messages=ids(ONE), add=["x"]),
            Memberships(messages=ids(ONE), add=[TO_OTHER]),
            Move(messages=ids(ONE), source_mailbox_id=INBOX, target=TO_OTHER),
            Copy(messages=ids(ONE), target=TO_OTHER),
            Expunge(messages=ids(ONE)),
            Undelete(expunged=message_service_pb2.ExpungedSince()),
        ):
            request.write_options.CopyFrom(options)
            error = await refusal(alice.call(request))
            assert isinstance(error, errors.StateMismatchError), request


MALFORMED: list[tuple[Any, str]] = [
    (Modify(add=["x"]), "messages"),
    (Modify(messages=ids(), add=["x"]), "messages.ids"),
    (Modify(messages=ids(ONE, ONE)), "messages.ids"),
    (Modify(messages=ids(ONE), add=["a"], remove=["A"]), "add"),
    (Modify(messages=ids(ONE), add=["a"], replace=message_service_pb2.KeywordSet()), "replace"),
    (Modify(messages=ids(ONE), deleted=True), "deleted"),
    (Modify(messages=ids(ONE), add=["b a d"]), "add"),
    (Move(messages=ids(ONE), target=TO_OTHER), "source_mailbox_id"),
    (Move(messages=ids(ONE), source_mailbox_id=INBOX), "target"),
    (Copy(messages=ids(ONE), target=TO_OTHER, mode=9), "mode"),  # type: ignore[arg-type]
    (
        Memberships(messages=ids(ONE), remove_mailbox_ids=[OTHER, OTHER]),
        "remove_mailbox_ids",
    ),
    (Expunge(messages=ids(ONE), only_deleted=True), "only_deleted"),
    (Undelete(), "ids"),
]


async def test_what_is_malformed_names_its_field() -> None:
    """BAD_FIELD, and nothing is proposed."""
    async with opened() as alice:
        entries = alice.node.shard_of(ALICE).entries
        for asked, field in MALFORMED:
            error = await refusal(alice.call(asked))
            assert isinstance(error, errors.BadFieldError), asked
            assert field in error.fields, asked
        assert alice.node.shard_of(ALICE).entries == entries


async def test_uids_of_another_life_are_refused() -> None:
    """UID_VALIDITY_MISMATCH tells the mailbox and its UIDVALIDITY."""
    async with opened() as alice:
        stale = alice.uids(1, 1)
        stale.uid_set.uid_validity += 1
        for request in (Modify(messages=stale), Move(messages=stale, target=TO_OTHER)):
            error = await refusal(alice.call(request))
            assert isinstance(error, errors.UidValidityMismatchError)
            assert error.detail is not None
            assert error.detail.uid_validity == alice.uid_validity  # type: ignore[attr-defined]


async def test_the_clusters_undelete_window_counts_where_nobody_else_says() -> None:
    """From the change of the setting on; an account or a mailbox that says its own keeps that."""
    async with opened() as alice:
        node = alice.node
        await alice.call(Expunge(messages=alice.uids(1, 1)))
        node.map.policy.undelete_window_ms = 1_000
        await alice.call(Expunge(messages=alice.uids(2, 2)))
        node.time_ms += 1_000
        since = message_service_pb2.ExpungedSince(mailbox_id=INBOX)
        left = await alice.call(Undelete(expunged=since, validate_only=True))
        assert [each.id for each in left.messages] == [ONE]

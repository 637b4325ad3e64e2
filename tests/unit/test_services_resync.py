"""Invariant 18, the second half: after a restore into another cluster whoever still has something
of the old one is told so by every call that takes it, and never given an answer of another life.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest
from google.protobuf import field_mask_pb2
from tests.unit.test_services_node import ALICE, Calls, FakeNode, item, refusal, request_id, running
from tests.unit.test_services_watch import watching

from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys
from mailraft.node.mailstore.account_change import prefix_of
from mailraft.v1 import (
    account_pb2,
    change_pb2,
    common_pb2,
    delivery_pb2,
    mailbox_pb2,
    message_service_pb2,
)
from mailraft.wire import errors, tokens

INBOX = common_pb2.MAILBOX_ROLE_INBOX


def restored(node: FakeNode) -> None:
    """What a restore into another cluster makes of the account: a later incarnation, in which every
    mailbox has another UIDVALIDITY. All else is as it was, so that nothing else can tell.
    """
    view, prefix = node.shard_of(ALICE).view, prefix_of(ALICE)
    account = record_pb2.AccountRecord.FromString(view.rows[keys.account_record(prefix)])
    account.restore_epoch += 1
    for key in [key for key in view.rows if key.startswith(keys.mailbox_record(prefix, 0)[:-4])]:
        mailbox = record_pb2.MailboxRecord.FromString(view.rows[key])
        account.last_uid_validity += 1
        mailbox.uid_validity = account.last_uid_validity
        view.rows[key] = mailbox.SerializeToString()
    view.rows[keys.account_record(prefix)] = account.SerializeToString()


class Known:
    """What a client remembers."""

    state: str
    mailbox: mailbox_pb2.Mailbox
    page_token: str
    account_etag: str

    async def learn(self, calls: Calls) -> None:
        get = mailbox_pb2.GetMailboxRequest(account_id=ALICE, mailbox_role=INBOX)
        self.mailbox = (await calls.mailboxes.GetMailbox(get)).mailbox
        listing = message_service_pb2.ListMessagesRequest(
            account_id=ALICE, mailbox_role=INBOX, page_size=1
        )
        page = await calls.messages.ListMessages(listing)
        self.state, self.page_token = page.state, page.next_page_token
        account = await calls.accounts.GetAccount(account_pb2.GetAccountRequest(account_id=ALICE))
        self.account_etag = account.account.etag

    def asked(self, calls: Calls) -> dict[str, tuple[Awaitable[Any], type[Exception]]]:
        """Every call that takes something that was known, and what it is refused with."""
        uid_set = common_pb2.UidSet(
            mailbox_id=self.mailbox.id, uid_validity=self.mailbox.uid_validity, ranges=[1, 2]
        )
        by_uid = common_pb2.MessageSelector(uid_set=uid_set)
        in_state = common_pb2.WriteOptions(if_in_state=self.state)
        messages, mailboxes = calls.messages, calls.mailboxes
        writing: dict[str, Any] = {"account_id": ALICE, "request_id": request_id()}
        return {
            "changes": (
                messages.ListChanges(
                    change_pb2.ListChangesRequest(account_id=ALICE, since_state=self.state)
                ),
                errors.StateTooOldError,
            ),
            "session": (
                messages.ListMessages(
                    message_service_pb2.ListMessagesRequest(
                        account_id=ALICE,
                        mailbox_role=INBOX,
                        read_options=common_pb2.ReadOptions(min_state=self.state),
                    )
                ),
                errors.StateTooOldError,
            ),
            "mailbox changes": (
                messages.ListMailboxChanges(
                    change_pb2.ListMailboxChangesRequest(
                        account_id=ALICE,
                        mailbox_id=self.mailbox.id,
                        uid_validity=self.mailbox.uid_validity,
                    )
                ),
                errors.UidValidityMismatchError,
            ),
            "the next page": (
                messages.ListMessages(
                    message_service_pb2.ListMessagesRequest(
                        account_id=ALICE,
                        mailbox_role=INBOX,
                        page_size=1,
                        page_token=self.page_token,
                    )
                ),
                errors.UidValidityMismatchError,
            ),
            "a write in a state": (
                messages.AppendMessages(
                    delivery_pb2.AppendMessagesRequest(
                        messages=[item(b"x")], write_options=in_state, **writing
                    )
                ),
                errors.StateMismatchError,
            ),
            "a write by UIDs": (
                messages.ExpungeMessages(
                    message_service_pb2.ExpungeMessagesRequest(messages=by_uid, **writing)
                ),
                errors.UidValidityMismatchError,
            ),
            "a read by UIDs": (
                messages.BatchGetMessages(
                    message_service_pb2.BatchGetMessagesRequest(account_id=ALICE, messages=by_uid)
                ),
                errors.UidValidityMismatchError,
            ),
            "a mailbox' etag": (
                mailboxes.UpdateMailbox(
                    mailbox_pb2.UpdateMailboxRequest(
                        mailbox=self.mailbox,
                        update_mask=field_mask_pb2.FieldMask(paths=["name"]),
                        **writing,
                    )
                ),
                errors.EtagMismatchError,
            ),
            "the account's etag": (
                calls.accounts.DeleteAccount(
                    account_pb2.DeleteAccountRequest(etag=self.account_etag, force=True, **writing)
                ),
                errors.EtagMismatchError,
            ),
        }


@pytest.mark.parametrize("more", [0, 5])
async def test_who_knows_the_old_cluster_is_told_to_begin_anew(more: int) -> None:
    """Also when the old one was further than the backup: its states and UIDs are above."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        await calls.append(ALICE, item(b"one"), item(b"two"))
        backup = dict(node.shard_of(ALICE).view.rows)
        for _ in range(more):
            await calls.append(ALICE, item(b"after the backup"))
        known = Known()
        await known.learn(calls)
        view = node.shard_of(ALICE).view
        view.rows.clear()
        view.rows.update(backup)
        view.apply(())
        restored(node)
        before = node.rows()
        for what, (call, expected) in known.asked(calls).items():
            error = await refusal(call)
            assert isinstance(error, expected), (what, error)
        assert node.rows() == before, "a refused call changed something"
        async with watching(calls) as stream:
            await stream.subscribe(ALICE, known.state)
            assert await stream.end() == (ALICE, errors.StateTooOldError.reason)
        anew = Known()
        await anew.learn(calls)
        old, new = tokens.decode_state(known.state), tokens.decode_state(anew.state)
        assert new.incarnation > old.incarnation
        assert anew.mailbox.uid_validity != known.mailbox.uid_validity
        assert anew.mailbox.total_messages == 2

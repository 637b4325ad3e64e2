"""AsyncClient: what changes messages, mailboxes and accounts that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

from mailraft.client import calls
from mailraft.client.async_base import AsyncBase
from mailraft.client.calls import Mailbox, Messages
from mailraft.client.options import MailboxRole, WriteArgs
from mailraft.v1 import account_pb2, common_pb2, mailbox_pb2, message_service_pb2


class AsyncMutations(AsyncBase):
    """Messages are named by at most 1,000 ids, or by UIDs of one mailbox: any number, in steps of
    1,000 that are atomic each.
    """

    async def modify_keywords(
        self,
        account_id: str,
        messages: Messages,
        *,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
        replace: Sequence[str] | None = None,
        unchanged_since: int | None = None,
        deleted: bool | None = None,
        **args: Unpack[WriteArgs],
    ) -> message_service_pb2.ModifyKeywordsResponse:
        r"""Adds and removes keywords, or replaces them all (an empty list: by none).

        unchanged_since: leave alone what changed after this MODSEQ; the reply's modified_ids and
        modified_ranges name it. deleted: by UIDs only, set or clear the flag \Deleted in that
        mailbox in the same step. Raises MailboxNotFoundError, UidValidityMismatchError,
        LimitReachedError.
        """
        request = message_service_pb2.ModifyKeywordsRequest(
            account_id=account_id,
            messages=calls.selector(messages),
            add=add,
            remove=remove,
            replace=None if replace is None else message_service_pb2.KeywordSet(keywords=replace),
            unchanged_since=unchanged_since,
            deleted=deleted,
        )
        reply: message_service_pb2.ModifyKeywordsResponse = await self._write_all(request, args)
        return reply

    async def update_memberships(
        self,
        account_id: str,
        messages: Messages,
        *,
        add: Sequence[Mailbox] = (),
        remove: Sequence[str] = (),
        deleted: Mapping[str, bool] | None = None,
        unchanged_since: int | None = None,
        **args: Unpack[WriteArgs],
    ) -> message_service_pb2.UpdateMembershipsResponse:
        r"""Puts messages into mailboxes, takes them out of others (by id), and sets or clears the
        flag \Deleted in some, in one step.

        Raises LastMembershipError if a message would be left in no mailbox, MailboxNotFoundError,
        UidValidityMismatchError.
        """
        request = message_service_pb2.UpdateMembershipsRequest(
            account_id=account_id,
            messages=calls.selector(messages),
            add=[calls.target(each) for each in add],
            remove_mailbox_ids=remove,
            deleted=[
                message_service_pb2.DeletedMark(mailbox_id=each, deleted=flag)
                for each, flag in (deleted or {}).items()
            ],
            unchanged_since=unchanged_since,
        )
        reply: message_service_pb2.UpdateMembershipsResponse
        reply = await self._write_all(request, args)
        return reply

    async def move_messages(
        self,
        account_id: str,
        messages: Messages,
        to: Mailbox,
        *,
        source: str = "",
        **args: Unpack[WriteArgs],
    ) -> message_service_pb2.MoveMessagesResponse:
        """Moves messages: at every moment each is in exactly one of the two mailboxes.

        source: by ids the mailbox (its id) to take them out of; by UIDs it is known. Raises
        MailboxNotFoundError, UidValidityMismatchError.
        """
        request = message_service_pb2.MoveMessagesRequest(
            account_id=account_id,
            messages=calls.selector(messages),
            source_mailbox_id=source,
            target=calls.target(to),
        )
        reply: message_service_pb2.MoveMessagesResponse = await self._write_all(request, args)
        return reply

    async def copy_messages(
        self,
        account_id: str,
        messages: Messages,
        to: Mailbox,
        *,
        duplicate: bool = False,
        **args: Unpack[WriteArgs],
    ) -> message_service_pb2.CopyMessagesResponse:
        """Puts messages into one mailbox more, or (duplicate) makes new ones of the same bytes.

        Raises MailboxNotFoundError, UidValidityMismatchError, OverQuotaError (duplicate).
        """
        duplicates, links = (
            message_service_pb2.COPY_MODE_DUPLICATE,
            message_service_pb2.COPY_MODE_LINK,
        )
        request = message_service_pb2.CopyMessagesRequest(
            account_id=account_id,
            messages=calls.selector(messages),
            target=calls.target(to),
            mode=duplicates if duplicate else links,
        )
        reply: message_service_pb2.CopyMessagesResponse = await self._write_all(request, args)
        return reply

    async def expunge_messages(
        self,
        account_id: str,
        messages: Messages,
        *,
        only_deleted: bool = False,
        **args: Unpack[WriteArgs],
    ) -> message_service_pb2.ExpungeMessagesResponse:
        r"""Removes messages: by ids from all their mailboxes, by UIDs from that one.

        only_deleted: by UIDs, only those with the flag \Deleted there. They can be brought back for
        a while: undelete_messages. Raises MailboxNotFoundError, UidValidityMismatchError.
        """
        request = message_service_pb2.ExpungeMessagesRequest(
            account_id=account_id, messages=calls.selector(messages), only_deleted=only_deleted
        )
        reply: message_service_pb2.ExpungeMessagesResponse = await self._write_all(request, args)
        return reply

    async def undelete_messages(
        self,
        account_id: str,
        messages: Sequence[str] | message_service_pb2.ExpungedSince,
        *,
        to: Mailbox | None = None,
        validate_only: bool = False,
        **args: Unpack[WriteArgs],
    ) -> message_service_pb2.UndeleteMessagesResponse:
        """Brings expunged messages back, under their ids and with new UIDs: by ids, or what was
        expunged since a time, newest first, at most 1,000 a call (the reply's `more`).

        to: None for where they were. validate_only: only tell which could be brought back. Raises
        MailboxNotFoundError, OverQuotaError.
        """
        request = message_service_pb2.UndeleteMessagesRequest(
            account_id=account_id,
            target=None if to is None else calls.target(to),
            validate_only=validate_only,
        )
        if isinstance(messages, message_service_pb2.ExpungedSince):
            request.expunged.CopyFrom(messages)
        else:
            request.ids.CopyFrom(calls.message_ids(messages))
        reply: message_service_pb2.UndeleteMessagesResponse = await self._write(request, args)
        return calls.met(reply.served, reply)

    async def update_mailbox(
        self,
        account_id: str,
        mailbox_id: str,
        *,
        name: str | None = None,
        parent_id: str | None = None,
        role: MailboxRole | None = None,
        subscribed: bool | None = None,
        sort_order: int | None = None,
        retention: mailbox_pb2.Retention | None = None,
        attributes: Mapping[str, str] | None = None,
        etag: str = "",
        **args: Unpack[WriteArgs],
    ) -> mailbox_pb2.Mailbox:
        """Renames a mailbox, moves it with its children (parent_id "": to the top), or changes what
        else is given; the rest stays, and so do ids, UIDs and UIDVALIDITY.

        attributes are replaced as a whole. etag: do it only if the mailbox still has this one, else
        EtagMismatchError. Raises MailboxNotFoundError, MailboxExistsError, MailboxRoleExistsError,
        LimitReachedError.
        """
        values = {
            "name": name,
            "parent_id": parent_id,
            "role": None if role is None else int(role),
            "subscribed": subscribed,
            "sort_order": sort_order,
            "retention": retention,
            "attributes": attributes,
        }
        request = calls.update_mailbox(account_id, mailbox_id, values, etag)
        reply: mailbox_pb2.UpdateMailboxResponse = await self._write(request, args)
        return calls.met(reply.served, reply.mailbox)

    async def delete_mailbox(
        self,
        account_id: str,
        mailbox_id: str,
        *,
        force: bool = False,
        etag: str = "",
        **args: Unpack[WriteArgs],
    ) -> None:
        """Deletes a mailbox; with `force` also one that holds messages, which are expunged unless
        another mailbox has them.

        Raises MailboxNotFoundError, MailboxNotEmptyError, MailboxHasChildrenError,
        EtagMismatchError.
        """
        request = mailbox_pb2.DeleteMailboxRequest(
            account_id=account_id, mailbox_id=mailbox_id, force=force, etag=etag
        )
        reply: mailbox_pb2.DeleteMailboxResponse = await self._write(request, args)
        calls.met(reply.served, None)

    async def delete_account(
        self, account_id: str, *, force: bool = False, etag: str = "", **args: Unpack[WriteArgs]
    ) -> None:
        """Deletes an account; with `force` also all its mail. This cannot be undone.

        Raises AccountNotFoundError, AccountNotEmptyError, EtagMismatchError.
        """
        request = account_pb2.DeleteAccountRequest(account_id=account_id, force=force, etag=etag)
        reply: account_pb2.DeleteAccountResponse = await self._write(request, args)
        calls.met(reply.served, None)
        self._session.deleted(account_id)

    async def wait_committed(
        self, account_id: str, request_id: bytes, *, deadline_s: float = calls.WAIT_S
    ) -> bool:
        """Waits until it is certain what became of a mutation: True if it is committed, False if it
        was lost and cannot appear any more. Raises CommitUnknownError when the deadline passes.
        """
        request = message_service_pb2.WaitCommittedRequest(
            account_id=account_id,
            read_options=common_pb2.ReadOptions(
                consistency=common_pb2.CONSISTENCY_LINEARIZABLE,
            ),
            request_id=request_id,
        )
        reply: message_service_pb2.WaitCommittedResponse
        reply = await self._transport.unary(request, deadline_s)
        self._session.observe(account_id, reply.state)
        return reply.outcome == message_service_pb2.WAIT_OUTCOME_COMMITTED

"""AsyncClient: what has changed, what is where, what is found."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Unpack

from mailraft.client import calls
from mailraft.client.async_base import AsyncBase
from mailraft.client.calls import Mailbox
from mailraft.client.options import ObjectType, ReadArgs, SearchArgs
from mailraft.client.results import Page
from mailraft.client.settings import STREAM_DEADLINE_S
from mailraft.client.watching import Watching, WatchingShard
from mailraft.v1 import (
    blob_pb2,
    change_pb2,
    message_pb2,
    message_service_pb2,
    search_pb2,
)
from mailraft.wire import errors


class AsyncChanges(AsyncBase):
    """Reads that follow an account, or look into it."""

    async def list_changes(
        self,
        account_id: str,
        since_state: str,
        *,
        types: Sequence[ObjectType] = (),
        page_size: int = 0,
        **args: Unpack[ReadArgs],
    ) -> change_pb2.ListChangesResponse:
        """Ids of what changed since a state, each once: one page. While `more`, go on from its
        new_state. types: none for all.

        Raises StateTooOldError: list everything anew. Never leaves a change out.
        """
        request = change_pb2.ListChangesRequest(
            account_id=account_id,
            since_state=since_state,
            types=calls.object_types(types),
            page_size=page_size,
        )
        reply: change_pb2.ListChangesResponse = await self._read(request, args)
        return reply

    async def list_mailbox_changes(
        self,
        account_id: str,
        mailbox_id: str,
        uid_validity: int,
        since_modseq: int,
        *,
        known_ranges: Sequence[int] = (),
        page_size: int = 0,
        **args: Unpack[ReadArgs],
    ) -> change_pb2.ListMailboxChangesResponse:
        """What one mailbox changed since a MODSEQ, and the UIDs that vanished: one page. While
        `more`, go on from its new_modseq.

        Costs what the mailbox changed. Raises StateTooOldError, UidValidityMismatchError,
        MailboxNotFoundError.
        """
        request = change_pb2.ListMailboxChangesRequest(
            account_id=account_id,
            mailbox_id=mailbox_id,
            uid_validity=uid_validity,
            since_modseq=since_modseq,
            known_ranges=known_ranges,
            page_size=page_size,
        )
        reply: change_pb2.ListMailboxChangesResponse = await self._read(request, args)
        return reply

    async def watch(
        self, accounts: Sequence[str] | Mapping[str, str], *, types: Sequence[ObjectType] = ()
    ) -> AsyncGenerator[change_pb2.WatchResponse, None]:
        """Tells when accounts change, until it is closed: for each a `change` that says where it
        begins (subscribed), then one for each change or for several that followed fast.

        accounts: at most 10,000, with the states to go on from, "" or without: from now on. A
        broken stream is opened again and goes on where it was, so no change is left out. An `end`
        says that an account cannot be watched any more, and why; with STATE_TOO_OLD synchronise it
        anew. An `end` that may pass is not told: it is subscribed again.
        """
        watching = Watching(accounts, calls.object_types(types))
        while True:
            try:
                stream = self._transport.watch(watching.requests())
                async with aclosing(stream) as responses:
                    async for response in responses:
                        if watching.take(response):
                            yield response
                        if watching.broken or not watching.accounts:
                            break
                watching.ended()
            except errors.MailraftError as error:
                watching.failed(error)
            if not watching.accounts:
                return
            await self._transport.pause(watching.pause_s())

    async def watch_shard(
        self, shard: int, cursor: str = ""
    ) -> AsyncGenerator[change_pb2.WatchShardResponse, None]:
        """Tells of everything that changes in a shard, for indexers, until it is closed: in commit
        order within each account, each change at least once.

        cursor: of the last response that was dealt with, to go on behind it at any replica; "":
        from now on. A response without changes says how far it was told, every 15 s at least. A
        broken stream is opened again and goes on where it was. Raises ShardNotFoundError,
        StateTooOldError: index the shard anew.
        """
        watching = WatchingShard(shard, cursor)
        while True:
            try:
                stream = self._transport.stream(watching.request(), STREAM_DEADLINE_S)
                async with aclosing(stream) as responses:
                    async for response in responses:
                        watching.take(response)
                        yield response
                watching.ended()
            except errors.MailraftError as error:
                watching.failed(error)
            await self._transport.pause(watching.pause_s())

    async def get_threads(
        self, account_id: str, thread_ids: Sequence[str], **args: Unpack[ReadArgs]
    ) -> Sequence[message_pb2.Thread]:
        """The messages of threads, at most 100, oldest first; those that are gone are left out."""
        request = message_service_pb2.BatchGetThreadsRequest(
            account_id=account_id, thread_ids=thread_ids
        )
        reply: message_service_pb2.BatchGetThreadsResponse = await self._read(request, args)
        return reply.threads

    async def search_messages(
        self,
        account_id: str,
        only: search_pb2.MessageFilter | None = None,
        *,
        mailbox_id: str = "",
        page_token: str = "",
        **args: Unpack[SearchArgs],
    ) -> Page:
        """One page of what matches, in one mailbox or all; a page may be empty and not the last.

        Raises FilterUnsupportedError, MailboxNotFoundError, BadPageTokenError.
        """
        request = calls.search(account_id, only, mailbox_id, page_token, args)
        reply: search_pb2.SearchMessagesResponse = await self._read(request, args)
        return Page(reply.messages, reply.next_page_token, reply.state, reply.served)

    async def iter_search(
        self,
        account_id: str,
        only: search_pb2.MessageFilter | None = None,
        *,
        mailbox_id: str = "",
        **args: Unpack[SearchArgs],
    ) -> AsyncGenerator[message_pb2.Message, None]:
        """Every message that matches, page by page as search_messages."""
        page_token = ""
        while True:
            page = await self.search_messages(
                account_id, only, mailbox_id=mailbox_id, page_token=page_token, **args
            )
            for message in page.messages:
                yield message
            page_token = page.next_page_token
            if not page_token:
                return

    async def get_structure(
        self, account_id: str, message_id: str, **args: Unpack[ReadArgs]
    ) -> blob_pb2.GetStructureResponse:
        """The MIME parts of a message, each with its place in the bytes: fetch_body with that
        offset and length brings it, still transfer-encoded.

        Raises MessageNotFoundError, BlobCorruptError.
        """
        request = blob_pb2.GetStructureRequest(account_id=account_id, message_id=message_id)
        reply: blob_pb2.GetStructureResponse = await self._read(request, args)
        return reply

    async def list_uids(
        self, account_id: str, mailbox: Mailbox = calls.INBOX, **args: Unpack[ReadArgs]
    ) -> Sequence[tuple[int, int]]:
        """All UIDs of a mailbox as inclusive ranges; read page by page, so not at one state."""
        found: list[tuple[int, int]] = []
        page_token = ""
        while True:
            request = message_service_pb2.ListUidsRequest(
                account_id=account_id, page_token=page_token
            )
            calls.name_mailbox(request, mailbox)
            reply: message_service_pb2.ListUidsResponse = await self._read(request, args)
            found += zip(reply.ranges[::2], reply.ranges[1::2], strict=True)
            page_token = reply.next_page_token
            if not page_token:
                return found

"""AsyncClient: the API.

The source of sync_client.py: run tools/gen_sync_client.py after a change.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Self, Unpack

from mailraft.client import calls, content
from mailraft.client.async_changes import AsyncChanges
from mailraft.client.async_mutations import AsyncMutations
from mailraft.client.async_uploads import AsyncUploads
from mailraft.client.calls import Mailbox
from mailraft.client.options import (
    ListArgs,
    MailboxRole,
    MessageView,
    ReadArgs,
    ReadLevel,
    WriteArgs,
    WriteLevel,
)
from mailraft.client.results import (
    NewMessage,
    Page,
    Receipt,
    Recipient,
    receipt_of,
    with_refused,
)
from mailraft.client.session import Session
from mailraft.client.settings import STREAM_DEADLINE_S, PathLike, Settings
from mailraft.v1 import (
    account_pb2,
    blob_pb2,
    cluster_pb2,
    common_pb2,
    delivery_pb2,
    mailbox_pb2,
    message_pb2,
    message_service_pb2,
)
from mailraft.wire import errors, limits


class AsyncClient(AsyncChanges, AsyncMutations, AsyncUploads):
    """Mailboxes of a mailraft cluster.

        async with AsyncClient("127.0.0.1:7400", certs=".mailraft/certs") as mail:
            receipt = await mail.deliver(raw_bytes, to=["alice"])

    target: host:port of any router or node, or several to fall back on. certs: a folder with the
    client's certificate and the cluster's authority; without it `insecure` has to be True, and the
    target on loopback. name: whose certificate in the folder. direct: fetch the cluster map from
    the target and talk to the leaders, with no extra hop; False: send everything through the
    target (a router). compress: bodies with zstandard, before they are sent. deadline_s: of a call
    with all its retries, where the call does not say its own. session: what reads see at least;
    default: a new one. reads, writes: the level of calls that name none, for example
    reads={"consistency": Consistency.LOCAL}. zone: where this is, by the nodes' names of zones:
    reads that any replica may serve go to one there, unless it is busy.

    Nothing is sent before the first call. A call that is cancelled or whose deadline passes leaves
    nothing running here; a mutation may still take effect, and can be repeated by its request_id.

    One client serves any number of tasks of one event loop. Calls that run at the same time travel
    together, at no added wait for one that is alone; a batch goes on without those that gave up.

    Reads take ReadArgs and mutations WriteArgs as keywords. Every error of the store is one of
    mailraft.client.errors. What may be retried is retried until the deadline, mutations under the
    same request_id, so that they are done once. A mutation that is committed but not confirmed by
    as many replicas as its `ack` asked for raises LevelNotMetError, which carries the result.

    A mailbox is named by its id, a MailboxRole, or "INBOX" in any case for the role INBOX. It is
    never named by its name, which changes when it is renamed: list_mailboxes tells the ids.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        certs: PathLike | None = None,
        name: str = "client",
        insecure: bool = False,
        deadline_s: float = 10.0,
        compress: bool = True,
        direct: bool = True,
        session: Session | None = None,
        reads: ReadLevel | None = None,
        writes: WriteLevel | None = None,
        zone: str = "",
    ) -> None:
        settings = Settings.of(
            target, certs, name, insecure, deadline_s, direct, reads, writes, zone
        )
        super().__init__(settings, Session() if session is None else session, compress)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every call that runs, and every connection. A second time it does nothing."""
        await self._transport.close()

    @property
    def session(self) -> Session:
        """The states that reads at Consistency.SESSION show at least."""
        return self._session

    # --- accounts

    async def create_account(
        self,
        account_id: str,
        *,
        max_bytes: int = 0,
        max_messages: int = 0,
        attributes: Mapping[str, str] | None = None,
        undelete_window_ms: int = 0,
        **args: Unpack[WriteArgs],
    ) -> account_pb2.Account:
        """Creates an account with its INBOX.

        account_id: 1 to 255 bytes of UTF-8, taken as it is. max_bytes, max_messages: the quota,
        0 for none. attributes: stored, not interpreted. Raises AccountExistsError.
        """
        account = calls.account(max_bytes, max_messages, attributes, undelete_window_ms)
        request = account_pb2.CreateAccountRequest(account_id=account_id, account=account)
        reply: account_pb2.CreateAccountResponse = await self._write(request, args)
        return calls.met(reply.served, reply.account)

    async def get_account(self, account_id: str, **args: Unpack[ReadArgs]) -> account_pb2.Account:
        """The account with its quota and what is used of it. Raises AccountNotFoundError."""
        request = account_pb2.GetAccountRequest(account_id=account_id)
        reply: account_pb2.GetAccountResponse = await self._read(request, args)
        return reply.account

    async def list_accounts(
        self, *, shards: Sequence[int] = (), page_size: int = 0, **args: Unpack[ReadArgs]
    ) -> AsyncGenerator[account_pb2.Account, None]:
        """All accounts (of these shards), each once, in no meaningful order, page by page.

        The default level is the cluster's: a session is of one account. A shard that cannot be
        read ends it with that error.
        """
        page_token = ""
        while True:
            request = account_pb2.ListAccountsRequest(
                shards=shards,
                read_options=self._read_options("", args),
                page_size=page_size,
                page_token=page_token,
            )
            reply: account_pb2.ListAccountsResponse = await self._transport.unary(
                request, self._deadline_s(args)
            )
            for account in reply.accounts:
                yield account
            page_token = reply.next_page_token
            if not page_token:
                return

    async def update_account(
        self,
        account_id: str,
        *,
        max_bytes: int | None = None,
        max_messages: int | None = None,
        attributes: Mapping[str, str] | None = None,
        undelete_window_ms: int | None = None,
        etag: str = "",
        **args: Unpack[WriteArgs],
    ) -> account_pb2.Account:
        """Changes what is given and leaves the rest; attributes are replaced as a whole.

        etag: do it only if the account still has this one, else EtagMismatchError.
        """
        values = (max_bytes, max_messages, attributes, undelete_window_ms)
        request = account_pb2.UpdateAccountRequest(
            account_id=account_id,
            account=calls.account(*values, etag=etag),
            update_mask=calls.account_mask(*values),
        )
        reply: account_pb2.UpdateAccountResponse = await self._write(request, args)
        return calls.met(reply.served, reply.account)

    # --- mailboxes

    async def create_mailbox(
        self,
        account_id: str,
        name: str,
        *,
        parent_id: str = "",
        role: MailboxRole = MailboxRole.NONE,
        subscribed: bool = False,
        sort_order: int = 0,
        attributes: Mapping[str, str] | None = None,
        **args: Unpack[WriteArgs],
    ) -> mailbox_pb2.Mailbox:
        """Creates a mailbox below `parent_id`, or at the top.

        Raises MailboxExistsError (a sibling of that name), MailboxRoleExistsError,
        MailboxNotFoundError (the parent), LimitReachedError.
        """
        mailbox = mailbox_pb2.Mailbox(
            parent_id=parent_id,
            name=name,
            role=common_pb2.MailboxRole.ValueType(role),
            subscribed=subscribed,
            sort_order=sort_order,
            attributes=attributes,
        )
        request = mailbox_pb2.CreateMailboxRequest(account_id=account_id, mailbox=mailbox)
        reply: mailbox_pb2.CreateMailboxResponse = await self._write(request, args)
        return calls.met(reply.served, reply.mailbox)

    async def get_mailbox(
        self, account_id: str, mailbox: Mailbox, **args: Unpack[ReadArgs]
    ) -> mailbox_pb2.Mailbox:
        """The mailbox with its counts. Raises MailboxNotFoundError."""
        request = mailbox_pb2.GetMailboxRequest(account_id=account_id)
        calls.name_mailbox(request, mailbox)
        reply: mailbox_pb2.GetMailboxResponse = await self._read(request, args)
        return reply.mailbox

    async def list_mailboxes(
        self, account_id: str, **args: Unpack[ReadArgs]
    ) -> list[mailbox_pb2.Mailbox]:
        """All mailboxes of the account with their counts, by id."""
        found: list[mailbox_pb2.Mailbox] = []
        page_token = ""
        while True:
            request = mailbox_pb2.ListMailboxesRequest(
                account_id=account_id, page_size=calls.MAILBOXES_PAGE, page_token=page_token
            )
            reply: mailbox_pb2.ListMailboxesResponse = await self._read(request, args)
            found += reply.mailboxes
            page_token = reply.next_page_token
            if not page_token:
                return found

    # --- mail comes in

    async def deliver(
        self,
        raw: bytes,
        to: Sequence[str | Recipient],
        *,
        keywords: Sequence[str] = (),
        internal_time: datetime | None = None,
        **args: Unpack[WriteArgs],
    ) -> Receipt:
        """Delivers one mail to the INBOX of each recipient, or where the Recipient says.

        With one recipient its error is raised. With several each has its own outcome, also where
        nobody could be reached: see Receipt.failed and Receipt.raise_for_failures(). `if_in_state`
        is not allowed. keywords: for all. internal_time: None for the leader's time. Above 1 MiB it
        is uploaded to each recipient's account first, one after the other, and deadline_s is of
        each of these calls. Raises MessageTooLargeError above 50 MiB.
        """
        args["request_id"] = calls.request_id(args)
        told = taken = calls.recipients(to)
        refused: dict[str, errors.MailraftError] = {}
        if len(raw) > limits.UPLOAD_ABOVE_BYTES:
            taken, refused = await self._upload_for(raw, told, args)
            raw = b""
        receipt = None
        if taken or not refused:
            receipt = await self._deliver(raw, taken, keywords, internal_time, args)
        if receipt is None or refused:
            receipt = with_refused(args["request_id"], told, receipt, refused)
        if len(receipt.recipients) == 1:
            receipt.raise_for_failures()
        return receipt

    async def _deliver(
        self,
        raw: bytes,
        to: Sequence[Recipient],
        keywords: Sequence[str],
        internal_time: datetime | None,
        args: WriteArgs,
    ) -> Receipt:
        delivery = calls.delivery(raw, to, keywords, internal_time, args, self._packing())
        result = await self._transport.deliver(
            delivery, self._write_options(args), self._deadline_s(args)
        )
        receipt = receipt_of(delivery, result)
        for each in receipt.recipients:
            self._session.observe(each.account_id, each.state)
        return receipt

    async def append(
        self,
        account_id: str,
        messages: Sequence[bytes | NewMessage],
        mailbox: Mailbox = calls.INBOX,
        **args: Unpack[WriteArgs],
    ) -> Sequence[delivery_pb2.AppendedMessage]:
        """Appends messages to a mailbox, all or none, in this order; at most 256 and 4 MiB. Those
        above 1 MiB do not count for that, up to 50 MiB each: they are uploaded first.

        Raises MailboxNotFoundError, OverQuotaError, MessageTooLargeError.
        """
        args["request_id"] = calls.request_id(args)
        messages = await self._upload_large(account_id, messages, args)
        packing = self._packing()
        items = [calls.append_item(each, mailbox, packing) for each in messages]
        request = delivery_pb2.AppendMessagesRequest(account_id=account_id, messages=items)
        reply: delivery_pb2.AppendMessagesResponse = await self._write(request, args)
        return calls.met(reply.served, reply.messages)

    # --- messages

    async def get_message(
        self,
        account_id: str,
        message_id: str,
        *,
        view: MessageView = MessageView.BASIC,
        **args: Unpack[ReadArgs],
    ) -> message_pb2.Message:
        """One message, without its bytes. Raises MessageNotFoundError."""
        request = message_service_pb2.GetMessageRequest(
            account_id=account_id,
            message_id=message_id,
            view=message_pb2.MessageView.ValueType(view),
        )
        reply: message_service_pb2.GetMessageResponse = await self._read(request, args)
        return reply.message

    async def get_messages(
        self,
        account_id: str,
        messages: Sequence[str] | common_pb2.UidSet,
        *,
        page_token: str = "",
        view: MessageView = MessageView.BASIC,
        **args: Unpack[ReadArgs],
    ) -> Page:
        """Messages by at most 1,000 ids, in that order, or by UIDs of one mailbox, in UID order.

        A page ends where the reply is full: go on with its next_page_token. Ids that do not exist
        are in Page.not_found_ids, UIDs that do not are passed over. Raises MailboxNotFoundError,
        UidValidityMismatchError.
        """
        request = message_service_pb2.BatchGetMessagesRequest(
            account_id=account_id,
            messages=calls.selector(messages),
            view=message_pb2.MessageView.ValueType(view),
            page_token=page_token,
        )
        reply: message_service_pb2.BatchGetMessagesResponse = await self._read(request, args)
        return Page(
            reply.messages, reply.next_page_token, reply.state, reply.served, reply.not_found_ids
        )

    async def list_messages(
        self,
        account_id: str,
        mailbox: Mailbox = calls.INBOX,
        *,
        page_token: str = "",
        **args: Unpack[ListArgs],
    ) -> Page:
        """One page of a mailbox, at the same cost wherever it is in a mailbox of any size.

        page_token: of the page before, with the same other arguments (BadPageTokenError); it stays
        valid while mail arrives and goes. Raises MailboxNotFoundError, UidValidityMismatchError,
        FilterUnsupportedError.
        """
        request = calls.list_messages(account_id, mailbox, page_token, args)
        reply: message_service_pb2.ListMessagesResponse = await self._read(request, args)
        return calls.page_of(reply)

    async def iter_messages(
        self, account_id: str, mailbox: Mailbox = calls.INBOX, **args: Unpack[ListArgs]
    ) -> AsyncGenerator[message_pb2.Message, None]:
        """Every message of a mailbox, page by page as list_messages: deadline_s is of a page.

        What is there from beginning to end comes exactly once.
        """
        page_token = ""
        while True:
            page = await self.list_messages(account_id, mailbox, page_token=page_token, **args)
            for message in page.messages:
                yield message
            page_token = page.next_page_token
            if not page_token:
                return

    # --- bytes

    async def fetch_body(
        self,
        account_id: str,
        message_id: str,
        *,
        offset: int = 0,
        length: int | None = None,
        **args: Unpack[ReadArgs],
    ) -> bytes:
        """The bytes of a message as they were delivered, or `length` of them from `offset` on.

        A whole body is compared with its SHA-256; a part's size is. Raises IntegrityError when they
        differ, MessageNotFoundError, BlobCorruptError.
        """
        if length == 0:
            return b""
        request = calls.get_blob(account_id, message_id, offset, length)
        reply: blob_pb2.GetBlobResponse = await self._read(request, args)
        data = content.decode(reply.content)
        if len(data) == reply.size_bytes and reply.content.WhichOneof("encoding") == "raw":
            content.verify_sha256(hashlib.sha256(data).digest(), reply.sha256)
        missing = calls.missing_bytes(reply.size_bytes, offset, length, len(data))
        if not missing:
            return data
        body = bytearray(data)
        rest = calls.download(account_id, message_id, offset + len(data), missing)
        async with aclosing(self._chunks(rest, args, before=data)) as chunks:
            async for chunk in chunks:
                body += chunk
        return bytes(body)

    async def download(
        self,
        account_id: str,
        message_id: str,
        *,
        offset: int = 0,
        length: int | None = None,
        **args: Unpack[ReadArgs],
    ) -> AsyncGenerator[bytes, None]:
        """The bytes as fetch_body, in chunks of at most 256 KiB, each verified by its CRC-32C.

        A whole body is also compared with its SHA-256, after its last chunk. An interrupted
        download goes on where it was. deadline_s is of the whole, by default 300.
        """
        if length == 0:
            return
        request = calls.download(account_id, message_id, offset, length)
        async with aclosing(self._chunks(request, args)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _chunks(
        self, request: blob_pb2.DownloadBlobRequest, args: ReadArgs, before: bytes = b""
    ) -> AsyncGenerator[bytes, None]:
        request.read_options.CopyFrom(self._read_options(request.account_id, args))
        end_s = time.monotonic() + args.get("deadline_s", STREAM_DEADLINE_S)
        download = content.Download(request, before)
        while not download.complete:
            got_bytes, left_s = download.received_bytes, end_s - time.monotonic()
            try:
                stream = self._transport.stream(download.request(), left_s)
                async with aclosing(stream) as parts:
                    async for part in parts:
                        if data := download.feed(part):
                            yield data
                break
            except errors.StateTooOldError:
                self._session.forget(request.account_id)
                raise
            except errors.UnavailableError:
                if time.monotonic() >= end_s:
                    raise errors.DeadlineExceededError from None
                if download.received_bytes == got_bytes:
                    raise
        download.finish()
        self._session.observe(request.account_id, download.state)

    # --- the cluster

    async def locate(self, account_id: str) -> cluster_pb2.LocateResponse:
        """Where the account is or would be: slot, shard with its leader, nodes."""
        request = cluster_pb2.LocateRequest(account_id=account_id)
        reply: cluster_pb2.LocateResponse = await self._ask(request)
        return reply

    async def cluster_map(self) -> cluster_pb2.ClusterMap:
        """Nodes, shards and who leads them, as the target knows."""
        request = cluster_pb2.GetClusterMapRequest()
        reply: cluster_pb2.GetClusterMapResponse = await self._ask(request)
        return reply.map

    async def capabilities(self) -> cluster_pb2.GetCapabilitiesResponse:
        """Limits, levels and features of this cluster."""
        request = cluster_pb2.GetCapabilitiesRequest()
        reply: cluster_pb2.GetCapabilitiesResponse = await self._ask(request)
        return reply

"""A store in a dict behind a real gRPC server: what the tests of the client talk to.

No test is in here. It keeps no promise of mailraft but the ones that the client builds on.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import grpc
import zstandard
from google.protobuf import message_factory

from mailraft.v1 import (
    account_pb2,
    batch_pb2,
    blob_pb2,
    cluster_pb2,
    common_pb2,
    delivery_pb2,
    mailbox_pb2,
    message_pb2,
    message_service_pb2,
)
from mailraft.wire import credentials, errors, slots, tokens

SERVICES = (account_pb2, batch_pb2, blob_pb2, cluster_pb2, mailbox_pb2, message_service_pb2)
MAIL = b"From: bob@example.org\r\nSubject: hello\r\n\r\n" + b"All is well.\r\n" * 50
NOISE = hashlib.shake_128(b"mail").digest(2_500_000)  # does not compress
INBOX_ID = tokens.mailbox_id(1)
CHUNK = 256 * 1024


@dataclass
class FakeAccount:
    account: account_pb2.Account
    modseq: int = 1
    mailboxes: dict[str, mailbox_pb2.Mailbox] = field(default_factory=dict)
    messages: dict[str, message_pb2.Message] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)

    @property
    def state(self) -> str:
        return tokens.encode_state(tokens.State(1, 1, self.modseq))


class FakeStore:
    """What a cluster of one node and one shard answers. Nothing of it is on disk."""

    def __init__(self) -> None:
        self.accounts: dict[str, FakeAccount] = {}
        self.remembered: dict[tuple[str, bytes], Any] = {}
        self.calls: list[tuple[str, Any]] = []  # gRPC calls
        self.requests: list[tuple[str, Any]] = []  # those, with what batches hold instead of them
        self.failures: dict[str, list[errors.MailraftError]] = {}  # answered after the work is done
        self.refusals: dict[str, list[errors.MailraftError]] = {}  # answered instead of it
        self.level_met: common_pb2.LevelMet.ValueType = common_pb2.LEVEL_MET_YES
        self.delay_s = 0.0
        self.break_after_chunks: list[int] = []
        self.uploads: dict[tuple[str, bytes], bytearray] = {}
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.damage: Callable[[bytes], bytes] = lambda data: data
        self.running = 0
        self.address = ""
        self.leader_address = ""

    def asked(self, method: str) -> list[Any]:
        return [request for name, request in self.requests if name == method]

    # --- what serves the calls

    async def unary(self, method: str, request: Any, context: Any) -> Any:
        self.calls.append((method, request))
        self.running += 1
        try:
            await asyncio.sleep(self.delay_s)
            return self.answer(method, request)
        except errors.MailraftError as error:
            await errors.abort(context, error)
        finally:
            self.running -= 1

    def answer(self, method: str, request: Any) -> Any:
        if method != "Execute":
            self.requests.append((method, request))
        if self.leader_address and method not in ("Execute", "GetClusterMap", "DeliverMessages"):
            raise self.not_leader()
        if refusals := self.refusals.get(method):
            raise refusals.pop(0)
        key = (getattr(request, "account_id", ""), getattr(request, "request_id", b""))
        reply = self.remembered.get(key) if key[1] else None
        if reply is None:
            reply = getattr(self, method)(request)
            self.remembered[key] = reply
        if failures := self.failures.get(method):
            raise failures.pop(0)
        return reply

    def not_leader(self) -> errors.MailraftError:
        detail = errors.NotLeaderError.detail_type(
            shard=1,
            term=9,
            leader_replica_id=2,
            leader_node_id=2,
            leader_address=self.leader_address,
        )
        return errors.NotLeaderError(detail=detail)

    def served(self) -> common_pb2.Served:
        return common_pb2.Served(
            level_met=self.level_met, committed=True, complete=True, shard=1, map_epoch=1
        )

    def account(self, account_id: str) -> FakeAccount:
        if account_id not in self.accounts:
            raise errors.AccountNotFoundError(f"no account {account_id!r}")
        return self.accounts[account_id]

    def Execute(self, request: batch_pb2.ExecuteRequest) -> batch_pb2.ExecuteResponse:
        reply = batch_pb2.ExecuteResponse()
        for item in request.items:
            kind = item.WhichOneof("request")
            assert kind is not None
            result = reply.results.add()
            method = "".join(word.capitalize() for word in kind.split("_"))
            try:
                getattr(result, kind).CopyFrom(self.answer(method, getattr(item, kind)))
            except errors.MailraftError as error:
                result.error.CopyFrom(error.to_status())
        return reply

    # --- accounts and mailboxes

    def CreateAccount(self, request: Any) -> account_pb2.CreateAccountResponse:
        if request.account_id in self.accounts:
            raise errors.AccountExistsError
        request.account.account_id = request.account_id
        inbox = mailbox_pb2.Mailbox(id=INBOX_ID, name="INBOX", role=common_pb2.MAILBOX_ROLE_INBOX)
        made = FakeAccount(request.account, mailboxes={INBOX_ID: inbox})
        self.accounts[request.account_id] = made
        return account_pb2.CreateAccountResponse(
            state=made.state, served=self.served(), account=made.account, inbox_id=INBOX_ID
        )

    def GetAccount(self, request: Any) -> account_pb2.GetAccountResponse:
        found = self.account(request.account_id)
        return account_pb2.GetAccountResponse(
            state=found.state, served=self.served(), account=found.account
        )

    def ListAccounts(self, request: Any) -> account_pb2.ListAccountsResponse:
        first = int(request.page_token or 0)
        last = first + (request.page_size or 100)
        names = sorted(self.accounts)
        return account_pb2.ListAccountsResponse(
            accounts=[self.accounts[name].account for name in names[first:last]],
            next_page_token=str(last) if last < len(names) else "",
        )

    def UpdateAccount(self, request: Any) -> account_pb2.UpdateAccountResponse:
        found = self.account(request.account_id)
        request.update_mask.MergeMessage(request.account, found.account, True, True)
        found.modseq += 1
        return account_pb2.UpdateAccountResponse(
            state=found.state, served=self.served(), account=found.account
        )

    def CreateMailbox(self, request: Any) -> mailbox_pb2.CreateMailboxResponse:
        found = self.account(request.account_id)
        if any(request.mailbox.name == each.name for each in found.mailboxes.values()):
            raise errors.MailboxExistsError
        request.mailbox.id = tokens.mailbox_id(len(found.mailboxes) + 1)
        found.mailboxes[request.mailbox.id] = request.mailbox
        found.modseq += 1
        return mailbox_pb2.CreateMailboxResponse(
            state=found.state, served=self.served(), mailbox=request.mailbox
        )

    def GetMailbox(self, request: Any) -> mailbox_pb2.GetMailboxResponse:
        found = self.account(request.account_id)
        mailbox = found.mailboxes[self.mailbox_id(found, request)]
        return mailbox_pb2.GetMailboxResponse(
            state=found.state, served=self.served(), mailbox=mailbox
        )

    def ListMailboxes(self, request: Any) -> mailbox_pb2.ListMailboxesResponse:
        found = self.account(request.account_id)
        return mailbox_pb2.ListMailboxesResponse(
            state=found.state, served=self.served(), mailboxes=found.mailboxes.values()
        )

    def mailbox_id(self, found: FakeAccount, request: Any) -> str:
        wanted = request.mailbox_id
        if request.WhichOneof("mailbox") == "mailbox_role":
            roles = {each.role: each.id for each in found.mailboxes.values()}
            wanted = roles.get(request.mailbox_role)
        if wanted not in found.mailboxes:
            raise errors.MailboxNotFoundError
        return str(wanted)

    # --- messages

    def add(self, found: FakeAccount, content: Any, targets: Any, keywords: Any) -> Any:
        number = len(found.messages) + 1
        raw = content.raw
        if content.HasField("zstd"):
            raw = zstandard.ZstdDecompressor().decompress(content.zstd.data)
            assert hashlib.sha256(raw).digest() == content.zstd.sha256
        found.modseq += 1
        ids = [target.mailbox_id or INBOX_ID for target in targets] or [INBOX_ID]
        message = message_pb2.Message(
            id=tokens.message_id(number),
            blob_id=tokens.blob_id(number, 0),
            size_bytes=len(raw),
            keywords=keywords,
            modseq=found.modseq,
            memberships=[message_pb2.Membership(mailbox_id=each, uid=number) for each in ids],
        )
        found.messages[message.id] = message
        found.bodies[message.id] = raw
        return message

    def DeliverMessages(self, request: Any) -> delivery_pb2.DeliverMessagesResponse:
        reply = delivery_pb2.DeliverMessagesResponse()
        for delivery in request.deliveries:
            result = reply.results.add()
            for recipient in delivery.recipients:
                self.requests.append(("deliver", delivery))
                result.recipients.append(self.deliver(delivery, recipient))
        return reply

    def deliver(self, delivery: Any, recipient: Any) -> delivery_pb2.RecipientResult:
        key = (recipient.account_id, delivery.request_id)
        try:
            if self.leader_address:
                raise self.not_leader()
            if key not in self.remembered:
                found = self.account(recipient.account_id)
                content = delivery.content
                if recipient.blob_id:
                    raw = self.blobs[recipient.account_id, recipient.blob_id]
                    content = delivery_pb2.Content(raw=raw)
                message = self.add(found, content, recipient.targets, recipient.keywords)
                self.remembered[key] = delivery_pb2.RecipientResult(
                    message_id=message.id,
                    memberships=message.memberships,
                    state=found.state,
                    served=self.served(),
                )
            if failures := self.failures.get("deliver"):
                raise failures.pop(0)
        except errors.MailraftError as error:
            return delivery_pb2.RecipientResult(
                code=error.code.value[0],
                reason=error.reason,
                message=error.message,
                retry_after_ms=error.retry_after_ms or 0,
            )
        result: delivery_pb2.RecipientResult = self.remembered[key]
        return result

    def AppendMessages(self, request: Any) -> delivery_pb2.AppendMessagesResponse:
        found = self.account(request.account_id)
        made = []
        for item in request.messages:
            content = item.content
            if item.blob_id:
                content = delivery_pb2.Content(raw=self.blobs[request.account_id, item.blob_id])
            made.append(self.add(found, content, item.targets, item.keywords))
        return delivery_pb2.AppendMessagesResponse(
            state=found.state,
            served=self.served(),
            messages=[
                delivery_pb2.AppendedMessage(message_id=each.id, memberships=each.memberships)
                for each in made
            ],
        )

    def GetMessage(self, request: Any) -> message_service_pb2.GetMessageResponse:
        found = self.account(request.account_id)
        if request.message_id not in found.messages:
            raise errors.MessageNotFoundError
        return message_service_pb2.GetMessageResponse(
            state=found.state, served=self.served(), message=found.messages[request.message_id]
        )

    def BatchGetMessages(self, request: Any) -> message_service_pb2.BatchGetMessagesResponse:
        found = self.account(request.account_id)
        ids = request.messages.ids.ids
        return message_service_pb2.BatchGetMessagesResponse(
            state=found.state,
            served=self.served(),
            messages=[found.messages[each] for each in ids if each in found.messages],
            not_found_ids=[each for each in ids if each not in found.messages],
        )

    def ListMessages(self, request: Any) -> message_service_pb2.ListMessagesResponse:
        found = self.account(request.account_id)
        mailbox_id = self.mailbox_id(found, request)
        listed = [
            message
            for message in found.messages.values()
            if any(each.mailbox_id == mailbox_id for each in message.memberships)
        ]
        if request.order == message_pb2.MESSAGE_ORDER_UID_DESC:
            listed.reverse()
        first = int(request.page_token or 0)
        last = first + (request.page_size or 100)
        return message_service_pb2.ListMessagesResponse(
            state=found.state,
            served=self.served(),
            messages=listed[first:last],
            next_page_token=str(last) if last < len(listed) else "",
            mailbox_id=mailbox_id,
            total_messages=len(listed),
        )

    # --- bytes

    def GetBlob(self, request: Any) -> blob_pb2.GetBlobResponse:
        found = self.account(request.account_id)
        raw = found.bodies[request.message_id]
        length = min(request.length_bytes or len(raw), 1024 * 1024)
        part = raw[request.offset_bytes : request.offset_bytes + length]
        reply = blob_pb2.GetBlobResponse(
            state=found.state,
            served=self.served(),
            blob_id=found.messages[request.message_id].blob_id,
            size_bytes=len(raw),
            offset_bytes=request.offset_bytes,
            sha256=hashlib.sha256(raw).digest(),
        )
        if request.accept_zstd and part == raw:
            reply.content.zstd.data = zstandard.ZstdCompressor().compress(self.damage(raw))
            reply.content.zstd.size_bytes = len(raw)
            reply.content.zstd.sha256 = hashlib.sha256(raw).digest()
        else:
            reply.content.raw = part
        return reply

    async def stream(self, method: str, request: Any, context: Any) -> AsyncIterator[Any]:
        self.calls.append((method, request))
        self.requests.append((method, request))
        self.running += 1
        try:
            async for part in getattr(self, method)(request, context):
                yield part
        finally:
            self.running -= 1

    async def DownloadBlob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        raw = self.account(request.account_id).bodies[request.message_id]
        header = blob_pb2.DownloadHeader(
            blob_id="B1-0", size_bytes=len(raw), sha256=hashlib.sha256(raw).digest()
        )
        yield blob_pb2.DownloadBlobResponse(header=header)
        end = request.offset_bytes + (request.length_bytes or len(raw))
        part = self.damage(raw)[request.offset_bytes : end]
        breaks_after = self.break_after_chunks.pop(0) if self.break_after_chunks else -1
        for number, start in enumerate(range(0, len(part), CHUNK)):
            if number == breaks_after:
                await errors.abort(context, errors.ShuttingDownError())
            data = part[start : start + CHUNK]
            chunk = blob_pb2.BlobChunk(data=data, crc32c=google_crc32c.value(data))
            yield blob_pb2.DownloadBlobResponse(chunk=chunk)

    async def UploadBlob(self, requests: AsyncIterator[Any], context: Any) -> Any:
        """Breaks as `break_after_chunks` says, keeping what came until then."""
        header = (await anext(requests)).header
        self.requests.append(("UploadBlob", header))
        found = self.account(header.account_id)
        key = header.account_id, header.request_id
        kept = self.uploads.setdefault(key, bytearray())
        if header.offset_bytes != len(kept):
            detail = errors.UploadOffsetMismatchError.detail_type(offset_bytes=len(kept))
            await errors.abort(context, errors.UploadOffsetMismatchError(detail=detail))
        breaks_after = self.break_after_chunks.pop(0) if self.break_after_chunks else -1
        while len(kept) < header.size_bytes:
            if not breaks_after:
                await errors.abort(context, errors.ShuttingDownError())
            breaks_after -= 1
            chunk = (await anext(requests)).chunk
            assert google_crc32c.value(chunk.data) == chunk.crc32c
            kept += chunk.data
        assert hashlib.sha256(kept).digest() == header.sha256
        blob_id = tokens.blob_id(1_000 + len(self.blobs), 0)
        self.blobs[header.account_id, blob_id] = bytes(kept)
        return blob_pb2.UploadBlobResponse(
            state=found.state, served=self.served(), blob_id=blob_id, size_bytes=len(kept)
        )

    # --- the cluster

    def map(self) -> cluster_pb2.ClusterMap:
        shard = cluster_pb2.Shard(
            id=1,
            replicas=[
                cluster_pb2.Replica(replica_id=1, node_id=1, role=cluster_pb2.REPLICA_ROLE_VOTER)
            ],
            leader=cluster_pb2.LeaderHint(shard=1, node_id=1, replica_id=1, term=1),
        )
        node = cluster_pb2.Node(
            id=1, name="node-1", address=self.address, state=cluster_pb2.NODE_STATE_ACTIVE
        )
        return cluster_pb2.ClusterMap(
            cluster_id="test",
            epoch=1,
            slot_count=slots.SLOTS,
            slots=[cluster_pb2.SlotRange(first_slot=0, last_slot=slots.SLOTS - 1, shard=1)],
            shards=[shard],
            nodes=[node],
        )

    def GetClusterMap(self, request: Any) -> cluster_pb2.GetClusterMapResponse:
        return cluster_pb2.GetClusterMapResponse(map=self.map())

    async def WatchClusterMap(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield cluster_pb2.WatchClusterMapResponse(map=self.map(), epoch=1)
        await asyncio.Event().wait()

    def Locate(self, request: Any) -> cluster_pb2.LocateResponse:
        return cluster_pb2.LocateResponse(
            slot=slots.slot_of(request.account_id), shard=self.map().shards[0], epoch=1
        )

    def GetCapabilities(self, request: Any) -> cluster_pb2.GetCapabilitiesResponse:
        return cluster_pb2.GetCapabilitiesResponse(cluster_id="test", version="0.1.0")


def handlers_of(store: FakeStore) -> Iterator[Any]:
    """Handlers for all methods of the services that the store answers."""
    for module in SERVICES:
        for service in module.DESCRIPTOR.services_by_name.values():
            handlers = {m.name: handler_of(store, m) for m in service.methods}
            yield grpc.method_handlers_generic_handler(service.full_name, handlers)


def handler_of(store: FakeStore, method: Any) -> grpc.RpcMethodHandler[Any, Any]:
    """The handler of one method."""

    async def unary(request: Any, context: Any) -> Any:
        return await store.unary(method.name, request, context)

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        async for part in store.stream(method.name, request, context):
            yield part

    async def upload(requests: AsyncIterator[Any], context: Any) -> Any:
        try:
            return await store.UploadBlob(requests, context)
        except errors.MailraftError as error:
            await errors.abort(context, error)

    parse = message_factory.GetMessageClass(method.input_type).FromString
    if method.client_streaming and not method.server_streaming:
        return grpc.stream_unary_rpc_method_handler(
            upload, request_deserializer=parse, response_serializer=serialize
        )
    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(
            stream, request_deserializer=parse, response_serializer=serialize
        )
    return grpc.unary_unary_rpc_method_handler(
        unary, request_deserializer=parse, response_serializer=serialize
    )


def serialize(message: Any) -> bytes:
    """Typed as gRPC wants it."""
    return bytes(message.SerializeToString())


@asynccontextmanager
async def serving(store: FakeStore) -> AsyncIterator[FakeStore]:
    """Serves a store on a free port of loopback, which it then knows as its address."""
    server = grpc.aio.server(options=credentials.SERVER_OPTIONS)
    server.add_generic_rpc_handlers(tuple(handlers_of(store)))
    port = credentials.add_port(server, "127.0.0.1:0", credentials.Insecure())
    store.address = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield store
    finally:
        await server.stop(None)

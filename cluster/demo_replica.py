"""One replica of one shard, asked at its node and nowhere else: LOCAL, require_replica, checked."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc
import zstandard

from mailraft.cluster.errors import ClusterError, NotReadyError
from mailraft.v1 import (
    batch_pb2,
    batch_pb2_grpc,
    blob_pb2,
    common_pb2,
    message_pb2,
    message_service_pb2,
)
from mailraft.wire import errors

CATCH_UP_DEADLINE_S = 60.0
CATCH_UP_POLL_S = 0.05
CALL_DEADLINE_S = 20.0
PAGE_SIZE = 1_000
BATCH_ITEMS = 64
BATCH_BYTES = 2 * 1024 * 1024


class ReadBackError(ClusterError):
    """A replica does not answer as it must."""

    reason = "READ_BACK"


@dataclass(frozen=True, slots=True)
class Body:
    """What a replica gave back for one message."""

    size_bytes: int
    sha256: bytes


class Replica:
    """Reads all that one replica holds of an account."""

    def __init__(self, channel: grpc.aio.Channel, place: str, replica_id: int) -> None:
        self.place, self.replica_id = place, replica_id
        self._batch = batch_pb2_grpc.BatchServiceStub(channel)
        self._options = common_pb2.ReadOptions(
            consistency=common_pb2.CONSISTENCY_LOCAL, require_replica=replica_id
        )

    async def catch_up(self, account: str, index: int) -> None:
        """Wait until this replica has applied the log up to an index. Raises NotReadyError."""
        until_s = time.monotonic() + CATCH_UP_DEADLINE_S
        applied, problem = 0, ""
        while applied < index:
            try:
                applied = (await self._page(account, "", 1)).served.index
            except errors.MailraftError as error:  # it may be starting still
                problem = f": {error.message}"
            if time.monotonic() > until_s:
                raise NotReadyError(
                    f"{self.place} has applied {applied} of {index} log entries of a shard"
                    f" after {CATCH_UP_DEADLINE_S:.0f} s{problem}"
                )
            if applied < index:
                await asyncio.sleep(CATCH_UP_POLL_S)

    async def listing(self, account: str) -> list[message_pb2.Message]:
        """Every message of the account's INBOX."""
        found: list[message_pb2.Message] = []
        token = ""
        while True:
            page = await self._page(account, token, PAGE_SIZE)
            found += page.messages
            token = page.next_page_token
            if not token:
                return found

    async def bodies(
        self, account: str, messages: Sequence[message_pb2.Message]
    ) -> dict[str, Body | str]:
        """By message id: the body's size and hash, or why it cannot be had."""
        found: dict[str, Body | str] = {}
        for batch in _batches(messages):
            parts = await self._get(account, [(message.id, 0) for message in batch])
            for message, part in zip(batch, parts, strict=True):
                found[message.id] = await self._whole(account, message.id, part)
        return found

    async def _page(
        self, account: str, token: str, size: int
    ) -> message_service_pb2.ListMessagesResponse:
        request = message_service_pb2.ListMessagesRequest(
            account_id=account,
            read_options=self._options,
            mailbox_role=common_pb2.MAILBOX_ROLE_INBOX,
            page_size=size,
            page_token=token,
        )
        (result,) = await self._run([batch_pb2.BatchItem(list_messages=request)])
        if result.WhichOneof("result") != "list_messages":
            raise errors.from_status(result.error)
        self._check(result.list_messages.served)
        return result.list_messages

    async def _get(
        self, account: str, wanted: Sequence[tuple[str, int]]
    ) -> list[blob_pb2.GetBlobResponse | str]:
        """Pieces of bodies, each from an offset on, or why not."""
        requests = [
            blob_pb2.GetBlobRequest(
                account_id=account,
                read_options=self._options,
                message_id=message_id,
                offset_bytes=offset,
                accept_zstd=True,
            )
            for message_id, offset in wanted
        ]
        pieces: list[blob_pb2.GetBlobResponse | str] = []
        for result in await self._run([batch_pb2.BatchItem(get_blob=each) for each in requests]):
            if result.WhichOneof("result") == "get_blob":
                self._check(result.get_blob.served)
                pieces.append(result.get_blob)
            else:
                error = errors.from_status(result.error)
                pieces.append(f"{error.name}: {error.message}")
        return pieces

    async def _run(self, items: Sequence[batch_pb2.BatchItem]) -> Sequence[batch_pb2.BatchResult]:
        request = batch_pb2.ExecuteRequest(items=items)
        try:
            reply = await self._batch.Execute(request, timeout=CALL_DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            raise errors.from_rpc_error(error) from error
        return reply.results

    async def _whole(
        self, account: str, message_id: str, piece: blob_pb2.GetBlobResponse | str
    ) -> Body | str:
        """Read on until the body is whole: a reply holds 1 MiB at most."""
        digest, size_bytes = hashlib.sha256(), 0
        while isinstance(piece, blob_pb2.GetBlobResponse):
            data = _opened(piece)
            digest.update(data)
            size_bytes += len(data)
            if size_bytes >= piece.size_bytes or not data:
                return Body(size_bytes, digest.digest())
            (piece,) = await self._get(account, [(message_id, size_bytes)])
        return piece

    def _check(self, served: common_pb2.Served) -> None:
        if served.replica_id != self.replica_id:
            raise ReadBackError(
                f"{self.place}: replica {self.replica_id} was asked, {served.replica_id} answered"
            )
        if served.consistency_met != common_pb2.CONSISTENCY_LOCAL:
            raise ReadBackError(f"{self.place} did not answer at LOCAL")


def _opened(part: blob_pb2.GetBlobResponse) -> bytes:
    if part.content.WhichOneof("encoding") == "zstd":
        frame = part.content.zstd
        return zstandard.ZstdDecompressor().decompress(frame.data, max_output_size=frame.size_bytes)
    return part.content.raw


def _batches(messages: Sequence[message_pb2.Message]) -> Iterator[list[message_pb2.Message]]:
    batch: list[message_pb2.Message] = []
    size_bytes = 0
    for message in messages:
        if batch and (len(batch) == BATCH_ITEMS or size_bytes + message.size_bytes > BATCH_BYTES):
            yield batch
            batch, size_bytes = [], 0
        batch.append(message)
        size_bytes += message.size_bytes
    if batch:
        yield batch

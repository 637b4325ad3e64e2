"""The calls of AsyncClient that send large messages.

Like every async_*.py that has a twin: run tools/gen_sync_client.py after a change.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import BinaryIO, Unpack

from mailraft.client import calls, content
from mailraft.client.async_base import AsyncBase
from mailraft.client.ids import following_id
from mailraft.client.options import WriteArgs
from mailraft.client.results import NewMessage, Recipient
from mailraft.client.settings import STREAM_DEADLINE_S
from mailraft.v1 import blob_pb2
from mailraft.wire import errors, limits

_PAUSE_S = 0.2
# What passes: the upload goes on under the same request id, where it got to.
_TRANSIENT = (errors.UnavailableError, errors.OverloadedError, errors.DeadlineExceededError)


class AsyncUploads(AsyncBase):
    """Calls of AsyncClient."""

    async def upload(
        self, account_id: str, data: bytes | BinaryIO, **args: Unpack[WriteArgs]
    ) -> str:
        """Stores bytes, up to 50 MiB, for messages of this account; tells their blob id.

        data: bytes, or a binary file that can seek, from where it stands to its end. It is sent in
        chunks, none ahead of what the servers have stored; one that breaks off goes on where it
        was, under the same request_id in another process too. The blob is for Recipient.blob_id
        and NewMessage.blob_id of this account, for 24 hours or as long as a message refers to it.
        deadline_s: of the whole, by default 300. Raises MessageTooLargeError, OverQuotaError.
        """
        options = self._write_options(args)
        upload = content.Upload(account_id, data, calls.request_id(args), options)
        end_s = time.monotonic() + args.get("deadline_s", STREAM_DEADLINE_S)
        await self._transport.apart(upload.measure)
        while True:
            try:
                reply: blob_pb2.UploadBlobResponse = await self._transport.upload(
                    upload, end_s - time.monotonic()
                )
            except errors.UploadOffsetMismatchError as error:
                upload.go_on(error)
            except _TRANSIENT as error:
                pause_s = max(_PAUSE_S, (error.retry_after_ms or 0) / 1000)
                if time.monotonic() + pause_s >= end_s:
                    raise
                await self._transport.pause(pause_s)
            else:
                self._session.observe(account_id, reply.state)
                return calls.met(reply.served, reply.blob_id)

    async def _upload_for(
        self, raw: bytes, to: Sequence[Recipient], args: WriteArgs
    ) -> tuple[list[Recipient], dict[str, errors.MailraftError]]:
        """Recipients that name a blob each, and those whose accounts took none, with the reason.

        Each account gets an upload of its own, since none may read what is another's.
        """
        first = calls.request_id(args)
        taken: list[Recipient] = []
        refused: dict[str, errors.MailraftError] = {}
        for each in to:
            blob_id = each.blob_id
            if not blob_id:
                try:
                    blob_id = await self._upload_part_of(each.account_id, raw, first, 1, args)
                except errors.MailraftError as error:
                    refused[each.account_id] = error
                    continue
            taken.append(Recipient(each.account_id, each.mailboxes, each.keywords, blob_id))
        return taken, refused

    async def _upload_large(
        self, account_id: str, messages: Sequence[bytes | NewMessage], args: WriteArgs
    ) -> list[bytes | NewMessage]:
        """The messages, the large ones by the blobs that they were uploaded to."""
        first = calls.request_id(args)
        found: list[bytes | NewMessage] = []
        for number, each in enumerate(messages, 1):
            one = each if isinstance(each, NewMessage) else NewMessage(each)
            if len(one.raw) <= limits.UPLOAD_ABOVE_BYTES:
                found.append(each)
                continue
            blob_id = await self._upload_part_of(account_id, one.raw, first, number, args)
            found.append(NewMessage(b"", one.keywords, one.internal_time, one.deleted, blob_id))
        return found

    async def _upload_part_of(
        self, account_id: str, raw: bytes, first: bytes, number: int, args: WriteArgs
    ) -> str:
        """Upload for a call: under a request id that follows from its own, by its deadline."""
        own: WriteArgs = {"request_id": following_id(first, number)}
        if "deadline_s" in args:
            own["deadline_s"] = args["deadline_s"]
        return await self.upload(account_id, raw, **own)

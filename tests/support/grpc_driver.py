"""A Driver over gRPC: a client, and whoever serves it.

Calls that travel together follow one another here, and UIDs are meant under the UIDVALIDITY of the
moment before the first. The accounts of a driver are its own, and so are its times: what a test
calls START_MS is whenever its driver was made, so that many can follow one another on one server
whose clock never goes back.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import grpc_outcomes as seen
import mailbox_driver as d
from grpc_requests import (
    OneAccount,
    blob_id,
    delivery_of,
    mailbox_id,
    message_ids,
    request_of,
    state_token,
)
from mailraft.client import AsyncClient, Consistency, MessageOrder, ObjectType
from mailraft.client.calls import write_options
from mailraft.client.results import receipt_of
from mailraft.v1 import blob_pb2, mailbox_pb2
from mailraft.wire import errors

T = TypeVar("T")

_ORDERS = {
    "uid": MessageOrder.UID_ASC,
    "-uid": MessageOrder.UID_DESC,
    "received": MessageOrder.RECEIVED_ASC,
    "-received": MessageOrder.RECEIVED_DESC,
}
CHANGES_PAGE = 3
_TYPES = (ObjectType.ACCOUNT, ObjectType.MAILBOX, ObjectType.MESSAGE)
_OWN_IDS = 1 << 60  # request ids of calls that bring none
_numbers = itertools.count(_OWN_IDS)
_drivers = itertools.count(1)


class Server(Protocol):
    """What a driver needs of who serves."""

    @property
    def client(self) -> AsyncClient: ...

    def wait(self, call: Coroutine[Any, Any, T]) -> T:
        """Carries out a call and whatever else the server does meanwhile."""

    def now_ms(self) -> int:
        """Its wall clock."""

    def at(self, time_ms: int) -> None:
        """Sets it, if that can be done; else that is an AssertionError."""

    def work(self) -> int:
        """As Driver.work."""

    def audit(self) -> None:
        """As Driver.audit, as far as it can be seen from outside of a process."""


class GrpcDriver:
    """Implements mailbox_driver.Driver."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._client = server.client
        self._prefix = f"{next(_drivers)}-"
        self._ahead_ms = server.now_ms() - d.START_MS
        self._meant: dict[tuple[d.Call, str], int] = {}  # UIDVALIDITY of calls that may be retried
        # Every other read asks for more than the session promises.
        self._levels: Iterator[Consistency] = itertools.cycle(
            (Consistency.SESSION, Consistency.LINEARIZABLE)
        )

    def name(self, account: str) -> str:
        """What the server knows an account as."""
        return self._prefix + account if account else account

    def at(self, time_ms: int) -> None:
        self._server.at(time_ms + self._ahead_ms)

    def work(self) -> int:
        return self._server.work()

    def audit(self) -> None:
        self._server.audit()

    # ---- calls

    def run(self, *calls: d.Call) -> list[d.Outcome]:
        return self._server.wait(self._run(calls))

    async def _run(self, calls: Sequence[d.Call]) -> list[d.Outcome]:
        before = [await self._validity_of(call) for call in calls]
        return [
            await self._one(call, validity) for call, validity in zip(calls, before, strict=True)
        ]

    async def _validity_of(self, call: d.Call) -> int:
        """1 where there is no mailbox: some number has to be told."""
        which = getattr(call, "which", None)
        if not isinstance(which, d.Which) or not which.mailbox:
            return 1
        known = self._meant.get((call, which.mailbox))
        if known is not None:  # a retry is the same call to the letter
            return known
        try:
            found = await self._client.get_mailbox(
                self.name(call.account),  # type: ignore[union-attr]  # it has messages
                mailbox_id(which.mailbox),
                consistency=next(self._levels),
            )
        except errors.MailraftError as error:
            seen.refusal(error)
            return 1
        return found.uid_validity

    async def _one(self, call: d.Call, validity: int) -> d.Outcome:
        request_id = self._request_id(call.request)
        try:
            if isinstance(call, d.Deliver):
                return await self._deliver(call, request_id)
            if isinstance(call, d.Upload):
                return await self._upload(call, request_id)
            assert not isinstance(call, d.BeginUpload | d.UploadPart | d.DropUpload)
            done = await self._mutate(call, request_id, validity)
        except errors.MailraftError as error:
            return seen.refusal(error)
        which = getattr(call, "which", None)
        if call.request and isinstance(which, d.Which):
            self._meant[call, which.mailbox] = validity
        return done

    async def _deliver(self, call: d.Deliver, request_id: bytes) -> d.Outcome:
        to = tuple(dataclasses.replace(one, account=self.name(one.account)) for one in call.to)
        delivery = delivery_of(dataclasses.replace(call, to=to), request_id)
        client = self._client
        result = await client._transport.deliver(
            delivery, write_options({}, {}), client._deadline_s({})
        )
        receipt = receipt_of(delivery, result)
        for each in receipt.recipients:
            client.session.observe(each.account_id, each.state)
        return seen.delivered(receipt.recipients)

    async def _upload(self, call: d.Upload, request_id: bytes) -> d.Done:
        account = self.name(call.account)
        blob_id = await self._client.upload(account, call.raw, request_id=request_id)
        found = seen.account_seen(await self._client.get_account(account))
        blob = seen.blob_place(blob_id)
        return d.Done(found.state, offset=len(call.raw), blob=blob)

    async def _mutate(self, call: OneAccount, request_id: bytes, validity: int) -> d.Done:
        named: OneAccount = dataclasses.replace(call, account=self.name(call.account))
        if isinstance(named, d.Undelete) and named.since_ms:
            named = dataclasses.replace(named, since_ms=named.since_ms + self._ahead_ms)
        request = request_of(named, validity)
        args: dict[str, Any] = {"request_id": request_id}
        state = getattr(call, "if_in_state", None)
        if isinstance(state, d.State):
            args["if_in_state"] = state_token(state)
        reply = await self._client._write(request, args)  # type: ignore[arg-type]  # WriteArgs
        if isinstance(call, d.DeleteAccount):
            self._client.session.forget(named.account)
        return seen.outcome(reply)

    # ---- reads

    def account(self, account: str) -> d.AccountSeen | d.Refusal:
        async def read() -> d.AccountSeen:
            found = await self._client.get_account(
                self.name(account), consistency=next(self._levels)
            )
            return seen.account_seen(found)

        return self._asked(read)

    def mailboxes(self, account: str) -> Sequence[d.MailboxSeen]:
        async def read() -> list[d.MailboxSeen]:
            token = ""
            found: list[d.MailboxSeen] = []
            while True:
                request = mailbox_pb2.ListMailboxesRequest(
                    account_id=self.name(account), page_size=2, page_token=token
                )
                reply = await self._client._read(request, {})
                found += map(seen.mailbox_seen, reply.mailboxes)
                token = reply.next_page_token
                if not token:
                    return found

        return self._server.wait(read())

    def message(self, account: str, message: str) -> d.MessageSeen | d.Refusal:
        async def read() -> d.MessageSeen:
            (number,) = message_ids([message])
            found = await self._client.get_message(
                self.name(account), number, consistency=next(self._levels)
            )
            return seen.message_seen(found)

        return self._asked(read)

    def messages(
        self, account: str, mailbox: str, *, order: str = "uid", page_size: int = 3
    ) -> Sequence[d.MessageSeen]:
        async def read() -> list[d.MessageSeen]:
            token = ""
            found: list[d.MessageSeen] = []
            while True:
                page = await self._client.list_messages(
                    self.name(account),
                    mailbox_id(mailbox),
                    page_token=token,
                    order=_ORDERS[order],
                    page_size=page_size,
                    consistency=next(self._levels),
                )
                assert len(page.messages) <= page_size
                found += [seen.message_seen(each, mailbox) for each in page.messages]
                token = page.next_page_token
                if not token:
                    return found

        return self._server.wait(read())

    def uids(self, account: str, mailbox: str) -> Sequence[tuple[int, int]]:
        found = self._client.list_uids(self.name(account), mailbox_id(mailbox))
        return list(self._server.wait(found))

    def fetch(self, account: str, blob: str) -> bytes | d.Refusal:
        async def read() -> bytes:
            request = blob_pb2.GetBlobRequest(account_id=self.name(account), blob_id=blob_id(blob))
            reply: blob_pb2.GetBlobResponse = await self._client._read(request, {})
            assert len(reply.content.raw) == reply.size_bytes
            return reply.content.raw

        return self._asked(read)

    def changes(self, account: str) -> Sequence[d.Change]:
        """A Change a page, each object in it once."""
        found = self.account(account)
        assert isinstance(found, d.AccountSeen)
        return self.changes_since(account, d.State(found.state.incarnation, 0))

    def changes_since(self, account: str, since: d.State) -> list[d.Change]:
        """Page by page until there is no more."""

        async def read() -> list[d.Change]:
            token = state_token(since)
            found: list[d.Change] = []
            while True:
                page = await self._client.list_changes(
                    self.name(account),
                    token,
                    types=_TYPES,
                    page_size=CHANGES_PAGE,
                    consistency=next(self._levels),
                )
                found.append(seen.change_seen(page))
                token = page.new_state
                if not page.more:
                    return found

        return self._server.wait(read())

    def body_count(self) -> int:
        raise AssertionError("how many bodies a node stores cannot be seen from outside")

    # ---- inside

    def _request_id(self, asked: bytes) -> bytes:
        """In the server's time; one of its own for a call that brings none."""
        if not asked:
            return d.request_id(next(_numbers), self._server.now_ms())
        if len(asked) != 16 or asked[6] >> 4 != 7:  # a wrong one stays wrong
            return asked
        time_ms = int.from_bytes(asked[:6]) + self._ahead_ms
        return time_ms.to_bytes(6) + asked[6:]

    def _asked(self, read: Callable[[], Awaitable[T]]) -> T | d.Refusal:
        async def ask() -> T | d.Refusal:
            try:
                return await read()
            except errors.MailraftError as error:
                return seen.refusal(error)

        return self._server.wait(ask())


class Loop:
    """Runs what a server and its client do, and only while somebody waits for a call."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def wait(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a call to its end."""
        return self._runner.run(call)

    def close(self) -> None:
        """Cancel whatever is left."""
        self._runner.close()

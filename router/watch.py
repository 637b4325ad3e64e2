"""Watch: one stream of a caller, spread over the nodes of its accounts and joined again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Any

import grpc

from mailraft.router.attempts import Goal, Target
from mailraft.router.fleet import Fleet
from mailraft.router.methods import METHODS, Pace
from mailraft.router.tries import Tries
from mailraft.v1 import change_pb2, error_pb2
from mailraft.wire import access, errors, limits

# A caller that does not read its events ends its stream.
EVENTS_WAITING_MAX = 4_096
ACCOUNTS_PER_STREAM_MAX = 10_000
SUBSCRIBE_TIMEOUT_S = 5.0
HEARTBEAT_S = 15.0

_WATCH = METHODS["/mailraft.v1.MessageService/Watch"]


class Watch:
    """The nodes' streams behind one caller's.

    When a node's stream ends, each of its accounts is told so by a WatchEnd with a retryable
    reason; the caller subscribes again from the state it has, and is led to a node that lives.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._events: asyncio.Queue[change_pb2.WatchResponse] = asyncio.Queue(EVENTS_WAITING_MAX)
        self._calls: dict[str, Any] = {}  # by address
        self._where: dict[str, str] = {}  # account -> address
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._slow = asyncio.Event()
        self._refreshing: asyncio.Future[None] | None = None  # kept, so that it is not lost

    async def run(
        self, requests: AsyncIterator[change_pb2.WatchRequest]
    ) -> AsyncGenerator[change_pb2.WatchResponse, None]:
        """Carry requests to the nodes and yield what they tell, until the caller ends its side."""
        reading = asyncio.ensure_future(self._read(requests))
        slow = asyncio.ensure_future(self._slow.wait())
        event = asyncio.ensure_future(self._events.get())
        try:
            while True:
                ends = {event, slow, reading}
                await asyncio.wait(ends, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
                if event.done():
                    yield event.result()
                    event = asyncio.ensure_future(self._events.get())
                    continue
                if slow.done():
                    raise errors.OverloadedError(f"{EVENTS_WAITING_MAX} events were not read")
                if reading.done():
                    reading.result()  # raises what reading raised
                    return
                heartbeat = change_pb2.WatchHeartbeat(time_ms=time.time_ns() // 1_000_000)
                yield change_pb2.WatchResponse(heartbeat=heartbeat)
        finally:
            for each in (slow, reading, event):
                each.cancel()
            await self._close()

    # ---- inside ----------------------------------------------------------------------------------

    async def _read(self, requests: AsyncIterator[change_pb2.WatchRequest]) -> None:
        async for request in requests:
            try:
                await self._forward(request)
            except errors.MailraftError as error:
                self._end(request.account_id, error)

    async def _forward(self, request: change_pb2.WatchRequest) -> None:
        account_id = request.account_id
        access.check_account(account_id)
        if request.WhichOneof("action") == "unsubscribe":
            address = self._where.pop(account_id, "")
            if address in self._calls:
                # A stream that has ended already watches nothing any more.
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await self._calls[address].write(request)
            return
        if account_id not in self._where and len(self._where) >= ACCOUNTS_PER_STREAM_MAX:
            metadata = {"limit": "watched_accounts_per_stream", "max": str(ACCOUNTS_PER_STREAM_MAX)}
            raise errors.LimitReachedError(metadata=metadata)
        known = self._calls.get(self._where.get(account_id, ""))
        if known is not None and not known.done():
            try:  # where it is already, so that it is not told twice
                await asyncio.wait_for(known.write(request), SUBSCRIBE_TIMEOUT_S)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                self._where.pop(account_id, None)
            else:
                return
        shard = self._fleet.table.topology.shard_of(account_id)
        deadline_s = asyncio.get_running_loop().time() + limits.DEADLINE_DEFAULT_MS / 1000
        # Any replica tells; the leader knows first.
        tries = Tries(self._fleet, Goal(shard, Target.LEADER, Pace.QUICK), deadline_s)
        while True:
            place = tries.next()
            try:
                call = await self._call(place.address)
                self._where[account_id] = place.address
                await asyncio.wait_for(call.write(request), SUBSCRIBE_TIMEOUT_S)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                broken = errors.ShuttingDownError(f"{place.address} ended the stream")
                await tries.failed(place, broken)
            except errors.MailraftError as error:
                await tries.failed(place, error)
            else:
                return

    async def _call(self, address: str) -> Any:
        call = self._calls.get(address)
        if call is None or call.done():
            node = self._fleet.pool.node(address)
            call = await node.open_stream(_WATCH, None, self._fleet.metadata())
            self._calls[address] = call
            self._tasks[address] = asyncio.ensure_future(self._listen(address, call))
        return call

    async def _listen(self, address: str, call: Any) -> None:
        try:
            async for response in call:
                self._pass_on(address, response)
            error: errors.MailraftError = errors.ShuttingDownError(f"{address} ended the stream")
        except grpc.aio.AioRpcError as failed:
            error = self._fleet.pool.node(address).failure(failed)
            if not error.reason:
                error = errors.ShuttingDownError(error.message)
        if self._calls.get(address) is call:
            del self._calls[address]
        for account_id in [each for each, where in self._where.items() if where == address]:
            self._end(account_id, error)

    def _pass_on(self, address: str, response: change_pb2.WatchResponse) -> None:
        """What a node tells, unless its account has left it; heartbeats are the router's own."""
        event, where = response.WhichOneof("event"), self._where.get(response.account_id)
        if event == "end":
            if response.end.reason == error_pb2.ERROR_REASON_STALE_ROUTE:
                self._refreshing = asyncio.ensure_future(self._fleet.refresh())
            if where in (address, None):
                self._tell(response)
        elif event == "change" and where == address:
            self._tell(response)

    def _end(self, account_id: str, error: errors.MailraftError) -> None:
        self._where.pop(account_id, None)
        end = change_pb2.WatchEnd(
            code=error.code.value[0], reason=error.reason, message=error.message
        )
        self._tell(change_pb2.WatchResponse(account_id=account_id, end=end))

    def _tell(self, response: change_pb2.WatchResponse) -> None:
        if response.WhichOneof("event") == "end":
            self._where.pop(response.account_id, None)
        try:
            self._events.put_nowait(response)
        except asyncio.QueueFull:
            self._slow.set()

    async def _close(self) -> None:
        for call in self._calls.values():
            call.cancel()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

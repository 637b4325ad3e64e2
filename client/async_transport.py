"""How AsyncClient reaches the cluster: the router's Dispatcher, embedded.

Direct, it routes by the cluster's map. Otherwise by a map of our own making, in which the targets
hold everything: batching and retries stay the same, and whoever is asked forwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager, aclosing
from typing import Any, cast

from mailraft.client.content import Upload
from mailraft.client.settings import CLOSED, Settings
from mailraft.client.targets import stand_in_map
from mailraft.router.dispatch import Dispatcher
from mailraft.router.goals import forwarded
from mailraft.router.methods import Method, method_of
from mailraft.router.tries import Tries
from mailraft.router.watch import Watch
from mailraft.v1 import blob_pb2, change_pb2, cluster_pb2, common_pb2, delivery_pb2
from mailraft.wire import bodies, errors, tracing

CONNECT_PAUSE_S = 0.1


class AsyncTransport:
    """Usable from any number of tasks of one event loop. Connects when it is first used."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._dispatcher: Dispatcher | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False
        self._waiting: set[asyncio.Task[Any]] = set()  # in a call, and not in its caller's hands
        self._ended: set[asyncio.Task[Any]] = set()  # those of them that close has woken

    def dispatcher(self) -> Dispatcher | None:
        """None until the first call has connected."""
        return self._dispatcher

    @property
    def dictionary(self) -> int:
        """What all servers can open; none before the first call, or if they are targets only."""
        if self._dispatcher is None:
            return bodies.NO_DICTIONARY
        return bodies.dictionary_at(self._dispatcher.table.topology.map.feature_level)

    async def unary(self, request: Any, deadline_s: float) -> Any:
        """The reply to a request, after as many tries as it takes and the deadline allows."""
        method, end_s = method_of(request), _now_s() + deadline_s
        with self._ended_by_close(), tracing.span(method.name):
            dispatcher = await self._connected(end_s)
            if self._settings.direct or (method.coalesced and not _names_replica(request)):
                return await dispatcher.unary(method, request, end_s)
            tries = Tries(dispatcher.fleet, forwarded(method, request), end_s)
            while True:
                place = tries.next()
                try:
                    node = dispatcher.fleet.node(place)
                    return await node.unary(method, request, tries.timeout_s(), tracing.metadata())
                except errors.MailraftError as error:
                    await tries.failed(place, error)

    async def stream(self, request: Any, deadline_s: float) -> AsyncGenerator[Any, None]:
        """The parts of a reply. A failed try is followed by another only before the first part."""
        method, end_s = method_of(request), _now_s() + deadline_s
        with self._ended_by_close():
            dispatcher = await self._connected(end_s)
        if self._settings.direct:
            source = dispatcher.stream(method, request, end_s)
        else:
            source = _stream_as_told(dispatcher, method, request, end_s)
        async with aclosing(cast("AsyncGenerator[Any, None]", source)) as parts:
            while True:
                with self._ended_by_close():
                    part = await anext(parts, None)
                if part is None:
                    return
                yield part

    async def watch(
        self, requests: Sequence[change_pb2.WatchRequest]
    ) -> AsyncGenerator[change_pb2.WatchResponse, None]:
        """What is told of the accounts that are asked for, over one stream a node, until closed."""
        with self._ended_by_close():
            dispatcher = await self._connected(_now_s() + self._settings.deadline_s)

        async def asked() -> AsyncGenerator[change_pb2.WatchRequest, None]:
            for request in requests:
                yield request
            await asyncio.get_running_loop().create_future()  # the stream goes on

        async with aclosing(Watch(dispatcher.fleet).run(asked())) as responses:
            while True:
                with self._ended_by_close():
                    response = await anext(responses, None)
                if response is None:
                    return
                yield response

    async def upload(self, upload: Upload, deadline_s: float) -> blob_pb2.UploadBlobResponse:
        """One stream, to whoever leads. What breaks in its middle is its caller's to resume."""
        end_s = _now_s() + deadline_s

        async def chunks() -> AsyncGenerator[blob_pb2.UploadBlobRequest, None]:
            for chunk in upload.chunks():
                yield chunk

        with self._ended_by_close():
            dispatcher = await self._connected(end_s)
            return await dispatcher.upload(upload.header(), chunks(), end_s)

    async def apart(self, work: Callable[[], None]) -> None:
        """Work that would hold up the event loop."""
        await asyncio.to_thread(work)

    async def pause(self, pause_s: float) -> None:
        """Wait, unless the client is closed."""
        with self._ended_by_close():
            await asyncio.sleep(pause_s)

    async def deliver(
        self,
        delivery: delivery_pb2.Delivery,
        write_options: common_pb2.WriteOptions,
        deadline_s: float,
    ) -> delivery_pb2.DeliveryResult:
        """One result a recipient, in their order."""
        end_s = _now_s() + deadline_s
        with self._ended_by_close():
            dispatcher = await self._connected(end_s)
            return await dispatcher.deliver(delivery, write_options, end_s)

    async def close(self) -> None:
        """Ends all calls and connections."""
        self._closed = True
        for task in self._waiting:
            self._ended.add(task)
            task.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is not None:
            await dispatcher.fleet.close()  # first, since the lanes wait for what is in flight
            await dispatcher.close()

    def _ended_by_close(self) -> AbstractContextManager[None]:
        """What waits in here is woken by close, and raises that the client is closed."""
        return _EndedByClose(self._waiting, self._ended)

    async def _connected(self, end_s: float) -> Dispatcher:
        """The dispatcher. Who comes while it is made waits for the same one, until its deadline."""
        while self._dispatcher is None:
            if self._closed:
                raise errors.FailedPreconditionError(CLOSED)
            if self._connecting is None:
                self._connecting = asyncio.create_task(self._connect())
                # Whoever waits raises its error; if nobody does any more, it is no news.
                self._connecting.add_done_callback(lambda it: it.cancelled() or it.exception())
            try:
                async with asyncio.timeout_at(end_s):
                    await asyncio.shield(self._connecting)
            except TimeoutError:
                raise errors.UnavailableError("no target answers") from None
            except errors.UnavailableError:
                if _now_s() + CONNECT_PAUSE_S >= end_s:
                    raise
                await asyncio.sleep(CONNECT_PAUSE_S)
        return self._dispatcher

    async def _connect(self) -> None:
        """Here, and not in a callback: who finds this task done finds the dispatcher, too."""
        try:
            self._dispatcher = await self._made()
        finally:
            self._connecting = None

    async def _made(self) -> Dispatcher:
        settings = self._settings
        if settings.direct:
            return await Dispatcher.connect(
                settings.targets, settings.credentials, zone=settings.zone
            )
        stand_in = stand_in_map(settings.targets)

        async def refresh() -> cluster_pb2.ClusterMap:
            return stand_in

        return Dispatcher(stand_in, settings.credentials, refresh=refresh)


class _EndedByClose(AbstractContextManager[None]):
    """As asyncio.timeout does it: a task of its own for each call would cost more than the call."""

    __slots__ = ("_ended", "_task", "_waiting")

    def __init__(self, waiting: set[asyncio.Task[Any]], ended: set[asyncio.Task[Any]]) -> None:
        self._waiting, self._ended = waiting, ended
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        waiting.add(task)

    def __exit__(self, kind: object, _: object, __: object) -> None:
        task, ended = self._task, self._ended
        self._waiting.discard(task)
        if task not in ended:
            return
        ended.discard(task)
        if kind is asyncio.CancelledError and not task.uncancel():
            raise errors.FailedPreconditionError(CLOSED) from None


async def _stream_as_told(
    dispatcher: Dispatcher, method: Method, request: Any, end_s: float
) -> AsyncGenerator[Any, None]:
    tries = Tries(dispatcher.fleet, forwarded(method, request), end_s)
    started = False
    while True:
        place = tries.next()
        source = dispatcher.fleet.node(place).stream(method, request, end_s - _now_s(), ())
        try:
            async with aclosing(cast("AsyncGenerator[Any, None]", source)) as parts:
                async for part in parts:
                    started = True
                    yield part
            return
        except errors.MailraftError as error:
            if started:
                raise
            await tries.failed(place, error)


def _names_replica(request: Any) -> bool:
    return bool(request.read_options.require_replica)


def _now_s() -> float:
    return asyncio.get_running_loop().time()

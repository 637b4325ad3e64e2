"""How AsyncClient reaches the cluster: the router's Dispatcher, embedded.

Direct, it routes by the cluster's map. Otherwise by a map of our own making, in which the targets
hold everything: batching and retries stay the same, and whoever is asked forwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, cast

from mailraft.client.content import Upload
from mailraft.client.settings import CLOSED, Settings
from mailraft.router.dispatch import Dispatcher
from mailraft.router.methods import Method, method_of
from mailraft.router.table import CLUSTER
from mailraft.router.tries import Goal, Target, Tries
from mailraft.router.watch import Watch
from mailraft.v1 import blob_pb2, change_pb2, cluster_pb2, common_pb2, delivery_pb2
from mailraft.wire import errors
from mailraft.wire.slots import SLOTS

CONNECT_PAUSE_S = 0.1


class AsyncTransport:
    """Usable from any number of tasks of one event loop. Connects when it is first used."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._dispatcher: Dispatcher | None = None
        self._connecting: asyncio.Task[Dispatcher] | None = None
        self._closed = False
        self._waiting: set[asyncio.Task[Any]] = set()  # in a call, and not in its caller's hands
        self._ended: set[asyncio.Task[Any]] = set()  # those of them that close has woken

    async def unary(self, request: Any, deadline_s: float) -> Any:
        """The reply to a request, after as many tries as it takes and the deadline allows."""
        method, end_s = method_of(request), _now_s() + deadline_s
        with self._ended_by_close():
            dispatcher = await self._connected(end_s)
            if self._settings.direct or (method.coalesced and not _names_replica(request)):
                return await dispatcher.unary(method, request, end_s)
            tries = _tries(dispatcher, method, end_s)
            while True:
                place = tries.next()
                try:
                    node = dispatcher.fleet.node(place)
                    return await node.unary(method, request, tries.timeout_s(), ())
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

    @contextmanager
    def _ended_by_close(self) -> Iterator[None]:
        """What waits in here is woken by close, and raises that the client is closed.

        As asyncio.timeout does it: a task of its own for each call would cost more than the call.
        """
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._ended or task.uncancel():
                raise
            raise errors.FailedPreconditionError(CLOSED) from None
        finally:
            self._waiting.discard(task)
            self._ended.discard(task)

    async def _connected(self, end_s: float) -> Dispatcher:
        """The dispatcher. Who comes while it is made waits for the same one, until its deadline."""
        while self._dispatcher is None:
            if self._closed:
                raise errors.FailedPreconditionError(CLOSED)
            if self._connecting is None:
                self._connecting = asyncio.create_task(self._connect())
                self._connecting.add_done_callback(self._connect_done)
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

    async def _connect(self) -> Dispatcher:
        settings = self._settings
        if settings.direct:
            return await Dispatcher.connect(settings.targets, settings.credentials)
        stand_in = _stand_in_map(settings.targets)

        async def refresh() -> cluster_pb2.ClusterMap:
            return stand_in

        return Dispatcher(stand_in, settings.credentials, refresh=refresh)

    def _connect_done(self, task: asyncio.Task[Dispatcher]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._dispatcher = task.result()


def _tries(dispatcher: Dispatcher, method: Method, end_s: float) -> Tries:
    goal = Goal(CLUSTER, Target.ANY, method.pace, mutation=method.mutation)
    return Tries(dispatcher.fleet, goal, end_s)


async def _stream_as_told(
    dispatcher: Dispatcher, method: Method, request: Any, end_s: float
) -> AsyncGenerator[Any, None]:
    tries, started = _tries(dispatcher, method, end_s), False
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


def _stand_in_map(targets: Sequence[str]) -> cluster_pb2.ClusterMap:
    """One shard that each target holds and the first leads. Epoch 0: older than any real one."""
    nodes = [
        cluster_pb2.Node(id=number, name=f"target-{number}", address=address)
        for number, address in enumerate(targets, start=1)
    ]
    replicas = [
        cluster_pb2.Replica(
            replica_id=node.id, node_id=node.id, role=cluster_pb2.REPLICA_ROLE_VOTER
        )
        for node in nodes
    ]
    leader = cluster_pb2.LeaderHint(node_id=1, replica_id=1)
    return cluster_pb2.ClusterMap(
        slot_count=SLOTS,
        slots=[cluster_pb2.SlotRange(first_slot=0, last_slot=SLOTS - 1)],
        shards=[cluster_pb2.Shard(replicas=replicas, leader=leader)],
        nodes=nodes,
    )


def _now_s() -> float:
    return asyncio.get_running_loop().time()

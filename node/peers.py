"""Streams between nodes: two outgoing streams a peer carry the frames of all groups.

A stream is one way; its Hello says whose it is, and is answered before anything else is sent. What
cannot be sent is dropped: Raft sends it again.

One stream is for appends, which carry bodies, the other for everything else: heartbeats, votes,
acknowledgements, reads (row 13). Each has a connection and a bounded queue of its own, so that
nothing waits behind bodies, whatever flow control, a full socket or a slow reader does to them.
Order is kept within each, and nothing is promised between the two: a heartbeat may pass the append
that was sent before it, as on any network that Raft is made for. Appends are never split over both,
since one that passed another would be refused and sent again. Both streams are of one session: if
either ends, so does the other, and what still arrives of them is dropped by its session's number.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from mailraft.internal.v1 import (
    peer_service_pb2,
    peer_service_pb2_grpc,
    raft_pb2,
    snapshot_pb2,
)
from mailraft.node.clocks import PeerClocks
from mailraft.node.consensus.frames import is_bulk
from mailraft.node.consensus.messages import Event, PeerDown, PeerUp, Received
from mailraft.node.digest_exchange import DigestExchange
from mailraft.node.identity import Introduction, misdirected, refuse_impostor, too_old
from mailraft.node.interfaces import ClusterView, Peer
from mailraft.node.position_exchange import PositionExchange
from mailraft.node.runtime import Runtime, now_s
from mailraft.node.snapshot_receiver import SnapshotReceiver
from mailraft.wire import feature_levels
from mailraft.wire.credentials import AnyCredentials, open_channel

log = logging.getLogger(__name__)

# One frame: FRAME_BYTES_MAX of the host and one largest entry behind it, with room.
PEER_MESSAGE_BYTES_MAX = 16 * 1024 * 1024
PEER_OPTIONS = (
    ("grpc.max_receive_message_length", PEER_MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", PEER_MESSAGE_BYTES_MAX),
)
# Without this gRPC would put both streams on one connection: same address, same options.
_OWN_CONNECTION = (*PEER_OPTIONS, ("grpc.use_local_subchannel_pool", 1))
CONTROL_QUEUE_BYTES_MAX = 4 * 1024 * 1024
BULK_QUEUE_BYTES_MAX = 32 * 1024 * 1024
HELLO_S_MAX = 2.0
REFUSED_S = 0.2
SESSIONS_KEPT = 1_024
RECONNECT_MIN_S, RECONNECT_MAX_S = 0.05, 1.0

_Call = grpc.aio.StreamUnaryCall[Any, Any]


class _Lane:
    """Frames that wait for one stream."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._queue: deque[raft_pb2.ExchangeRequest] = deque()
        self._queue_bytes = 0
        self._ready = asyncio.Event()

    def put(self, frame: raft_pb2.ExchangeRequest) -> None:
        size_bytes = frame.ByteSize()
        if self._queue_bytes + size_bytes <= self._bytes_max:
            self._queue.append(frame)
            self._queue_bytes += size_bytes
            self._ready.set()

    def clear(self) -> None:
        self._queue.clear()
        self._queue_bytes = 0

    async def pump(self, call: _Call) -> None:
        """Send until the call ends. Raises what it ended with."""
        call.add_done_callback(lambda _: self._ready.set())
        while not call.done():
            while self._queue:
                await call.write(self._queue[0])  # counts until it is on its way
                self._queue_bytes -= self._queue.popleft().ByteSize()
            self._ready.clear()
            if self._queue or call.done():
                continue
            await self._ready.wait()
        await call


class _TooOldError(Exception):
    """The peer does not understand what the cluster has enabled."""


class PeerLink:
    """The outgoing streams to one peer, opened again for as long as the node runs."""

    def __init__(
        self,
        peer: Peer,
        view: ClusterView,
        credentials: AnyCredentials,
        tell: Callable[[Event], None],
    ) -> None:
        self._peer, self._view, self._credentials, self._tell = peer, view, credentials, tell
        self._control, self._bulk = _Lane(CONTROL_QUEUE_BYTES_MAX), _Lane(BULK_QUEUE_BYTES_MAX)
        self._up = False
        self._level = feature_levels.FIRST  # that the peer told last
        self._there = asyncio.Event()

    @property
    def too_old(self) -> bool:
        """Whether the peer is sent nothing, since it may not understand it."""
        return self._level < self._view.feature_level

    @property
    def open_to_old(self) -> bool:
        return self._up and self.too_old

    def try_now(self) -> None:
        """The peer is there: it has just opened a stream of its own."""
        self._there.set()

    def send(self, frame: raft_pb2.ExchangeRequest) -> None:
        if self._up:
            (self._bulk if is_bulk(frame) else self._control).put(frame)

    async def run(self) -> None:
        pause_s = RECONNECT_MIN_S
        while True:
            began_s = time.monotonic()
            # Before the try: a peer that says that it is there while this one fails is not missed.
            self._there.clear()
            try:
                await self._one_session()
            except (
                grpc.aio.AioRpcError,
                TimeoutError,
                asyncio.InvalidStateError,
                OSError,  # its certificate's files cannot be read now
                _TooOldError,
            ) as error:
                log.info("streams to %s end: %s", self._peer.name, _short(error))
            if time.monotonic() - began_s > RECONNECT_MAX_S:
                pause_s = RECONNECT_MIN_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._there.wait()
            # Who is back may not listen yet: it is tried often again.
            back = self._there.is_set()
            pause_s = RECONNECT_MIN_S if back else min(2 * pause_s, RECONNECT_MAX_S)

    async def _one_session(self) -> None:
        hello = raft_pb2.Hello(
            cluster_id=self._view.cluster_id,
            from_node=self._view.node,
            to_node=self._peer.node,
            session=time.time_ns(),
            feature_level=feature_levels.LEVEL,
        )
        async with self._stream(hello) as control, self._stream(hello) as bulk:
            self._up = True
            self._tell(PeerUp(self._peer.node))
            pumps = [
                asyncio.create_task(self._control.pump(control)),
                asyncio.create_task(self._bulk.pump(bulk)),
            ]
            try:
                ended, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in ended:
                    pump.result()
            finally:
                self._up = False
                self._tell(PeerDown(self._peer.node))
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                self._control.clear()
                self._bulk.clear()

    @contextlib.asynccontextmanager
    async def _stream(self, hello: raft_pb2.Hello) -> AsyncIterator[_Call]:
        async with open_channel(self._peer.address, self._credentials, _OWN_CONNECTION) as channel:
            stub = peer_service_pb2_grpc.PeerServiceStub(channel)
            call = stub.Exchange()  # type: ignore[call-arg]  # written to, not iterated
            try:
                async with asyncio.timeout(HELLO_S_MAX):
                    await call.write(raft_pb2.ExchangeRequest(hello=hello))
                    answer = await call.initial_metadata()  # sent when the Hello was accepted
                if call.done():
                    await call  # raises what it was refused with
                self._level = feature_levels.told_in(answer)
                if self.too_old:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(REFUSED_S):
                            await call  # a refusal is on its way, for this reason or another
                    raise _TooOldError(too_old(self._view, self._peer.node, self._level))
                yield call
            finally:
                call.cancel()


class PeerStreams:
    """The outgoing streams of a node to all peers; what the runtime sends through."""

    def __init__(
        self,
        view: ClusterView,
        credentials: AnyCredentials,
        tell: Callable[[Event], None],
        wall_ms: Callable[[], int],
        disk_full: Callable[[], bool],
    ) -> None:
        self._view, self._credentials, self._tell = view, credentials, tell
        self._wall_ms, self._disk_full = wall_ms, disk_full
        self._links: dict[int, PeerLink] = {}
        self._tasks: dict[Peer, asyncio.Task[None]] = {}

    def refresh(self) -> None:
        """Have streams to every peer of the map as it is now, and to no other."""
        peers = {peer for peer in self._view.peers() if peer.node != self._view.node}
        old = {peer for peer in self._tasks if self._links[peer.node].open_to_old}
        for gone in (self._tasks.keys() - peers) | old:
            self._tasks.pop(gone).cancel()
            self._links.pop(gone.node)
        for peer in sorted(peers - self._tasks.keys(), key=lambda each: each.node):
            link = PeerLink(peer, self._view, self._credentials, self._tell)
            self._links[peer.node] = link
            self._tasks[peer] = asyncio.create_task(link.run(), name=f"streams to node {peer.node}")

    def send(self, peer: int, frame: raft_pb2.ExchangeRequest) -> None:
        link = self._links.get(peer)
        if link is not None:
            if frame.HasField("heartbeat"):
                frame.heartbeat.wall_ms = self._wall_ms()
                frame.heartbeat.disk_full = self._disk_full()
            link.send(frame)

    def try_now(self, peer: int) -> None:
        """A node that was gone is back: wait no longer before streams to it are opened again."""
        link = self._links.get(peer)
        if link is not None:
            link.try_now()

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


class _Sessions:
    """Numbers the sessions of peers in the order in which they reach this node.

    Not by their own numbers: a peer whose clock was set back would not be heard until it has caught
    up. One that is accepted late has been given up by its sender, and carries no frames.
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, int], int] = {}
        self._next = itertools.count(1)

    def number(self, hello: raft_pb2.Hello) -> int:
        """The same for both streams of a session."""
        key = hello.from_node, hello.session
        if key not in self._numbers:
            self._numbers[key] = next(self._next)
            if len(self._numbers) > SESSIONS_KEPT:  # both streams of the oldest are open long since
                del self._numbers[next(iter(self._numbers))]
        return self._numbers[key]


class PeerService(peer_service_pb2_grpc.PeerServiceServicer):
    """The incoming side: checks who opens a stream, then hands frames to the runtime."""

    def __init__(
        self,
        view: ClusterView,
        runtime: Runtime,
        snapshots: SnapshotReceiver,
        digests: DigestExchange,
        positions: PositionExchange,
        clocks: PeerClocks,
        streams: PeerStreams,
    ) -> None:
        self._view, self._runtime, self._streams = view, runtime, streams
        self._snapshots, self._digests, self._clocks = snapshots, digests, clocks
        self._positions = positions
        self._open: set[asyncio.Task[object]] = set()
        self._sessions = _Sessions()

    def close(self) -> None:
        """End the streams of peers, which would outlast any grace: peers never end them."""
        for handler in self._open:
            handler.cancel()

    async def InstallSnapshot(  # noqa: N802  # the name of the RPC
        self,
        request_iterator: AsyncIterator[snapshot_pb2.InstallSnapshotRequest],
        context: grpc.aio.ServicerContext,  # type: ignore[type-arg]
    ) -> AsyncIterator[snapshot_pb2.InstallSnapshotResponse]:
        # gRPC tells a stream of answers by the kind of this function.
        async for answer in self._snapshots.serve(request_iterator, context):
            yield answer

    async def GetDigests(  # noqa: N802  # the name of the RPC
        self,
        request: peer_service_pb2.GetDigestsRequest,
        context: grpc.aio.ServicerContext,  # type: ignore[type-arg]
    ) -> peer_service_pb2.GetDigestsResponse:
        await self._admit(context, request)
        return self._digests.answer(request)

    async def GetPosition(  # noqa: N802  # the name of the RPC
        self,
        request: peer_service_pb2.GetPositionRequest,
        context: grpc.aio.ServicerContext,  # type: ignore[type-arg]
    ) -> peer_service_pb2.GetPositionResponse:
        await self._admit(context, request)
        position = self._positions.answer(request)
        if position is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no replica of the group runs here")
        return position

    async def Exchange(  # noqa: N802  # the name of the RPC
        self,
        request_iterator: AsyncIterator[raft_pb2.ExchangeRequest],
        context: grpc.aio.ServicerContext,  # type: ignore[type-arg]
    ) -> raft_pb2.ExchangeResponse:
        hello = await self._hello(request_iterator, context)
        session = self._sessions.number(hello)
        self._streams.try_now(hello.from_node)
        await context.send_initial_metadata(feature_levels.METADATA)
        handler = asyncio.current_task()
        assert handler is not None
        self._open.add(handler)
        try:
            async for frame in request_iterator:
                await self._runtime.room()
                if frame.traces:
                    self._runtime.traces.received(frame, now_s())
                if frame.HasField("heartbeat"):
                    self._clocks.heard(hello.from_node, frame.heartbeat.wall_ms)
                self._runtime.tell(Received(hello.from_node, session, frame))
        finally:
            self._open.discard(handler)
        return raft_pb2.ExchangeResponse()

    async def _hello(
        self,
        frames: AsyncIterator[raft_pb2.ExchangeRequest],
        context: grpc.aio.ServicerContext,  # type: ignore[type-arg]
    ) -> raft_pb2.Hello:
        try:
            async with asyncio.timeout(HELLO_S_MAX):
                first = await anext(frames, None)
        except TimeoutError:
            first = None
        if first is None or not first.HasField("hello"):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a stream begins with its Hello")
        await self._admit(context, first.hello)
        level = first.hello.feature_level or feature_levels.FIRST
        if level < self._view.feature_level:
            reason = too_old(self._view, first.hello.from_node, level)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, reason)
        return first.hello

    async def _admit(
        self,
        context: grpc.aio.ServicerContext,  # type: ignore[type-arg]
        caller: Introduction,
    ) -> None:
        reason = misdirected(self._view, caller)
        if reason:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, reason)
        await refuse_impostor(context, caller)


def _short(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name} {error.details()}"
    return str(error) or type(error).__name__

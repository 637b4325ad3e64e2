"""Streams between nodes: one outgoing stream a peer carries the frames of all groups.

A stream is one way; its Hello says whose it is, and is answered before anything else is sent. What
cannot be sent is dropped: Raft sends it again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

import grpc

from mailraft.internal.v1 import peer_service_pb2_grpc, raft_pb2, snapshot_pb2
from mailraft.node.consensus.messages import Event, PeerDown, PeerUp, Received
from mailraft.node.identity import misdirected, refuse_impostor
from mailraft.node.interfaces import ClusterView, Peer
from mailraft.node.runtime import Runtime
from mailraft.node.snapshot_receiver import SnapshotReceiver
from mailraft.wire.credentials import AnyCredentials, open_channel

log = logging.getLogger(__name__)

# One frame: FRAME_BYTES_MAX of the host and one largest entry behind it, with room.
PEER_MESSAGE_BYTES_MAX = 16 * 1024 * 1024
PEER_OPTIONS = (
    ("grpc.max_receive_message_length", PEER_MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", PEER_MESSAGE_BYTES_MAX),
)
QUEUE_BYTES_MAX = 32 * 1024 * 1024
HELLO_S_MAX = 2.0
RECONNECT_MIN_S, RECONNECT_MAX_S = 0.05, 1.0


class PeerStream:
    """The outgoing stream to one peer, opened again for as long as the node runs."""

    def __init__(
        self,
        peer: Peer,
        view: ClusterView,
        credentials: AnyCredentials,
        tell: Callable[[Event], None],
    ) -> None:
        self._peer, self._view, self._credentials, self._tell = peer, view, credentials, tell
        self._queue: deque[raft_pb2.ExchangeRequest] = deque()
        self._queue_bytes = 0
        self._ready = asyncio.Event()
        self._up = False

    def send(self, frame: raft_pb2.ExchangeRequest) -> None:
        size_bytes = frame.ByteSize()
        if not self._up or self._queue_bytes + size_bytes > QUEUE_BYTES_MAX:
            return
        self._queue.append(frame)
        self._queue_bytes += size_bytes
        self._ready.set()

    async def run(self) -> None:
        pause_s = RECONNECT_MIN_S
        while True:
            began_s = time.monotonic()
            try:
                await self._one_stream()
            except (grpc.aio.AioRpcError, TimeoutError, asyncio.InvalidStateError) as error:
                log.info("stream to %s ends: %s", self._peer.name, _short(error))
            if time.monotonic() - began_s > RECONNECT_MAX_S:
                pause_s = RECONNECT_MIN_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RECONNECT_MAX_S)

    async def _one_stream(self) -> None:
        async with open_channel(self._peer.address, self._credentials, PEER_OPTIONS) as channel:
            stub = peer_service_pb2_grpc.PeerServiceStub(channel)
            call = stub.Exchange()  # type: ignore[call-arg]  # written to, not iterated
            try:
                hello = raft_pb2.Hello(
                    cluster_id=self._view.cluster_id,
                    from_node=self._view.node,
                    to_node=self._peer.node,
                    session=time.time_ns(),
                )
                async with asyncio.timeout(HELLO_S_MAX):
                    await call.write(raft_pb2.ExchangeRequest(hello=hello))
                    await call.initial_metadata()  # sent when the Hello was accepted
                if call.done():
                    await call  # raises what it was refused with
                await self._pump(call)
            finally:
                if self._up:
                    self._up = False
                    self._tell(PeerDown(self._peer.node))
                self._queue.clear()
                self._queue_bytes = 0
                call.cancel()

    async def _pump(self, call: grpc.aio.StreamUnaryCall) -> None:  # type: ignore[type-arg]
        self._up = True
        self._tell(PeerUp(self._peer.node))
        call.add_done_callback(lambda _: self._ready.set())
        while not call.done():
            while self._queue:
                frame = self._queue.popleft()
                self._queue_bytes -= frame.ByteSize()
                await call.write(frame)
            self._ready.clear()
            if self._queue or call.done():
                continue
            await self._ready.wait()
        await call


class PeerStreams:
    """Every outgoing stream of a node; what the runtime sends through."""

    def __init__(
        self, view: ClusterView, credentials: AnyCredentials, tell: Callable[[Event], None]
    ) -> None:
        self._streams = {
            peer.node: PeerStream(peer, view, credentials, tell)
            for peer in view.peers()
            if peer.node != view.node
        }
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(stream.run(), name=f"stream to node {number}")
            for number, stream in self._streams.items()
        ]

    def send(self, peer: int, frame: raft_pb2.ExchangeRequest) -> None:
        stream = self._streams.get(peer)
        if stream is not None:
            stream.send(frame)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class PeerService(peer_service_pb2_grpc.PeerServiceServicer):
    """The incoming side: checks who opens a stream, then hands frames to the runtime."""

    def __init__(self, view: ClusterView, runtime: Runtime, snapshots: SnapshotReceiver) -> None:
        self._view, self._runtime, self._snapshots = view, runtime, snapshots
        self._open: set[asyncio.Task[object]] = set()

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

    async def Exchange(  # noqa: N802  # the name of the RPC
        self,
        request_iterator: AsyncIterator[raft_pb2.ExchangeRequest],
        context: grpc.aio.ServicerContext,  # type: ignore[type-arg]
    ) -> raft_pb2.ExchangeResponse:
        hello = await self._hello(request_iterator, context)
        await context.send_initial_metadata(())
        handler = asyncio.current_task()
        assert handler is not None
        self._open.add(handler)
        try:
            async for frame in request_iterator:
                await self._runtime.room()
                self._runtime.tell(Received(hello.from_node, hello.session, frame))
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
        hello = first.hello
        reason = misdirected(self._view, hello)
        if reason:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, reason)
        await refuse_impostor(context, hello)
        return hello


def _short(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name} {error.details()}"
    return type(error).__name__

"""Sends snapshots: one at a time a node, throttled, within a window, on a connection of its own.

A snapshot is read from iterators that were made in one turn of the loop; they live as long as the
attempt to send it, over broken streams too. How long reading holds the loop is measured.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator

import grpc

from mailraft.internal.v1 import peer_service_pb2_grpc, snapshot_pb2
from mailraft.node.consensus.host import Host
from mailraft.node.consensus.messages import Event, SnapshotSent, SnapshotWanted
from mailraft.node.engine.errors import EngineError
from mailraft.node.engine.records import encode_configuration
from mailraft.node.engine.snapshot import Pack, SnapshotSource
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import ClusterView, node_of
from mailraft.node.metrics import SnapshotMetrics
from mailraft.node.pace import Pace
from mailraft.node.peers import PEER_OPTIONS
from mailraft.wire.credentials import AnyCredentials, open_channel

log = logging.getLogger(__name__)

# What may be on its way without an acknowledgement.
WINDOW_BYTES = 4 * 1024 * 1024
# The receiver may have to flush, ingest and wait for a turn in between.
STALL_S_MAX = 20.0
ATTEMPTS_MAX = 5
RESUME_S = 0.2
# Between a snapshot that failed and the next to the same replica.
RETRY_S = 1.0
QUEUE_MAX = 1_024
# Not shared with other channels to the same address: its bytes must not delay theirs.
CHANNEL_OPTIONS = (*PEER_OPTIONS, ("grpc.use_local_subchannel_pool", 1))

DONE, REFUSED = snapshot_pb2.SNAPSHOT_VERDICT_DONE, snapshot_pb2.SNAPSHOT_VERDICT_REFUSED


# A new stream may go on where the old one ended.
_BREAKS_OFF = (TimeoutError, OSError, grpc.aio.AioRpcError)


class SnapshotRefusedError(Exception):
    """The receiver does not take it, or there is nothing to send any more."""


class _Feed:
    """Packs in order, kept until they are acknowledged, so that a new stream can go on."""

    def __init__(self, source: SnapshotSource) -> None:
        self._source = source
        self._packs: Iterator[Pack] = source.packs()
        self._kept: deque[Pack] = deque()  # read, and not acknowledged
        self._next = 0  # in _kept: how many of them are sent on this stream
        self.in_flight_bytes = self.sent_bytes = 0
        self.held_loop_ms = 0.0

    def take(self) -> Pack | None:
        """The next pack to send; None behind the last. Raises CorruptionError."""
        if self._next == len(self._kept):
            began_s = time.perf_counter()
            pack = next(self._packs, None)
            self.held_loop_ms = max(self.held_loop_ms, (time.perf_counter() - began_s) * 1000)
            if pack is None:
                return None
            self._kept.append(pack)
        pack = self._kept[self._next]
        self._next += 1
        self.in_flight_bytes += pack.size_bytes
        self.sent_bytes += pack.size_bytes
        return pack

    def held(self, count: int) -> None:
        """The receiver holds the first `count` packs."""
        while self._kept and self._kept[0].number < count:
            if self._next == 0:
                self._kept.popleft()
                continue
            self._next -= 1
            self.in_flight_bytes -= self._kept.popleft().size_bytes

    def resume(self, count: int) -> None:
        """A new stream goes on behind `count` packs. Raises SnapshotRefusedError if it cannot."""
        self._next = self.in_flight_bytes = 0
        self.held(count)
        if self._kept and self._kept[0].number != count:
            raise SnapshotRefusedError(f"pack {count} is not kept any more")

    def end(self) -> snapshot_pb2.SnapshotEnd:
        return end_message(self._source)


def pack_message(pack: Pack) -> snapshot_pb2.SnapshotPack:
    """A pack as it travels."""
    return snapshot_pb2.SnapshotPack(
        number=pack.number,
        family=pack.family,  # type: ignore[arg-type]  # the same numbers, tested
        row_count=pack.row_count,
        rows=pack.rows,
        crc32c=pack.crc32c,
    )


def end_message(source: SnapshotSource) -> snapshot_pb2.SnapshotEnd:
    """What all packs of a source came to, once the last was taken."""
    totals = source.totals
    assert totals is not None, "every pack was taken"
    return snapshot_pb2.SnapshotEnd(
        pack_count=totals.pack_count, row_count=totals.row_count, crc32c=totals.crc32c
    )


class SnapshotSender:
    """Sends what hosts want sent, one after the other."""

    def __init__(
        self,
        store: Store,
        host: Host,
        view: ClusterView,
        credentials: AnyCredentials,
        tell: Callable[[Event], None],
        pace: Pace,
    ) -> None:
        self._store, self._host, self._view = store, host, view
        self._credentials, self._tell, self._pace = credentials, tell, pace
        self._queue: asyncio.Queue[SnapshotWanted] = asyncio.Queue(QUEUE_MAX)
        self._next_id = time.time_ns()  # another life of this node gives other ids
        self.metrics = SnapshotMetrics()

    def want(self, wanted: SnapshotWanted) -> None:
        """Send one, when its turn comes; the host is told when that is over."""
        if self._queue.full():  # the host asks again
            self._tell_later(wanted)
        else:
            self._queue.put_nowait(wanted)

    async def run(self) -> None:
        while True:
            wanted = await self._queue.get()
            try:
                await self._send(wanted)
                self._tell(SnapshotSent(wanted.group, wanted.replica))
                self.metrics.sent += 1
            except (SnapshotRefusedError, EngineError, *_BREAKS_OFF) as error:
                self.metrics.failed += 1
                log.warning(
                    "snapshot of shard %d to node %d failed: %s",
                    wanted.group,
                    node_of(wanted.replica),
                    _short(error),
                )
                self._tell_later(wanted)

    def _tell_later(self, wanted: SnapshotWanted) -> None:
        event = SnapshotSent(wanted.group, wanted.replica)
        asyncio.get_running_loop().call_later(RETRY_S, self._tell, event)

    async def _send(self, wanted: SnapshotWanted) -> None:
        began_s = time.perf_counter()
        offer, feed = self._begin(wanted)
        feed.held_loop_ms = (time.perf_counter() - began_s) * 1000
        attempt = 0
        while True:
            attempt += 1
            try:
                await self._attempt(wanted, offer, feed)
                break
            except _BREAKS_OFF as error:
                if attempt == ATTEMPTS_MAX:
                    raise
                log.info("snapshot of shard %d breaks off: %s", wanted.group, _short(error))
                await asyncio.sleep(RESUME_S * attempt)
        self.metrics.sent_bytes += feed.sent_bytes
        self.metrics.held_loop_ms_max = max(self.metrics.held_loop_ms_max, feed.held_loop_ms)
        log.info(
            "snapshot of shard %d at %d: %.1f MiB to node %d in %.2f s; the loop was held %.1f ms",
            wanted.group,
            offer.index,
            feed.sent_bytes / (1 << 20),
            node_of(wanted.replica),
            time.perf_counter() - began_s,
            feed.held_loop_ms,
        )

    def _begin(self, wanted: SnapshotWanted) -> tuple[snapshot_pb2.SnapshotOffer, _Feed]:
        """Pin the state as it is in this turn of the loop: no await in here."""
        status = self._host.status(wanted.group)
        if status is None or not status.leading:
            raise SnapshotRefusedError("this replica leads no more")
        source = self._store.snapshot(wanted.group)
        applied = source.applied
        configuration = self._host.configuration_at(wanted.group, applied.index)
        assert configuration is not None, "its status is known"
        self._next_id += 1
        offer = snapshot_pb2.SnapshotOffer(
            cluster_id=self._view.cluster_id,
            from_node=self._view.node,
            to_node=node_of(wanted.replica),
            group=wanted.group,
            from_replica=status.replica,
            to_replica=wanted.replica,
            term=status.term,
            index=applied.index,
            index_term=applied.term,
            digest=applied.digest,
            configuration=encode_configuration(configuration),
            snapshot_id=self._next_id,
        )
        return offer, _Feed(source)

    async def _attempt(
        self, wanted: SnapshotWanted, offer: snapshot_pb2.SnapshotOffer, feed: _Feed
    ) -> None:
        number = node_of(wanted.replica)
        peer = next((peer for peer in self._view.peers() if peer.node == number), None)
        if peer is None:
            raise SnapshotRefusedError(f"node {number} is no member of the cluster")
        async with open_channel(peer.address, self._credentials, CHANNEL_OPTIONS) as channel:
            stub = peer_service_pb2_grpc.PeerServiceStub(channel)
            stream = _Stream(stub)
            try:
                await stream.write(snapshot_pb2.InstallSnapshotRequest(offer=offer))
                answer = await stream.read()
                if answer.verdict == DONE:
                    return
                feed.resume(answer.packs_held)
                await self._pump(stream, feed)
            finally:
                stream.cancel()

    async def _pump(self, stream: _Stream, feed: _Feed) -> None:
        while (pack := feed.take()) is not None:
            await stream.write(snapshot_pb2.InstallSnapshotRequest(pack=pack_message(pack)))
            await self._pace.spent(pack.size_bytes)  # over all snapshots of this node
            while feed.in_flight_bytes > WINDOW_BYTES:
                feed.held((await stream.read()).packs_held)
        await stream.write(snapshot_pb2.InstallSnapshotRequest(end=feed.end()))
        while (answer := await stream.read()).verdict != DONE:
            feed.held(answer.packs_held)


class _Stream:
    """The call, each step of it within STALL_S_MAX."""

    def __init__(self, stub: peer_service_pb2_grpc.PeerServiceAsyncStub) -> None:
        self._call = stub.InstallSnapshot()  # type: ignore[call-arg]  # as PeerStream's

    async def write(self, request: snapshot_pb2.InstallSnapshotRequest) -> None:
        async with asyncio.timeout(STALL_S_MAX):
            try:
                await self._call.write(request)
            except asyncio.InvalidStateError as error:
                raise await self._end() from error

    async def read(self) -> snapshot_pb2.InstallSnapshotResponse:
        async with asyncio.timeout(STALL_S_MAX):
            answer = await self._call.read()
            if not isinstance(answer, snapshot_pb2.InstallSnapshotResponse):
                raise await self._end()
        if answer.verdict == REFUSED:
            raise SnapshotRefusedError(answer.reason)
        return answer

    async def _end(self) -> ConnectionError:
        code, details = await self._call.code(), await self._call.details()
        return ConnectionError(f"the stream ended: {code.name} {details}")

    def cancel(self) -> None:
        self._call.cancel()


def _short(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name} {error.details()}"
    return f"{type(error).__name__} {error}".strip()

"""Receives snapshots into a generation that nobody reads yet, and hands whole ones to consensus.

A crash at any point leaves the replica as it was, or as the snapshot made it: the generation's
number is on disk before its first row, and one write makes it the live one. A stream that breaks
off is gone on with where it ended, for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc

from mailraft.internal.v1 import snapshot_pb2
from mailraft.node import failpoints
from mailraft.node.consensus.host import Host
from mailraft.node.consensus.messages import SnapshotArrived
from mailraft.node.engine.errors import EngineError
from mailraft.node.engine.records import AppliedPosition, decode_configuration
from mailraft.node.engine.snapshot import Pack, SnapshotDamagedError, SnapshotSink, Totals
from mailraft.node.engine.store import Store
from mailraft.node.identity import misdirected, refuse_impostor
from mailraft.node.interfaces import ClusterView, GroupId, LogBase
from mailraft.node.runtime import Runtime

log = logging.getLogger(__name__)

# Snapshots that a node takes in at the same time; one a group.
RECEIVING_MAX = 2
# How long the half of one is kept for a stream that goes on with it.
RESUME_S_MAX = 60.0
# A sender that says nothing for so long is gone.
SILENCE_S_MAX = 20.0

DONE, REFUSED = snapshot_pb2.SNAPSHOT_VERDICT_DONE, snapshot_pb2.SNAPSHOT_VERDICT_REFUSED


class _RefusedError(Exception):
    """Why it is not taken; the sender is told."""


@dataclass(slots=True)
class _Receiving:
    """A snapshot that is coming in."""

    offer: snapshot_pb2.SnapshotOffer
    generation: int
    sink: SnapshotSink
    streaming: bool = True
    idle_since_s: float = field(default_factory=time.monotonic)


class SnapshotReceiver:
    """What PeerService.InstallSnapshot does."""

    def __init__(self, store: Store, host: Host, view: ClusterView, runtime: Runtime) -> None:
        self._store, self._host, self._view, self._runtime = store, host, view, runtime
        self._receiving: dict[GroupId, _Receiving] = {}

    async def serve(
        self,
        requests: AsyncIterator[snapshot_pb2.InstallSnapshotRequest],
        context: grpc.aio.ServicerContext,  # type: ignore[type-arg]
    ) -> AsyncIterator[snapshot_pb2.InstallSnapshotResponse]:
        first = await _next(requests)
        if first is None or not first.HasField("offer"):
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, "a snapshot begins with its offer"
            )
        offer = first.offer
        await refuse_impostor(context, offer)
        receiving: _Receiving | None = None
        try:
            self._check(offer)
            if self._is_held(offer):
                yield snapshot_pb2.InstallSnapshotResponse(verdict=DONE)
                return
            receiving = await self._begin(offer)
            yield snapshot_pb2.InstallSnapshotResponse(packs_held=receiving.sink.packs_held)
            async for answer in self._take(requests, receiving):
                yield answer
        except (_RefusedError, SnapshotDamagedError, EngineError) as error:
            log.warning("snapshot of shard %d refused: %s", offer.group, error)
            if receiving is not None:
                self._drop(receiving)
            yield snapshot_pb2.InstallSnapshotResponse(verdict=REFUSED, reason=str(error))
        finally:
            if receiving is not None:
                receiving.streaming, receiving.idle_since_s = False, time.monotonic()

    # ---- the beginning ---------------------------------------------------------------------------

    def _check(self, offer: snapshot_pb2.SnapshotOffer) -> None:
        reason = misdirected(self._view, offer)
        if reason:
            raise _RefusedError(reason)
        status = self._host.status(offer.group)
        if status is None or status.replica != offer.to_replica:
            raise _RefusedError(f"replica {offer.to_replica:#x} does not run here")

    def _is_held(self, offer: snapshot_pb2.SnapshotOffer) -> bool:
        status = self._host.status(offer.group)
        return status is not None and status.commit_index >= offer.index

    async def _begin(self, offer: snapshot_pb2.SnapshotOffer) -> _Receiving:
        """Go on with the half that is here, or begin under a new generation."""
        self._expire()
        found = self._receiving.get(offer.group)
        if found is not None:
            if found.streaming:
                raise _RefusedError("another snapshot of the group is coming in")
            if found.offer == offer:
                found.streaming = True
                return found
            self._drop(found)
        if len(self._receiving) >= RECEIVING_MAX:
            raise _RefusedError(f"{RECEIVING_MAX} snapshots are coming in already")
        generation = self._store.burn_generation(offer.group)
        receiving = _Receiving(offer, generation, self._store.receive(offer.group, generation))
        self._receiving[offer.group] = receiving
        try:
            await self._runtime.flushed()
        except BaseException:  # its sender is gone, and nobody else knows of it yet
            self._drop(receiving)
            raise
        failpoints.hit("snapshot.after_burn")
        return receiving

    def _expire(self) -> None:
        now_s = time.monotonic()
        for receiving in list(self._receiving.values()):
            if not receiving.streaming and now_s - receiving.idle_since_s > RESUME_S_MAX:
                self._drop(receiving)

    def _drop(self, receiving: _Receiving) -> None:
        if self._receiving.get(receiving.offer.group) is receiving:
            del self._receiving[receiving.offer.group]
            receiving.sink.discard()
            self._store.drop_generation(receiving.offer.group, receiving.generation)

    # ---- the rest --------------------------------------------------------------------------------

    async def _take(
        self,
        requests: AsyncIterator[snapshot_pb2.InstallSnapshotRequest],
        receiving: _Receiving,
    ) -> AsyncIterator[snapshot_pb2.InstallSnapshotResponse]:
        while (request := await _next(requests)) is not None:
            match request.WhichOneof("frame"):
                case "pack":
                    receiving.sink.add(_pack(request.pack))
                    yield snapshot_pb2.InstallSnapshotResponse(packs_held=receiving.sink.packs_held)
                case "end":
                    await self._finish(receiving, request.end)
                    yield snapshot_pb2.InstallSnapshotResponse(verdict=DONE)
                    return
                case _:
                    raise _RefusedError("a frame of an unknown kind")

    async def _finish(self, receiving: _Receiving, end: snapshot_pb2.SnapshotEnd) -> None:
        offer = receiving.offer
        failpoints.hit("snapshot.before_ingest")
        receiving.sink.finish(
            Totals(end.pack_count, end.row_count, end.crc32c),
            AppliedPosition(offer.index, offer.index_term, offer.digest),
        )
        failpoints.hit("snapshot.after_ingest")
        del self._receiving[offer.group]  # from here on the generation is consensus' to decide on
        base = LogBase(offer.index, offer.index_term, decode_configuration(offer.configuration))
        installed = await self._runtime.install(
            SnapshotArrived(
                offer.group, offer.from_replica, receiving.generation, base, offer.digest
            )
        )
        log.info(
            "snapshot of shard %d at %d from node %d is %s",
            offer.group,
            offer.index,
            offer.from_node,
            "live" if installed else "not needed any more",
        )


async def _next(
    requests: AsyncIterator[snapshot_pb2.InstallSnapshotRequest],
) -> snapshot_pb2.InstallSnapshotRequest | None:
    try:
        async with asyncio.timeout(SILENCE_S_MAX):
            return await anext(requests, None)
    except TimeoutError:
        return None


def _pack(sent: snapshot_pb2.SnapshotPack) -> Pack:
    return Pack(sent.number, sent.family, sent.row_count, sent.rows, sent.crc32c)

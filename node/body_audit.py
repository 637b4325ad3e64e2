"""Proves that a replica stores the bodies that its state knows of: none missing, no orphans.

All scans are pinned in one turn of the loop. Bodies, their reference counts and those that wait for
the log lie in the same order, so they are walked side by side; what is stored and in neither is an
orphan unless it waits to be collected (free_body rows, in another order: looked at last).
"""

from __future__ import annotations

import heapq
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import groupby
from operator import itemgetter

import grpc

from mailraft.internal.v1 import audit_service_pb2, audit_service_pb2_grpc, record_pb2
from mailraft.node.engine import keys
from mailraft.node.engine.errors import CorruptionError, UnknownGroupError
from mailraft.node.engine.store import Store
from mailraft.node.healing import Healing
from mailraft.node.interfaces import GroupId
from mailraft.node.pace import Pace

log = logging.getLogger(__name__)

# One step of reading: what holds the loop for about as long as a pack of a snapshot.
STEP_ROWS, STEP_BYTES = 500, 256 * 1024
ROWS_PER_S = 100_000
# A response is sent this often.
TELL_S = 1.0
NAMED_MAX = 100  # of each kind
# Stored bodies that may turn out to be orphans: more are not kept in memory, and the audit fails.
SUSPECTS_MAX = 100_000

_Place = tuple[int, int]
_COUNTED, _DEAD, _STORED = range(3)


class TooManySuspectsError(Exception):
    """More bodies than SUSPECTS_MAX are in no row that lies in their order."""


class BodyAudit:
    """One audit of one replica, as it is when this is made."""

    def __init__(self, store: Store, group: GroupId) -> None:
        self._view = view = store.view(group)  # its generation stays while this lives
        self.found = audit_service_pb2.AuditBodiesResponse(applied_index=store.applied(group)[0])
        self._counted = view.scan(keys.blob(0, 0), keys.request_bucket(0))
        self._dead = view.scan(*keys.DEAD_BODIES)
        self._free = view.scan(keys.free_body(0), keys.DEAD_BODIES[0])
        self._stored = store.bodies(group)
        self._idle = 0  # stored, and nothing refers to them
        self._suspects: dict[_Place, None] = {}

    def steps(self) -> Iterator[tuple[int, int]]:
        """Do it; yields rows and bytes read since the last time. Raises CorruptionError,
        TooManySuspectsError.
        """
        rows = size_bytes = 0
        for place, together in groupby(self._side_by_side(), key=itemgetter(0)):
            for _, kind, value in together:
                rows += 1
                size_bytes += len(value)
                self._take(kind, value)
            self._close(place)
            if rows >= STEP_ROWS or size_bytes >= STEP_BYTES:
                yield rows, size_bytes
                rows = size_bytes = 0
        for key, _ in self._free:
            rows += 1
            self._suspects.pop(keys.free_body_of(key)[1:], None)
            if rows >= STEP_ROWS:
                yield rows, size_bytes
                rows = size_bytes = 0
        found = self.found
        found.orphan_count = len(self._suspects)
        found.waiting = self._idle - found.orphan_count
        for place in list(self._suspects)[:NAMED_MAX]:
            found.orphans.append(_position(place))
        found.complete = True

    def _side_by_side(self) -> Iterator[tuple[_Place, int, bytes]]:
        counted = ((keys.blob_of(key), _COUNTED, value) for key, value in self._counted)
        dead = ((keys.dead_body_of(key), _DEAD, b"") for key, _ in self._dead)
        stored = ((keys.body_position(key), _STORED, value) for key, value in self._stored)
        self._begin()
        return heapq.merge(counted, dead, stored, key=itemgetter(0, 1))

    def _begin(self) -> None:
        self._references = -1  # not counted
        self._is_dead = self._is_stored = False

    def _take(self, kind: int, value: bytes) -> None:
        if kind == _COUNTED:
            self._references = record_pb2.BlobRecord.FromString(value).references
        elif kind == _DEAD:
            self._is_dead = True
        else:
            self._is_stored = True
            self.found.stored_bytes += len(value)

    def _close(self, place: _Place) -> None:
        found = self.found
        found.stored += self._is_stored
        found.referenced += self._references > 0
        found.references += max(0, self._references)
        self._idle += self._is_stored and self._references <= 0
        if self._references >= 0 and not self._is_stored:
            found.missing_count += 1
            if len(found.missing) < NAMED_MAX:
                found.missing.append(_position(place))
        if self._is_stored and self._references < 0 and not self._is_dead:
            if len(self._suspects) == SUSPECTS_MAX:
                raise TooManySuspectsError(f"more than {SUSPECTS_MAX} bodies are not counted")
            self._suspects[place] = None
        self._begin()


class AuditService(audit_service_pb2_grpc.AuditServiceServicer):
    """Audits, throttled."""

    def __init__(self, store: Store, healing: Healing, late_ms: Callable[[], float]) -> None:
        """late_ms: as of node.pace."""
        self._store, self._healing, self._late_ms = store, healing, late_ms
        self._busy = False

    async def AuditBodies(  # noqa: N802  # the name of the RPC
        self,
        request: audit_service_pb2.AuditBodiesRequest,
        context: grpc.aio.ServicerContext,  # type: ignore[type-arg]
    ) -> AsyncIterator[audit_service_pb2.AuditBodiesResponse]:
        if self._busy:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "another audit runs here")
        self._busy = True
        try:
            async for response in self._audit(request.group):
                yield response
        except UnknownGroupError as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except CorruptionError as error:
            log.error("the audit of shard %d ends: %s", request.group, error)  # noqa: TRY400
            await context.abort(grpc.StatusCode.DATA_LOSS, str(error))
        except TooManySuspectsError as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        finally:
            self._busy = False

    async def Scrub(  # noqa: N802  # the name of the RPC
        self,
        request: audit_service_pb2.ScrubRequest,
        context: grpc.aio.ServicerContext,  # type: ignore[type-arg]
    ) -> audit_service_pb2.ScrubResponse:
        told = self._healing.told()
        if request.begin:
            self._healing.scrub.begin()
        return told

    async def _audit(self, group: GroupId) -> AsyncIterator[audit_service_pb2.AuditBodiesResponse]:
        audit = BodyAudit(self._store, group)
        told_s, pace = time.monotonic(), Pace(self._late_ms)
        for rows, size_bytes in audit.steps():
            await pace.spent(size_bytes, rows, ROWS_PER_S)
            if time.monotonic() - told_s >= TELL_S:
                told_s = time.monotonic()
                yield audit.found
        yield audit.found


def _position(place: _Place) -> record_pb2.BodyPosition:
    return record_pb2.BodyPosition(index=place[0], ordinal=place[1])

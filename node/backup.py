"""What a backup reads of this node, and how it brings an account back (docs/decisions/0012).

A shard is read as a snapshot is sent: from iterators that are made in one turn of the loop, a pack
at a time, throttled. The log is read from what is applied, so everything sent is committed.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Protocol

import grpc

from mailraft.internal.v1 import backup_service_pb2 as pb
from mailraft.internal.v1 import backup_service_pb2_grpc, command_pb2
from mailraft.node.consensus.messages import entry_to_wire
from mailraft.node.engine.errors import CorruptionError, EngineError
from mailraft.node.engine.snapshot import Pack, SnapshotSource
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import GroupId, LogCorruptError
from mailraft.node.pace import Pace
from mailraft.node.runtime import now_s
from mailraft.node.services import convert, mutations, validate
from mailraft.node.shard import Replica
from mailraft.node.snapshots import end_message, pack_message
from mailraft.v1 import common_pb2
from mailraft.wire import errors

# One step of reading the log: what holds the loop for about as long as a pack of a snapshot.
STEP_BYTES = 256 * 1024
READ_S, PROPOSE_S = 10.0, 10.0
_LINEARIZABLE = common_pb2.CONSISTENCY_LINEARIZABLE

Context = grpc.aio.ServicerContext[Any, Any]


class Node(Protocol):
    """What it needs of the node that it is part of."""

    def replica_for_account(self, account_id: str) -> Replica: ...

    def stamp_ms(self) -> int: ...

    def admit(self, replica: Replica, command: command_pb2.Command) -> None: ...


class BackupService(backup_service_pb2_grpc.BackupServiceServicer):
    """Implements BackupService of mailraft.internal.v1."""

    def __init__(
        self,
        store: Store,
        node: Node,
        replicas: Mapping[GroupId, Replica],
        late_ms: Callable[[], float],
    ) -> None:
        """late_ms: as of node.pace."""
        self._store, self._node, self._replicas = store, node, replicas
        self._late_ms = late_ms
        self._busy = False

    async def ReadShard(  # noqa: N802  # the name of the RPC
        self, request: pb.ReadShardRequest, context: Context
    ) -> AsyncIterator[pb.ReadShardResponse]:
        if self._busy:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "another backup runs here")
        self._busy = True
        try:
            time_ms = await self._catch_up(request.group)
            source = self._store.snapshot(request.group, bodies_above=request.bodies_above)
            pace = Pace(self._late_ms, request.bytes_per_s)
            async for response in _packs(source, time_ms, pace):
                yield response
        except errors.MailraftError as error:
            await errors.abort(context, error)
        except EngineError as error:
            await context.abort(grpc.StatusCode.DATA_LOSS, str(error))
        finally:
            self._busy = False

    async def ReadLog(  # noqa: N802  # the name of the RPC
        self, request: pb.ReadLogRequest, context: Context
    ) -> AsyncIterator[pb.ReadLogResponse]:
        try:
            async for response in self._entries(request):
                yield response
        except errors.MailraftError as error:
            await errors.abort(context, error)
        except (LogCorruptError, CorruptionError) as error:
            await context.abort(grpc.StatusCode.DATA_LOSS, str(error))

    async def CreateRestored(  # noqa: N802  # the name of the RPC
        self, request: pb.CreateRestoredRequest, context: Context
    ) -> pb.CreateRestoredResponse:
        try:
            if not request.validate_only:
                await self._create(request)
        except errors.MailraftError as error:
            await errors.abort(context, error)
        return pb.CreateRestoredResponse()

    # ---- inside ----------------------------------------------------------------------------------

    async def _catch_up(self, group: GroupId) -> int:
        """Have everything applied here that was acknowledged before the wall clock's time, which is
        answered.
        """
        time_ms = time.time_ns() // 1_000_000
        await self._replica(group).read(_LINEARIZABLE, deadline_s=now_s() + READ_S)
        return time_ms

    def _replica(self, group: GroupId) -> Replica:
        replica = self._replicas.get(group)
        if replica is None:
            raise errors.ShardNotFoundError(f"no replica of shard {group} is here")
        return replica

    async def _entries(self, request: pb.ReadLogRequest) -> AsyncIterator[pb.ReadLogResponse]:
        group, at = request.group, request.after_index
        time_ms = await self._catch_up(group)
        last = self._store.applied(group)[0]
        log, pace = self._store.log(group), Pace(self._late_ms, request.bytes_per_s)
        while at < last:
            entries = log.entries(at + 1, last, STEP_BYTES)
            if not entries or entries[0].index != at + 1:  # compacted, maybe since it began
                yield pb.ReadLogResponse(complete=True, gap=True, time_ms=time_ms)
                return
            at = entries[-1].index
            yield pb.ReadLogResponse(entries=map(entry_to_wire, entries))
            await pace.spent(sum(entry.size_bytes for entry in entries))
        yield pb.ReadLogResponse(complete=True, time_ms=time_ms, applied_index=last)

    async def _create(self, request: pb.CreateRestoredRequest) -> None:
        validate.account_id(request.account_id)
        validate.request_id(request.request_id)
        action = command_pb2.CreateAccount(
            account_id=request.account_id,
            quota_bytes=request.quota_bytes,
            quota_messages=request.quota_messages,
            attributes=request.attributes,
            undelete_window_ms=request.undelete_window_ms,
            restore_epoch=request.restore_epoch,
            last_uid_validity=request.last_uid_validity,
        )
        command = command_pb2.Command(
            time_ms=self._node.stamp_ms(),
            request_id=request.request_id,
            fingerprint=mutations.fingerprint(
                "create_account", action.SerializeToString(deterministic=True)
            ),
            create_account=action,
        )
        replica = self._node.replica_for_account(request.account_id)
        self._node.admit(replica, command)
        committed = await replica.propose(command, deadline_s=now_s() + PROPOSE_S)
        reply = mutations.reply_of(committed)
        if reply.WhichOneof("outcome") == "refusal":
            raise convert.refusal(reply.refusal)


async def _packs(
    source: SnapshotSource, time_ms: int, pace: Pace
) -> AsyncIterator[pb.ReadShardResponse]:
    applied = source.applied
    packs: Iterator[Pack] = source.packs()
    yield pb.ReadShardResponse(
        begin=pb.ReadShardBegin(
            index=applied.index, term=applied.term, digest=applied.digest, time_ms=time_ms
        )
    )
    for pack in packs:
        yield pb.ReadShardResponse(pack=pack_message(pack))
        await pace.spent(pack.size_bytes)
    yield pb.ReadShardResponse(end=end_message(source))

"""What a backup asks of the nodes of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import google_crc32c
import grpc

from mailraft.cluster.backup.chunks import Row, rows_in
from mailraft.cluster.backup.sealed import DamagedBackupError
from mailraft.internal.v1 import backup_service_pb2 as pb
from mailraft.internal.v1 import backup_service_pb2_grpc, raft_pb2, snapshot_pb2
from mailraft.node.engine.records import AppliedPosition
from mailraft.node.engine.snapshot import Pack
from mailraft.node.peers import PEER_OPTIONS
from mailraft.v1 import cluster_pb2
from mailraft.wire import errors
from mailraft.wire.credentials import AnyCredentials, open_channel

# Of one shard, at the lowest rate that anybody would set.
READ_SHARD_S_MAX = 12 * 3600.0
READ_LOG_S_MAX = 120.0
CREATE_S_MAX = 15.0
TRIES, PAUSE_S = 3, 0.5


@dataclass(slots=True)
class LogRead:
    """What a shard's log holds behind an index."""

    applied_index: int = 0
    time_ms: int = 0  # what was acknowledged before is in it
    gap: bool = False
    entries: list[raft_pb2.LogEntry] = field(default_factory=list)


class ShardRead:
    """One shard on its way out of a node: `applied` is known before the first row."""

    def __init__(
        self, call: grpc.aio.UnaryStreamCall[pb.ReadShardRequest, pb.ReadShardResponse], name: str
    ) -> None:
        self._call, self._name = call, name
        self.applied = AppliedPosition(0, 0, b"")

    async def begin(self) -> None:
        first = await self._call.read()
        if not isinstance(first, pb.ReadShardResponse) or not first.HasField("begin"):
            raise await self._broken()
        begin = first.begin
        self.applied = AppliedPosition(begin.index, begin.term, begin.digest)

    async def rows(self) -> AsyncIterator[tuple[int, Sequence[Row]]]:
        """(family, rows) of each pack, proven and counted. Raises DamagedBackupError, errors."""
        count = row_count = checksum = 0
        while True:
            response = await self._call.read()
            if not isinstance(response, pb.ReadShardResponse):
                raise await self._broken()
            if response.HasField("end"):
                found = snapshot_pb2.SnapshotEnd(
                    pack_count=count, row_count=row_count, crc32c=checksum
                )
                if found != response.end:
                    raise DamagedBackupError(f"{self._name}: rows are missing")
                return
            sent = response.pack
            pack = Pack(sent.number, int(sent.family), sent.row_count, sent.rows, sent.crc32c)
            if sent.number != count:
                raise DamagedBackupError(f"{self._name}: pack {sent.number} came behind {count}")
            yield pack.family, rows_in(self._name, pack)
            count += 1
            row_count += sent.row_count
            checksum = google_crc32c.extend(checksum, sent.crc32c.to_bytes(4, "little"))

    def cancel(self) -> None:
        self._call.cancel()

    async def _broken(self) -> errors.MailraftError:
        code, details = await self._call.code(), await self._call.details()
        return errors.UnavailableError(f"{self._name}: {code.name} {details}")


class Nodes:
    """Keeps a channel to every node of a cluster map."""

    def __init__(self, cluster_map: cluster_pb2.ClusterMap, credentials: AnyCredentials) -> None:
        self.map = cluster_map
        self._channels = {
            node.id: open_channel(node.address, credentials, PEER_OPTIONS)
            for node in cluster_map.nodes
        }
        self._stubs = {
            node: backup_service_pb2_grpc.BackupServiceStub(channel)
            for node, channel in self._channels.items()
        }
        # A node lets one backup read at a time.
        self.turns = {node: asyncio.Lock() for node in self._channels}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(channel.close(None) for channel in self._channels.values()))

    @property
    def groups(self) -> list[int]:
        """The mail shards."""
        return [shard.id for shard in self.map.shards if shard.id]

    def replicas(self, group: int, *, leader_first: bool) -> list[int]:
        """Nodes with a replica. The leader has everything first; a follower has more time."""
        shard = next(each for each in self.map.shards if each.id == group)
        leader = shard.leader.node_id
        nodes = sorted(
            each.node_id
            for each in shard.replicas
            if each.role != cluster_pb2.REPLICA_ROLE_LEARNER and each.node_id in self._stubs
        )
        # Not the same follower for every shard.
        turn = group % max(1, len(nodes))
        nodes = nodes[turn:] + nodes[:turn]
        return sorted(nodes, key=lambda node: (node == leader) != leader_first)

    def read_shard(self, node: int, request: pb.ReadShardRequest) -> ShardRead:
        call = self._stubs[node].ReadShard(request, timeout=READ_SHARD_S_MAX)
        return ShardRead(call, f"shard {request.group} from node {node}")

    async def read_log(self, group: int, after_index: int, bytes_per_s: int) -> LogRead:
        """From the first replica that has it. Raises MailraftError when none answers."""
        request = pb.ReadLogRequest(group=group, after_index=after_index, bytes_per_s=bytes_per_s)
        failed: errors.MailraftError | None = None
        gap: LogRead | None = None
        for node in self.replicas(group, leader_first=True):
            try:
                found = await self._read_log(node, request)
            except grpc.aio.AioRpcError as error:
                failed = errors.from_rpc_error(error)
                continue
            if not found.gap:
                return found
            gap = found
        if gap is not None and failed is None:
            return gap
        raise failed or errors.UnavailableError(f"shard {group} has no replica")

    async def _read_log(self, node: int, request: pb.ReadLogRequest) -> LogRead:
        found = LogRead()
        async for response in self._stubs[node].ReadLog(request, timeout=READ_LOG_S_MAX):
            found.entries += response.entries
            if response.complete:
                found.applied_index, found.time_ms = response.applied_index, response.time_ms
                found.gap = response.gap
                return found
        raise errors.UnavailableError(f"node {node} ended the log of shard {request.group} early")

    # ---- restoring

    async def know_restoring(self) -> None:
        """Raises MailraftError unless every node knows CreateRestored."""
        request = pb.CreateRestoredRequest(validate_only=True)
        for node, stub in self._stubs.items():
            try:
                await stub.CreateRestored(request, timeout=CREATE_S_MAX)
            except grpc.aio.AioRpcError as error:
                failed = errors.from_rpc_error(error)
                raise type(failed)(f"node {node} cannot restore accounts: {failed}") from error

    async def create_restored(self, group: int, request: pb.CreateRestoredRequest) -> None:
        """At the leader, wherever it is by then. Raises MailraftError."""
        failed: errors.MailraftError = errors.NoLeaderError(f"shard {group}")
        for _ in range(TRIES):
            for node in self.replicas(group, leader_first=True):
                try:
                    await self._stubs[node].CreateRestored(request, timeout=CREATE_S_MAX)
                except grpc.aio.AioRpcError as error:
                    failed = errors.from_rpc_error(error)
                    if not failed.retryable:
                        raise failed from error
                else:
                    return
            await asyncio.sleep(PAUSE_S)
        raise failed

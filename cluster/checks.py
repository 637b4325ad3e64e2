"""What `mailraft check` asks the nodes of a cluster: each for its own replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import grpc

from mailraft.internal.v1 import audit_service_pb2, audit_service_pb2_grpc, record_pb2
from mailraft.node.agreement import Digests, compare
from mailraft.node.interfaces import META_GROUP
from mailraft.v1 import cluster_pb2, cluster_pb2_grpc
from mailraft.wire.channels import Channels
from mailraft.wire.credentials import AnyCredentials

ASK_S_MAX = 5.0
# Replicas that get writes are at one index now and then, and share earlier ones soon.
TRIES_MAX, TRY_S = 10, 0.5
AUDIT_S_MAX = 3600.0  # of one replica
FIRST_MAX = 10  # ids that are printed


@dataclass(slots=True)
class ShardCompared:
    """One shard; replicas by the names of their nodes."""

    shard: int
    replicas: int
    is_meta: bool = False
    index: int = 0
    matching: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    # Node to why it was not compared.
    missing: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        name = "meta" if self.is_meta else f"s{self.shard}"
        told = [f"{name} @{self.index}: {len(self.matching)}/{self.replicas} match"]
        told += [f"{name} differs" for name in self.differing]
        told += [f"{name} {why}" for name, why in self.missing.items()]
        return ", ".join(told)


@dataclass(slots=True)
class BodiesFound:
    """One replica. Ids of bodies are log index - ordinal."""

    shard: int
    node: str
    index: int = 0
    stored: int = 0
    stored_bytes: int = 0
    referenced: int = 0
    references: int = 0
    waiting: int = 0
    missing: int = 0
    orphans: int = 0
    first_missing: list[str] = field(default_factory=list)
    first_orphans: list[str] = field(default_factory=list)
    error: str = ""

    @property
    def wrong(self) -> bool:
        return bool(self.missing or self.orphans)

    def __str__(self) -> str:
        head = f"s{self.shard} {self.node} @{self.index}"
        if self.error:
            return f"{head}: not looked at: {self.error}"
        told = f"{head}: {self.stored} stored, {self.referenced} referenced, {self.waiting} waiting"
        told += f", {self.missing} missing{_listed(self.first_missing)}"
        return f"{told}, {self.orphans} orphans{_listed(self.first_orphans)}"


@dataclass(slots=True)
class _Told:
    """What nodes said of the replicas of one shard."""

    digests: dict[int, Digests] = field(default_factory=dict)
    aside: set[int] = field(default_factory=set)


class Checks:
    """Keeps a channel to every node of a cluster map."""

    def __init__(self, cluster_map: cluster_pb2.ClusterMap, credentials: AnyCredentials) -> None:
        self._map = cluster_map
        # The one that keeps the map, if there is one, and the shards.
        meta = [cluster_map.meta] if cluster_map.HasField("meta") else []
        self._groups = [*meta, *cluster_map.shards]
        self._names = {node.id: node.name for node in cluster_map.nodes}
        self._channels = Channels(credentials)
        self._addresses = {node.id: node.address for node in cluster_map.nodes}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channels.close()

    # ---- digests ---------------------------------------------------------------------------------

    async def compare(self) -> list[ShardCompared]:
        """Every group, at an index that as many replicas as possible have reached."""
        found: dict[int, ShardCompared] = {}
        for attempt in range(TRIES_MAX):
            if attempt:
                await asyncio.sleep(TRY_S)
            told = await asyncio.gather(*map(self._statuses, self._addresses))
            asked = zip(self._addresses, told, strict=True)
            silent = {node for node, each in asked if each is None}
            gathered = self._gathered([each or [] for each in told])
            for shard in self._groups:
                known = found.get(shard.id)
                if known is None or known.missing:
                    found[shard.id] = self._compared(shard, gathered[shard.id], silent)
            waits = (why for each in found.values() for why in each.missing.values())
            if not any(why == _BEHIND for why in waits):
                break
        return [found[shard.id] for shard in self._groups]

    async def _statuses(self, node: int) -> list[cluster_pb2.ShardStatus] | None:
        stub = cluster_pb2_grpc.ClusterServiceStub(self._channels.to(self._addresses[node]))
        request = cluster_pb2.ListShardsRequest(node_id=node)
        found: list[cluster_pb2.ShardStatus] = []
        try:
            if any(replica.node_id == node for replica in self._map.meta.replicas):
                found += await _meta_status(stub)
            while True:
                page = await stub.ListShards(request, timeout=ASK_S_MAX)
                found += page.shards
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    return found
        except grpc.aio.AioRpcError:
            return None

    def _gathered(self, told: Sequence[Sequence[cluster_pb2.ShardStatus]]) -> dict[int, _Told]:
        gathered = {shard.id: _Told() for shard in self._groups}
        for statuses in told:
            for status in statuses:
                shard = gathered.setdefault(status.shard.id, _Told())
                for replica in status.replicas:
                    if replica.state == cluster_pb2.REPLICA_STATE_CORRUPT:
                        shard.aside.add(replica.replica_id)
                    if replica.digest:
                        earlier = [(each.applied_index, each.digest) for each in replica.earlier]
                        newest = (replica.applied_index, replica.digest)
                        shard.digests[replica.replica_id] = [*earlier, newest]
        return gathered

    def _compared(self, shard: cluster_pb2.Shard, told: _Told, silent: set[int]) -> ShardCompared:
        name = {each.replica_id: self._names.get(each.node_id, "?") for each in shard.replicas}
        found = ShardCompared(shard.id, len(shard.replicas), shard is self._map.meta)
        voters = [
            each.replica_id
            for each in shard.replicas
            if each.role != cluster_pb2.REPLICA_ROLE_LEARNER
        ]
        told.digests = {
            replica: digests
            for replica, digests in told.digests.items()
            if replica in name and replica not in told.aside
        }
        verdict = compare(told.digests, voters=voters, leader=shard.leader.replica_id)
        agreeing = verdict.agreeing if verdict is not None else frozenset()
        differing = told.aside | (verdict.differing if verdict is not None else frozenset())
        found.index = verdict.index if verdict is not None else 0
        for each in sorted(shard.replicas, key=lambda each: each.node_id):
            if each.replica_id in differing:
                found.differing.append(name[each.replica_id])
            elif each.replica_id in agreeing:
                found.matching.append(name[each.replica_id])
            else:
                silence = "does not answer" if each.node_id in silent else _BEHIND
                found.missing[name[each.replica_id]] = silence
        return found

    # ---- bodies ----------------------------------------------------------------------------------

    async def audit(self) -> list[BodiesFound]:
        """Every replica: nodes side by side, the replicas of one node one after the other."""
        told = await asyncio.gather(*map(self._audit_node, self._addresses))
        found = [each for replicas in told for each in replicas]
        return sorted(found, key=lambda each: (each.shard, each.node))

    async def _audit_node(self, node: int) -> list[BodiesFound]:
        shards = [
            shard.id
            for shard in self._map.shards
            if any(replica.node_id == node for replica in shard.replicas)
        ]
        return [await self._audit(node, shard) for shard in shards]

    async def _audit(self, node: int, shard: int) -> BodiesFound:
        stub = audit_service_pb2_grpc.AuditServiceStub(self._channels.to(self._addresses[node]))
        request = audit_service_pb2.AuditBodiesRequest(group=shard)
        found = BodiesFound(shard, self._names[node], error="it ended too early")
        try:
            async for response in stub.AuditBodies(request, timeout=AUDIT_S_MAX):
                if response.complete:
                    found.error = ""
                    _take(found, response)
        except grpc.aio.AioRpcError as error:
            found.error = f"{error.code().name} {error.details()}"
        return found


async def _meta_status(
    stub: cluster_pb2_grpc.ClusterServiceAsyncStub,
) -> list[cluster_pb2.ShardStatus]:
    """Nothing from a node before 0.3.0, which tells of shards alone."""
    try:
        request = cluster_pb2.GetShardRequest(shard=META_GROUP)
        return [(await stub.GetShard(request, timeout=ASK_S_MAX)).shard]
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return []
        raise


_BEHIND = "is behind: no index in common"


def _take(found: BodiesFound, response: audit_service_pb2.AuditBodiesResponse) -> None:
    found.index = response.applied_index
    found.stored, found.stored_bytes = response.stored, response.stored_bytes
    found.referenced, found.references = response.referenced, response.references
    found.waiting = response.waiting
    found.missing, found.orphans = response.missing_count, response.orphan_count
    found.first_missing = [_id(each) for each in response.missing[:FIRST_MAX]]
    found.first_orphans = [_id(each) for each in response.orphans[:FIRST_MAX]]


def _id(position: record_pb2.BodyPosition) -> str:
    return f"{position.index}-{position.ordinal}"


def _listed(ids: Sequence[str]) -> str:
    return f" ({' '.join(ids)})" if ids else ""

"""ClusterService, from this node's copy of the cluster map and from its own replicas.

Of a shard with a replica here the leader hint is the replica's, else the map's. What only others
know is left empty: a node that this one does not hear is not reachable *from here*.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from mailraft.node.interfaces import META_GROUP, node_of
from mailraft.node.shard import Replica
from mailraft.v1 import cluster_pb2
from mailraft.wire import errors, limits, tokens
from mailraft.wire.slots import slot_of

from . import append, blobs, levels, validate, write_levels
from .base import Call, Service, Shards

HEARTBEAT_S = 15.0  # cluster.proto, WatchClusterMapResponse
HINT_DELAY_S = 0.25  # until a watcher is told of a new leader
HEARD_LATELY_MS = 5_000
TOMBSTONE_WINDOW_MS = 30 * 24 * 3600 * 1000


class Maps(Protocol):
    """This node's copy of the cluster map, from the composition root."""

    def current(self) -> cluster_pb2.ClusterMap:
        """Not to be changed by who asks; a new map is a new object."""

    async def wait_newer(self, epoch: int, timeout_s: float) -> None:
        """Returns when the map's epoch is above this one, or when the time is up."""


class Cluster:
    def __init__(self, shards: Shards, maps: Maps, version: str) -> None:
        self._shards, self._maps, self._version = shards, maps, version

    def service(self) -> Service:
        return Service(
            cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"],
            unary={
                "GetClusterMap": self.GetClusterMap,
                "ListNodes": self.ListNodes,
                "GetShard": self.GetShard,
                "ListShards": self.ListShards,
                "Locate": self.Locate,
                "GetCapabilities": self.GetCapabilities,
            },
            streams={"WatchClusterMap": self.WatchClusterMap},
        )

    # ---- the map

    async def GetClusterMap(
        self, request: cluster_pb2.GetClusterMapRequest, call: Call
    ) -> cluster_pb2.GetClusterMapResponse:
        current = self._maps.current()
        if request.known_epoch == current.epoch:
            hints = self._hints(current)
            only_hints = cluster_pb2.ClusterMap(
                cluster_id=current.cluster_id,
                epoch=current.epoch,
                shards=[cluster_pb2.Shard(id=each, leader=hints[each]) for each in sorted(hints)],
            )
            return cluster_pb2.GetClusterMapResponse(map=only_hints)
        return cluster_pb2.GetClusterMapResponse(map=self._with_hints(current))

    async def WatchClusterMap(
        self, request: cluster_pb2.WatchClusterMapRequest, call: Call
    ) -> AsyncIterator[cluster_pb2.WatchClusterMapResponse]:
        epoch, told = request.known_epoch, dict[int, cluster_pb2.LeaderHint]()
        said_s = float("-inf")
        while True:
            current = self._maps.current()
            hints = self._hints(current)
            response = cluster_pb2.WatchClusterMapResponse(epoch=current.epoch)
            if current.epoch != epoch:
                response.map.CopyFrom(self._with_hints(current))
                epoch = current.epoch
            else:
                response.leaders.extend(
                    hints[shard] for shard in sorted(hints) if told.get(shard) != hints[shard]
                )
            news = response.HasField("map") or response.leaders
            if news or self._shards.now_s() - said_s >= HEARTBEAT_S:
                told, said_s = hints, self._shards.now_s()
                yield response
            await self._maps.wait_newer(epoch, HINT_DELAY_S)

    async def Locate(
        self, request: cluster_pb2.LocateRequest, call: Call
    ) -> cluster_pb2.LocateResponse:
        validate.account_id(request.account_id)
        current = self._maps.current()
        slot = slot_of(request.account_id)
        shard = self._shard(current, self._shards.cluster.shard_of_slot(slot))
        holders = {replica.node_id for replica in shard.replicas}
        return cluster_pb2.LocateResponse(
            slot=slot,
            shard=shard,
            nodes=[node for node in current.nodes if node.id in holders],
            epoch=current.epoch,
        )

    # ---- nodes and shards

    async def ListNodes(
        self, request: cluster_pb2.ListNodesRequest, call: Call
    ) -> cluster_pb2.ListNodesResponse:
        current = self._maps.current()
        after = _opened(request.page_token, "ListNodes", 0)
        found = [node for node in current.nodes if node.id > after]
        size = validate.page_size(request.page_size)
        hints = self._hints(current)
        ages_ms = self._heard_ages_ms()
        response = cluster_pb2.ListNodesResponse(epoch=current.epoch)
        for node in found[:size]:
            age_ms = ages_ms.get(node.id)
            response.nodes.add(
                node=node,
                reachable=age_ms is not None and age_ms <= HEARD_LATELY_MS,
                heard_age_ms=age_ms or 0,
                replicas=sum(
                    replica.node_id == node.id
                    for shard in current.shards
                    for replica in shard.replicas
                ),
                leaders=sum(hint.node_id == node.id for hint in hints.values()),
            )
        if len(found) > size:
            response.next_page_token = _token("ListNodes", 0, found[size - 1].id)
        return response

    async def GetShard(
        self, request: cluster_pb2.GetShardRequest, call: Call
    ) -> cluster_pb2.GetShardResponse:
        current = self._maps.current()
        shard = self._shard(current, request.shard)
        return cluster_pb2.GetShardResponse(shard=self._status(shard), epoch=current.epoch)

    async def ListShards(
        self, request: cluster_pb2.ListShardsRequest, call: Call
    ) -> cluster_pb2.ListShardsResponse:
        current = self._maps.current()
        after = _opened(request.page_token, "ListShards", request.node_id)
        # Shards are told by id, and the lowest is 0: a token names the next one.
        found = [
            shard
            for shard in self._with_hints(current).shards
            if shard.id >= after
            and (not request.node_id or any(r.node_id == request.node_id for r in shard.replicas))
        ]
        size = validate.page_size(request.page_size)
        response = cluster_pb2.ListShardsResponse(
            shards=[self._status(shard) for shard in found[:size]], epoch=current.epoch
        )
        if len(found) > size:
            response.next_page_token = _token("ListShards", request.node_id, found[size].id)
        return response

    # ---- abilities

    async def GetCapabilities(
        self, request: cluster_pb2.GetCapabilitiesRequest, call: Call
    ) -> cluster_pb2.GetCapabilitiesResponse:
        policy = self._shards.policy()
        return cluster_pb2.GetCapabilitiesResponse(
            cluster_id=self._shards.cluster.cluster_id,
            version=self._version,
            feature_level=self._shards.cluster.feature_level,
            limits=_limits(),
            consistencies=levels.CONSISTENCIES,
            ack_levels=write_levels.allowed(policy),
            default_consistency=levels.default(policy),
            default_ack=write_levels.default(policy),
            time_ms=self._shards.wall_ms(),
        )

    # ---- inside

    def _hints(self, current: cluster_pb2.ClusterMap) -> dict[int, cluster_pb2.LeaderHint]:
        hints = {shard.id: shard.leader for shard in current.shards if shard.HasField("leader")}
        for replica in self._shards.replicas():
            leader, term = replica.leadership.leader, replica.leadership.term
            if leader and term >= (hints[replica.group].term if replica.group in hints else 0):
                hints[replica.group] = _hint(replica)
        return hints

    def _with_hints(self, current: cluster_pb2.ClusterMap) -> cluster_pb2.ClusterMap:
        told = cluster_pb2.ClusterMap()
        told.CopyFrom(current)
        hints = self._hints(current)
        for shard in told.shards:
            if shard.id in hints:
                shard.leader.CopyFrom(hints[shard.id])
        hint = self._meta_hint()
        if hint is not None:
            told.meta.leader.CopyFrom(hint)
        return told

    def _meta_hint(self) -> cluster_pb2.LeaderHint | None:
        meta = self._shards.meta
        return _hint(meta) if meta is not None and meta.leadership.leader else None

    def _shard(self, current: cluster_pb2.ClusterMap, number: int) -> cluster_pb2.Shard:
        is_meta = number == META_GROUP and current.HasField("meta")
        for shard in (current.meta,) if is_meta else current.shards:
            if shard.id == number:
                told = cluster_pb2.Shard()  # not the whole map: clients locate their accounts here
                told.CopyFrom(shard)
                hint = self._meta_hint() if is_meta else self._hints(current).get(number)
                if hint is not None:
                    told.leader.CopyFrom(hint)
                return told
        raise errors.ShardNotFoundError(f"there is no shard {number}")

    def _status(self, shard: cluster_pb2.Shard) -> cluster_pb2.ShardStatus:
        here = (*self._shards.replicas(), self._shards.meta)
        own = next((each for each in here if each is not None and each.group == shard.id), None)
        status = cluster_pb2.ShardStatus(shard=shard)
        differing = self._shards.differing(shard.id) if own is not None else ()
        for replica in shard.replicas:
            told = status.replicas.add(replica_id=replica.replica_id)
            if own is not None and replica.replica_id == own.replica:
                self._tell_own(told, own)
            if replica.replica_id in differing:
                told.state = cluster_pb2.REPLICA_STATE_CORRUPT
        if own is not None:
            status.commit_index = own.applied_index
            status.available = bool(own.leadership.leader)
        return status

    def _tell_own(self, told: cluster_pb2.ReplicaStatus, own: Replica) -> None:
        told.state = cluster_pb2.REPLICA_STATE_FOLLOWING
        if own.stopped:
            told.state = cluster_pb2.REPLICA_STATE_CORRUPT
        elif own.leadership.leading:
            told.state = cluster_pb2.REPLICA_STATE_LEADING
        told.heard_age_ms = own.heard_age_ms()
        *earlier, (told.applied_index, told.digest) = self._shards.digests(own.group)
        for index, digest in earlier:
            told.earlier.add(applied_index=index, digest=digest)

    def _heard_ages_ms(self) -> dict[int, int]:
        """By node: this one itself, and those that lead a replica here."""
        ages_ms = {self._shards.cluster.node: 0}
        for replica in self._shards.replicas():
            leader = node_of(replica.leadership.leader)
            if leader:
                ages_ms[leader] = min(ages_ms.get(leader, 2**31), replica.heard_age_ms())
        return ages_ms


def _hint(replica: Replica) -> cluster_pb2.LeaderHint:
    """Who leads, by what a replica knows."""
    leader, term = replica.leadership.leader, replica.leadership.term
    return cluster_pb2.LeaderHint(
        shard=replica.group, node_id=node_of(leader), replica_id=leader, term=term
    )


def _token(name: str, bound: int, position: int) -> str:
    return tokens.page_token((name, bound), position.to_bytes(4))


def _opened(token: str, name: str, bound: int) -> int:
    return int.from_bytes(tokens.open_page_token(token, (name, bound))) if token else 0


def _limits() -> cluster_pb2.Limits:
    return cluster_pb2.Limits(
        request_bytes=limits.RPC_MAX_BYTES,
        message_bytes=limits.MESSAGE_MAX_BYTES,
        upload_bytes=limits.UPLOAD_MAX_BYTES,
        upload_window_ms=limits.UPLOAD_WINDOW_MS,
        deliveries=limits.DELIVERIES_PER_CALL_MAX,
        recipients_per_delivery=limits.RECIPIENTS_PER_DELIVERY_MAX,
        recipients=validate.RECIPIENTS_PER_CALL_MAX,
        append_messages=append.ITEMS_MAX,
        batch_items=limits.BATCH_ITEMS_MAX,
        messages_per_command=limits.MESSAGES_PER_COMMAND_MAX,
        page_size=limits.PAGE_SIZE_MAX,
        get_blob_bytes=blobs.PIECE_MAX_BYTES,
        mailboxes=limits.MAILBOXES_PER_ACCOUNT_MAX,
        keywords_per_message=limits.KEYWORDS_PER_MESSAGE_MAX,
        mailboxes_per_message=limits.TARGETS_PER_MESSAGE_MAX,
        request_id_window_ms=limits.REQUEST_ID_WINDOW_MS,
        tombstone_window_ms=TOMBSTONE_WINDOW_MS,
    )

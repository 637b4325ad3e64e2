"""The routing table: account -> slot -> shard -> replicas -> addresses, and who leads.

The map is immutable and replaced as a whole when its epoch rises; who leads is a small cache of
hints, of which the one with the higher term wins.
"""

from __future__ import annotations

import asyncio
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass

from mailraft.v1 import cluster_pb2, error_pb2
from mailraft.wire import errors
from mailraft.wire.slots import SLOTS, slot_of

# What serves the whole cluster (the meta group) has a leader too, under this number.
CLUSTER = -1


class WrongClusterError(ValueError):
    """The map, or the server, is of another cluster."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a replica is. node_id 0: known by its address only."""

    node_id: int
    address: str
    replica_id: int = 0
    voter: bool = True
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Leader:
    place: Place | None  # None: it is in doubt, the term still counts
    term: int


_NOBODY = Leader(None, 0)


class Topology:
    """One cluster map, indexed. Immutable."""

    def __init__(self, cluster_map: cluster_pb2.ClusterMap) -> None:
        if cluster_map.slot_count not in (0, SLOTS):
            raise ValueError(f"a map of {cluster_map.slot_count} slots, not {SLOTS}")
        self.map = cluster_map
        self.cluster_id = cluster_map.cluster_id
        self.epoch = cluster_map.epoch
        self.nodes: Mapping[int, cluster_pb2.Node] = {node.id: node for node in cluster_map.nodes}
        self.shards: Mapping[int, cluster_pb2.Shard] = {
            shard.id: shard for shard in cluster_map.shards
        }
        ranges = sorted(cluster_map.slots, key=lambda each: each.first_slot)
        after = 0
        for each in ranges:
            if each.first_slot != after or each.shard not in self.shards:
                raise ValueError(f"slot {after} has no shard in the cluster map")
            after = each.last_slot + 1
        if after != SLOTS:
            raise ValueError(f"slot {after} has no shard in the cluster map")
        self._firsts = [each.first_slot for each in ranges]
        self._range_shards = [each.shard for each in ranges]
        self._places = {shard.id: self._places_of(shard) for shard in cluster_map.shards}
        self.cluster_places = tuple(
            Place(node.id, node.address, zone=node.zone)
            for node in cluster_map.nodes
            if node.state != cluster_pb2.NODE_STATE_REMOVED and node.address
        )

    def shard_of(self, account_id: str) -> int:
        return self.shard_of_slot(slot_of(account_id))

    def shard_of_slot(self, slot: int) -> int:
        return self._range_shards[bisect(self._firsts, slot) - 1]

    def places(self, shard: int) -> tuple[Place, ...]:
        """The replicas of a shard, or every node for CLUSTER; raises ShardNotFoundError."""
        if shard == CLUSTER:
            return self.cluster_places
        try:
            return self._places[shard]
        except KeyError:
            raise errors.ShardNotFoundError(f"there is no shard {shard}") from None

    def _places_of(self, shard: cluster_pb2.Shard) -> tuple[Place, ...]:
        return tuple(
            Place(
                replica.node_id,
                self.nodes[replica.node_id].address,
                replica.replica_id,
                replica.role != cluster_pb2.REPLICA_ROLE_LEARNER,
                self.nodes[replica.node_id].zone,
            )
            for replica in shard.replicas
            if replica.node_id in self.nodes
        )


class RoutingTable:
    """The newest map that is known, and the leaders."""

    def __init__(self, cluster_map: cluster_pb2.ClusterMap) -> None:
        self.topology = Topology(cluster_map)
        self._leaders: dict[int, Leader] = {}
        self._version = 0
        self._changed = asyncio.Event()
        self._take_hints(cluster_map)

    @property
    def epoch(self) -> int:
        return self.topology.epoch

    @property
    def version(self) -> int:
        """Rises with everything that changes here."""
        return self._version

    def install(self, cluster_map: cluster_pb2.ClusterMap) -> bool:
        """Take a map if it is newer; its leader hints in any case. Raises WrongClusterError."""
        known = self.topology.cluster_id
        if cluster_map.cluster_id and known and cluster_map.cluster_id != known:
            raise WrongClusterError(f"a map of cluster {cluster_map.cluster_id}, not {known}")
        newer = cluster_map.epoch > self.epoch
        if newer:
            self.topology = Topology(cluster_map)
            self._leaders = {
                shard: leader if self._is_placed(shard, leader.place) else Leader(None, leader.term)
                for shard, leader in self._leaders.items()
                if shard == CLUSTER or shard in self.topology.shards
            }
            self._bump()
        self._take_hints(cluster_map)
        return newer

    def leader(self, shard: int) -> Place | None:
        known = self._leaders.get(shard)
        return known.place if known else None

    def leaders(self) -> list[cluster_pb2.LeaderHint]:
        """All hints, as the API tells them."""
        return [
            cluster_pb2.LeaderHint(
                shard=shard,
                node_id=leader.place.node_id,
                replica_id=leader.place.replica_id,
                term=leader.term,
            )
            for shard, leader in self._leaders.items()
            if shard != CLUSTER and leader.place is not None and leader.place.node_id
        ]

    def hint(
        self, shard: int, *, term: int, node_id: int = 0, replica_id: int = 0, address: str = ""
    ) -> bool:
        """Learn who leads; a lower term than known is old and ignored. True when it was news."""
        known = self._leaders.get(shard, _NOBODY)
        place = self._place(shard, node_id, replica_id, address)
        if term < known.term or place is None:
            return False
        self._leaders[shard] = Leader(place, term)
        if known.place is not None and known.place.address == place.address:
            return False
        self._bump()
        return True

    def confirm(self, shard: int, place: Place) -> None:
        """A node has done what only a leader does."""
        known = self._leaders.get(shard, _NOBODY)
        if known.place is None or known.place.address != place.address:
            self._leaders[shard] = Leader(place, known.term)
            self._bump()

    def doubt(self, shard: int, address: str) -> None:
        """A node does not lead, or cannot be reached: forget it if it was held for the leader."""
        known = self._leaders.get(shard)
        if known is not None and known.place is not None and known.place.address == address:
            self._leaders[shard] = Leader(None, known.term)

    def failed(self, shard: int, address: str, error: errors.MailraftError) -> None:
        """What a failed try tells of who leads."""
        if isinstance(
            error, errors.ReplicaLaggingError | errors.ReplyFullError | errors.OverloadedError
        ):
            return
        self.doubt(shard, address)
        self.learn(shard, error)

    def learn(self, shard: int, error: errors.MailraftError) -> bool:
        """Take the leader from a NOT_LEADER; True when that says where to try next."""
        detail = error.detail
        if not isinstance(detail, error_pb2.NotLeader):
            return False
        if shard not in {detail.shard, CLUSTER}:
            return False
        return self.hint(
            shard,
            term=detail.term,
            node_id=detail.leader_node_id,
            replica_id=detail.leader_replica_id,
            address=detail.leader_address,
        )

    async def wait_change(self, version: int, timeout_s: float) -> None:
        """Return when `version` is not the newest any more, or the time is over."""
        if version != self._version:
            return
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return

    def _place(self, shard: int, node_id: int, replica_id: int, address: str) -> Place | None:
        for place in self.topology.places(shard):
            if replica_id and place.replica_id == replica_id:
                return place
            if node_id and place.node_id == node_id:
                return place
        node = self.topology.nodes.get(node_id)
        if node is not None and node.address:
            return Place(node_id, node.address, replica_id)
        return Place(node_id, address, replica_id) if address else None

    def _is_placed(self, shard: int, place: Place | None) -> bool:
        places = self.topology.places(shard)
        return place is not None and any(place.address == each.address for each in places)

    def _take_hints(self, cluster_map: cluster_pb2.ClusterMap) -> None:
        for shard in cluster_map.shards:
            if shard.HasField("leader") and shard.id in self.topology.shards:
                leader = shard.leader
                self.hint(
                    shard.id,
                    term=leader.term,
                    node_id=leader.node_id,
                    replica_id=leader.replica_id,
                )

    def _bump(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()

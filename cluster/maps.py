"""The newest cluster map that a process knows, replaced as a whole when its epoch rises.

For a node it is both what its services tell (node.services.Maps) and what the node goes by
(node.interfaces.ClusterView). A node keeps a copy in its folder: it starts with that while the meta
group is away, and it tells a replica that is placed here for the first time from one whose disk was
lost. That copy is without the feature level, which stands in the folder's own record: a version
that is too old for it finds it there, and says so, where it could not even read the copy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from mailraft.cluster import mapfile
from mailraft.cluster.errors import MapFileError
from mailraft.node.interfaces import MAP_FILE, Configuration, GroupId, Peer, ReplicaId
from mailraft.v1 import cluster_pb2
from mailraft.wire import feature_levels
from mailraft.wire.slots import SLOTS

log = logging.getLogger(__name__)

FILE_NAME = MAP_FILE
_VOTER = cluster_pb2.REPLICA_ROLE_VOTER


class ClusterMaps:
    """Implements Maps and ClusterView for one node. Not thread safe."""

    def __init__(
        self,
        cluster_map: cluster_pb2.ClusterMap,
        node: int,
        *,
        file: Path | None = None,
        known: cluster_pb2.ClusterMap | None = None,
        moved: Mapping[int, tuple[str, str]] | None = None,
        reach: Mapping[int, str] | None = None,
    ) -> None:
        """`known` is the copy in `file`; `moved` nodes have another address than the map tells:
        for as long as it tells the first of the two, the second counts. `reach`: by which address
        this node, and nobody else, gets to others.

        Raises MapFileError if the map does not know the node.
        """
        self._node, self._file = node, file
        self._moved, self._reach = dict(moved or {}), dict(reach or {})
        self._known = frozenset(_replicas(known)) if known is not None else None
        self._changed = asyncio.Event()
        self._take(cluster_map)

    @classmethod
    def open(
        cls, first: Path, node: int, folder: Path, *, reach: Mapping[int, str] | None = None
    ) -> ClusterMaps:
        """Go on with the copy in the folder, or begin with the file that the cluster began with.

        That file is looked at later only for addresses: where it was changed after the copy, a
        node was moved. Raises MapFileError: a file is damaged, of another cluster, or does not know
        the node.
        """
        begun, file = mapfile.load(first), folder / FILE_NAME
        if not file.exists():
            return cls(begun, node, file=file, reach=reach)
        try:
            known = mapfile.load(file, sealed=True)
        except MapFileError as error:
            # Peers have the newest. Without the copy every replica that is made here counts as one
            # that may have lived before.
            log.error("%s is damaged and not used (%s)", file, error)  # noqa: TRY400  # no bug
            return cls(begun, node, file=file, reach=reach)
        if known.cluster_id != begun.cluster_id:
            raise MapFileError(f"{file} is of cluster {known.cluster_id}, not {begun.cluster_id}")
        moved = {}
        if first.stat().st_mtime_ns > file.stat().st_mtime_ns:
            told = {each.id: each.address for each in begun.nodes}
            moved = {
                each.id: (each.address, told[each.id])
                for each in known.nodes
                if told.get(each.id, each.address) != each.address
            }
        newest = max(known, begun, key=lambda each: each.epoch)
        return cls(newest, node, file=file, known=known, moved=moved, reach=reach)

    def install(self, cluster_map: cluster_pb2.ClusterMap) -> bool:
        """Take a map if it is newer. Raises MapFileError for one that cannot be of this cluster."""
        if cluster_map.cluster_id != self._map.cluster_id:
            raise MapFileError(f"a map of cluster {cluster_map.cluster_id}")
        if cluster_map.epoch <= self._map.epoch:
            return False
        mapfile.check(cluster_map)
        self._take(cluster_map)
        self._changed.set()
        self._changed = asyncio.Event()
        return True

    # ---- Maps ------------------------------------------------------------------------------------

    def current(self) -> cluster_pb2.ClusterMap:
        return self._map

    async def wait_newer(self, epoch: int, timeout_s: float) -> None:
        if self._map.epoch > epoch:
            return
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except TimeoutError:
            return

    # ---- ClusterView -----------------------------------------------------------------------------

    @property
    def cluster_id(self) -> str:
        return self._map.cluster_id

    @property
    def node(self) -> int:
        return self._node

    @property
    def epoch(self) -> int:
        return self._map.epoch

    @property
    def feature_level(self) -> int:
        return self._map.feature_level or feature_levels.FIRST

    def remember_level(self, level: int) -> None:
        if level > self.feature_level:
            raised = _copy(self._map)
            raised.feature_level = level
            self._take(raised)

    def peers(self) -> Sequence[Peer]:
        return self._peers

    def groups(self) -> Sequence[tuple[GroupId, Configuration]]:
        return self._groups

    def configuration_version(self, group: GroupId) -> int:
        return self._versions.get(group, 0)

    def shard_of_slot(self, slot: int) -> GroupId:
        return self._shard_of_slot[slot]

    def is_new(self, replica: ReplicaId) -> bool:
        return self._known is not None and replica not in self._known

    def adopted(self) -> None:
        if self._file is not None:
            saved = _copy(self._map)
            saved.ClearField("feature_level")
            mapfile.save(self._file, saved, sealed=True)
        self._known = frozenset(_replicas(self._map))

    # ---- inside ----------------------------------------------------------------------------------

    def _take(self, cluster_map: cluster_pb2.ClusterMap) -> None:
        there = [each for each in cluster_map.nodes if each.state != cluster_pb2.NODE_STATE_REMOVED]
        if self._node not in {each.id for each in there}:
            raise MapFileError(f"the cluster map has no node {self._node}")
        self._map = cluster_map = self._readdressed(cluster_map)
        self._shard_of_slot = [0] * SLOTS
        for part in cluster_map.slots:
            size = part.last_slot - part.first_slot + 1
            self._shard_of_slot[part.first_slot : part.last_slot + 1] = [part.shard] * size
        self._peers = tuple(
            Peer(
                each.id,
                each.name,
                self._reach.get(each.id, each.address),
                each.zone,
                each.host,
            )
            for each in there
        )
        everything = [cluster_map.meta, *cluster_map.shards]
        self._versions = {each.id: each.configuration_version for each in everything}
        self._groups = tuple(
            (shard.id, _configuration(shard))
            for shard in everything
            if any(replica.node_id == self._node for replica in shard.replicas)
        )

    def _readdressed(self, cluster_map: cluster_pb2.ClusterMap) -> cluster_pb2.ClusterMap:
        if not self._moved:
            return cluster_map
        changed = _copy(cluster_map)
        for node in changed.nodes:
            before, after = self._moved.get(node.id, ("", ""))
            if node.address == before:
                node.address = after
            else:
                self._moved.pop(node.id, None)
        return changed


def _copy(cluster_map: cluster_pb2.ClusterMap) -> cluster_pb2.ClusterMap:
    copy = cluster_pb2.ClusterMap()
    copy.CopyFrom(cluster_map)
    return copy


def _replicas(cluster_map: cluster_pb2.ClusterMap) -> list[ReplicaId]:
    return [
        replica.replica_id
        for shard in (cluster_map.meta, *cluster_map.shards)
        for replica in shard.replicas
    ]


def _configuration(shard: cluster_pb2.Shard) -> Configuration:
    voters = sorted(each.replica_id for each in shard.replicas if each.role == _VOTER)
    learners = sorted(each.replica_id for each in shard.replicas if each.role != _VOTER)
    return Configuration(shard.configuration_version, tuple(voters), tuple(learners))

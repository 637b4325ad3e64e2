"""Compares this node's replicas with those of its peers every few seconds, by their digests.

Each node asks for itself and judges for itself: a replica that finds a majority of its voters
against it sets itself aside, as one with a damaged log does, and every node tells what it found
(log, metric, status). With no majority against anybody, as when only two can be compared, it is
told and nobody is set aside: who is right is not known, and the shard would have no quorum left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import grpc

from mailraft.internal.v1 import peer_service_pb2, peer_service_pb2_grpc
from mailraft.node.agreement import Digests, compare
from mailraft.node.consensus.host import Host
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import ClusterView, GroupId, Peer, ReplicaId, node_of
from mailraft.node.metrics import NodeMetrics
from mailraft.node.peer_channels import PeerChannels
from mailraft.node.runtime import Runtime
from mailraft.node.setting_aside import set_aside
from mailraft.node.shard import Replica
from mailraft.wire.credentials import AnyCredentials

log = logging.getLogger(__name__)

COMPARE_S = 2.0
ASK_S_MAX = 1.0
# In one question: about a kilobyte of answer each.
GROUPS_MAX = 256

_Told = dict[GroupId, dict[ReplicaId, Digests]]


class DigestExchange:
    """One a node. `run` until cancelled."""

    def __init__(
        self,
        store: Store,
        host: Host,
        view: ClusterView,
        credentials: AnyCredentials,
        runtime: Runtime,
        replicas: Mapping[GroupId, Replica],
        metrics: NodeMetrics,
    ) -> None:
        self._store, self._host, self._view = store, host, view
        self._runtime, self._replicas, self._metrics = runtime, replicas, metrics
        self._differing: dict[GroupId, frozenset[ReplicaId]] = {}
        self._well: dict[GroupId, frozenset[ReplicaId]] = {}
        self._channels = PeerChannels(credentials)

    async def run(self) -> None:
        try:
            while True:
                await asyncio.sleep(COMPARE_S)
                await self.turn()
        finally:
            await self._channels.close()

    def digests(self, group: GroupId) -> Digests:
        """Of the replica here: ascending, the newest applied entry's last."""
        return [(each.index, each.digest) for each in self._store.digests(group)]

    def differing(self, group: GroupId) -> frozenset[ReplicaId]:
        """Replicas that were found to differ, and were not seen to agree since."""
        return self._differing.get(group, frozenset())

    def others_well(self, group: GroupId) -> frozenset[ReplicaId]:
        """Replicas on other nodes that told, when asked last, that they serve; none differs."""
        return self._well.get(group, frozenset()) - self.differing(group)

    def answer(
        self, request: peer_service_pb2.GetDigestsRequest
    ) -> peer_service_pb2.GetDigestsResponse:
        response = peer_service_pb2.GetDigestsResponse()
        for group in request.groups[:GROUPS_MAX]:
            replica = self._replicas.get(group)
            aside = self._store.is_set_aside(group) if replica is not None else False
            if replica is None or (replica.stopped and not aside) or self._store.is_lost(group):
                continue
            told = response.replicas.add(group=group, replica=replica.replica, diverged=aside)
            if not told.diverged:
                for index, digest in self.digests(group):
                    told.digests.add(index=index, digest=digest)
        return response

    # ---- comparing -------------------------------------------------------------------------------

    async def turn(self) -> None:
        """Ask every peer, compare, tell and do what follows."""
        told: _Told = {}
        aside: dict[GroupId, set[ReplicaId]] = {}
        peers = [peer for peer in self._view.peers() if peer.node != self._view.node]
        for replicas in await asyncio.gather(*(self._ask(peer) for peer in peers)):
            for each in replicas:
                if each.diverged:
                    aside.setdefault(each.group, set()).add(each.replica)
                else:
                    digests = [(mark.index, mark.digest) for mark in each.digests]
                    told.setdefault(each.group, {})[each.replica] = digests
        for group in list(self._replicas):
            self._well[group] = frozenset(told.get(group, {}))
            await self._judge(group, told.get(group, {}), aside.get(group, set()))

    async def _ask(self, peer: Peer) -> list[peer_service_pb2.ReplicaDigests]:
        groups = [group for group in list(self._replicas) if self._is_on(group, peer.node)]
        found: list[peer_service_pb2.ReplicaDigests] = []
        stub = peer_service_pb2_grpc.PeerServiceStub(self._channels.to(peer))
        for at in range(0, len(groups), GROUPS_MAX):
            request = peer_service_pb2.GetDigestsRequest(
                cluster_id=self._view.cluster_id,
                from_node=self._view.node,
                to_node=peer.node,
                groups=groups[at : at + GROUPS_MAX],
            )
            try:
                found += (await stub.GetDigests(request, timeout=ASK_S_MAX)).replicas
            except grpc.aio.AioRpcError:
                break  # down, or of an earlier release: asked again next time
        return found

    def _is_on(self, group: GroupId, node: int) -> bool:
        return any(node_of(member) == node for member in self._members(group))

    def _members(self, group: GroupId) -> frozenset[ReplicaId]:
        # Of a replica that was set aside consensus knows nothing any more.
        found = self._host.configuration(group) or dict(self._view.groups()).get(group)
        return frozenset((*found.voters, *found.learners)) if found is not None else frozenset()

    async def _judge(
        self, group: GroupId, told: dict[ReplicaId, Digests], aside: set[ReplicaId]
    ) -> None:
        configuration = self._host.configuration(group)
        own = self._replicas.get(group)
        if own is None or configuration is None:
            return  # moved away meanwhile; or it has stopped itself
        # Read now, behind the answers: the peers' newest index may be one that is kept here.
        told[own.replica] = self.digests(group)
        leader = own.leadership.leader
        verdict = compare(told, voters=configuration.voters, leader=leader)
        before = self.differing(group) & self._members(group)
        differing = frozenset(aside)
        if verdict is None:
            differing |= before - {own.replica}
        else:
            differing |= verdict.differing | before - verdict.agreeing
            self._metrics.compared_index.labels(group).set(verdict.index)
        for replica in sorted(differing - before):
            log.error(
                "replica %#x (node %d) of shard %d has another state than its peers%s",
                replica,
                node_of(replica),
                group,
                "" if verdict is None else f", seen at applied index {verdict.index}",
            )
        self._differing[group] = differing
        self._metrics.diverged.labels(group).set(len(differing))
        if verdict is not None and verdict.certain and own.replica in verdict.differing:
            why = f"a majority of its peers has another state at applied index {verdict.index}"
            await set_aside(self._store, self._host, self._runtime, own, why)

"""How far the replicas of a group are, asked of the nodes that hold them: for QUORUM reads."""

from __future__ import annotations

import asyncio

import grpc

from mailraft.internal.v1 import peer_service_pb2, peer_service_pb2_grpc
from mailraft.node.consensus.host import Host
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import ClusterView, GroupId, Peer, node_of
from mailraft.node.peer_channels import PeerChannels
from mailraft.node.quorum_reads import Position
from mailraft.wire.credentials import AnyCredentials

# Less than a router gives a try, so that it hears how many answer.
ASK_S_MAX = 0.8


class PositionExchange:
    """One a node."""

    def __init__(
        self, store: Store, host: Host, view: ClusterView, credentials: AnyCredentials
    ) -> None:
        self._store, self._host, self._view = store, host, view
        self._channels = PeerChannels(credentials)

    def own(self, group: GroupId) -> Position | None:
        """Of the replica here; None where none runs."""
        return self._host.position(group, self._store.applied(group)[0])

    def answer(
        self, request: peer_service_pb2.GetPositionRequest
    ) -> peer_service_pb2.GetPositionResponse | None:
        own = self.own(request.group)
        if own is None:
            return None
        return peer_service_pb2.GetPositionResponse(
            replica=own.replica,
            applied_index=own.applied_index,
            last_index=own.last_index,
            configuration_version=own.configuration_version,
            voters=own.voters,
            amnesic=own.amnesic,
        )

    async def others(
        self, own: Position, group: GroupId, count: int, *, within_s: float
    ) -> list[Position]:
        """Of the first `count` other voters that answer, fewer when not so many do in time.

        All are asked, so that one that is down costs nothing but a message.
        """
        nodes = {node_of(voter) for voter in own.voters} - {self._view.node}
        peers = [peer for peer in self._view.peers() if peer.node in nodes]
        timeout_s = max(0.0, min(ASK_S_MAX, within_s))
        asking = {asyncio.create_task(self._ask(peer, group, timeout_s)) for peer in peers if count}
        found: list[Position] = []
        try:
            while asking and len(found) < count:
                done, asking = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                found += [told for task in done if (told := task.result()) is not None]
        finally:
            for task in asking:
                task.cancel()
        return found[:count]

    async def close(self) -> None:
        await self._channels.close()

    async def _ask(self, peer: Peer, group: GroupId, timeout_s: float) -> Position | None:
        stub = peer_service_pb2_grpc.PeerServiceStub(self._channels.to(peer))
        request = peer_service_pb2.GetPositionRequest(
            cluster_id=self._view.cluster_id,
            from_node=self._view.node,
            to_node=peer.node,
            group=group,
        )
        try:
            # One that has just come back is waited for, until its channel connects again: it may
            # be the one that is needed.
            told = await stub.GetPosition(request, timeout=timeout_s, wait_for_ready=True)
        except grpc.aio.AioRpcError:
            return None  # down, without the replica, or of an earlier release
        return Position(
            told.replica,
            told.applied_index,
            told.last_index,
            told.configuration_version,
            tuple(told.voters),
            told.amnesic,
        )

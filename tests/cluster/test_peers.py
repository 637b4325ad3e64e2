"""Who may speak as a node: the holder of that node's certificate, and nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from mailraft.cluster.local import LocalCluster
from mailraft.internal.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    peer_service_pb2,
    peer_service_pb2_grpc,
    raft_pb2,
    snapshot_pb2,
)
from mailraft.wire.credentials import open_channel

DEADLINE_S = 10.0


@pytest.mark.timeout(120)
async def test_only_a_node_speaks_as_that_node(cluster: LocalCluster) -> None:
    """A client's, the router's or another node's certificate opens no stream as node 2."""
    for name in ("client", "router", "admin", "node-3"):
        async with open_channel(cluster.address_of(1), cluster.credentials(name)) as channel:
            stub = peer_service_pb2_grpc.PeerServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Exchange(_hello(cluster), timeout=DEADLINE_S)
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED, name
            why = "certificate of node 2" if name == "node-3" else "not for the role"
            assert why in (refused.value.details() or "")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await anext(aiter(stub.InstallSnapshot(_offer(cluster), timeout=DEADLINE_S)))
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED, name
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetDigests(_question(cluster), timeout=DEADLINE_S)
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED, name
    async with open_channel(cluster.address_of(1), cluster.credentials("node-2")) as channel:
        told = await peer_service_pb2_grpc.PeerServiceStub(channel).GetDigests(
            _question(cluster), timeout=DEADLINE_S
        )
        assert [each.group for each in told.replicas] == [1]
        assert told.replicas[0].digests


@pytest.mark.timeout(120)
async def test_only_an_administrator_audits(cluster: LocalCluster) -> None:
    """No client, router or node may have a node read all that it stores."""
    request = audit_service_pb2.AuditBodiesRequest(group=1)
    for name in ("client", "router", "node-1", "node-2"):
        async with open_channel(cluster.address_of(1), cluster.credentials(name)) as channel:
            stub = audit_service_pb2_grpc.AuditServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await anext(aiter(stub.AuditBodies(request, timeout=DEADLINE_S)))
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED, name
    async with open_channel(cluster.address_of(1), cluster.credentials("admin")) as channel:
        stub = audit_service_pb2_grpc.AuditServiceStub(channel)
        told = [page async for page in stub.AuditBodies(request, timeout=DEADLINE_S)]
        assert told[-1].complete
        absent = audit_service_pb2.AuditBodiesRequest(group=999)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(stub.AuditBodies(absent, timeout=DEADLINE_S)))
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def _question(cluster: LocalCluster) -> peer_service_pb2.GetDigestsRequest:
    return peer_service_pb2.GetDigestsRequest(
        cluster_id=cluster.map.cluster_id, from_node=2, to_node=1, groups=[1]
    )


async def _hello(cluster: LocalCluster) -> AsyncIterator[raft_pb2.ExchangeRequest]:
    hello = raft_pb2.Hello(
        cluster_id=cluster.map.cluster_id, from_node=2, to_node=1, session=1 << 62
    )
    yield raft_pb2.ExchangeRequest(hello=hello)


async def _offer(cluster: LocalCluster) -> AsyncIterator[snapshot_pb2.InstallSnapshotRequest]:
    offer = snapshot_pb2.SnapshotOffer(
        cluster_id=cluster.map.cluster_id, from_node=2, to_node=1, group=1
    )
    yield snapshot_pb2.InstallSnapshotRequest(offer=offer)

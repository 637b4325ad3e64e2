"""The routing table and the method table."""

from __future__ import annotations

import asyncio
from types import ModuleType

import pytest
from tests.unit.router_fakes import FakeCluster

from mailraft.router.methods import METHODS, Route, account_of, method_of, repeatable
from mailraft.router.table import RoutingTable, WrongClusterError
from mailraft.v1 import (
    account_pb2,
    admin_pb2,
    batch_pb2,
    blob_pb2,
    cluster_pb2,
    delivery_pb2,
    error_pb2,
    job_pb2,
    mailbox_pb2,
    message_service_pb2,
)
from mailraft.wire import errors

ALL = (
    account_pb2,
    admin_pb2,
    batch_pb2,
    blob_pb2,
    cluster_pb2,
    job_pb2,
    mailbox_pb2,
    message_service_pb2,
)


def table_of(nodes: int = 3, shards: int = 4) -> RoutingTable:
    """A map with addresses a1, a2, ..."""
    cluster = FakeCluster(nodes, shards)
    for node in cluster.nodes.values():
        node.address = f"a{node.number}"
    return RoutingTable(cluster.map())


@pytest.mark.parametrize("module", ALL, ids=lambda module: str(module.__name__))
def test_every_call_of_the_api_is_routed(module: ModuleType) -> None:
    """A new rpc without a line in the table fails here."""
    for service in module.DESCRIPTOR.services_by_name.values():
        for rpc in service.methods:
            found = METHODS[f"/{service.full_name}/{rpc.name}"]
            assert found.request.DESCRIPTOR is rpc.input_type
            assert found.response.DESCRIPTOR is rpc.output_type


def test_routes_follow_the_conventions_of_the_api() -> None:
    """account_id in field 1 goes by account; request_id in field 2 means a mutation."""
    for each in METHODS.values():
        fields = each.request.DESCRIPTOR.fields_by_name
        by_account = each.route in {Route.READ, Route.WRITE}
        if by_account:
            assert fields["account_id"].number == 1, each.path
        if each.route is Route.READ:
            assert fields["read_options"].number == 2, each.path
            assert not each.mutation, each.path
        if each.route is Route.WRITE and each.name != "WaitCommitted":
            assert fields["request_id"].number == 2, each.path
            assert each.mutation, each.path


def test_everything_in_a_batch_is_a_known_call() -> None:
    """BatchItem has no kind that the table lacks."""
    for field in batch_pb2.BatchItem.DESCRIPTOR.oneofs_by_name["request"].fields:
        assert any(each.batch_field == field.name for each in METHODS.values()), field.name


def test_a_request_tells_its_call_and_account() -> None:
    """Each call has its own request type."""
    request = mailbox_pb2.GetMailboxRequest(account_id="alice")
    assert method_of(request).name == "GetMailbox"
    assert account_of(request) == "alice"
    assert not account_of(cluster_pb2.ListNodesRequest())


def test_what_may_be_sent_again() -> None:
    """Reads, and mutations of which every part has a request_id."""
    deliver = METHODS["/mailraft.v1.MessageService/DeliverMessages"]
    whole = [delivery_pb2.Delivery(request_id=b"1")]
    request = delivery_pb2.DeliverMessagesRequest
    assert repeatable(deliver, request(deliveries=whole))
    assert not repeatable(deliver, request(deliveries=[*whole, delivery_pb2.Delivery()]))
    create = METHODS["/mailraft.v1.MailboxService/CreateMailbox"]
    assert repeatable(create, mailbox_pb2.CreateMailboxRequest(request_id=b"1"))
    assert not repeatable(create, mailbox_pb2.CreateMailboxRequest())


def test_the_higher_term_wins() -> None:
    """An older hint changes nothing, in whatever order they come."""
    table = table_of()
    assert table.hint(0, term=5, node_id=2)
    assert not table.hint(0, term=4, node_id=3)
    assert table.leader(0).address == "a2"  # type: ignore[union-attr]  # asserted
    table.doubt(0, "a3")
    assert table.leader(0)
    table.doubt(0, "a2")
    assert table.leader(0) is None
    assert not table.hint(0, term=4, node_id=3), "a doubt does not forget the term"
    assert table.hint(0, term=5, node_id=2)


def test_a_leader_that_the_map_does_not_know_is_reached_by_its_address() -> None:
    """The map may be older than the leader."""
    table = table_of()
    detail = error_pb2.NotLeader(shard=1, term=9, leader_node_id=77, leader_address="h:7")
    assert table.learn(1, errors.NotLeaderError(detail=detail))
    assert table.leader(1).address == "h:7"  # type: ignore[union-attr]  # asserted
    assert not table.learn(2, errors.NotLeaderError(detail=detail)), "it is of another shard"


def test_only_a_newer_map_of_the_same_cluster_is_taken() -> None:
    """Epochs rise; another cluster is a mistake."""
    table = table_of()
    newer = cluster_pb2.ClusterMap()
    newer.CopyFrom(table.topology.map)
    assert not table.install(newer)
    newer.epoch = 5
    newer.nodes[1].address = "moved"
    table.hint(0, term=9, node_id=2)
    assert table.install(newer)
    assert table.epoch == 5
    assert table.leader(0) is None, "its leader has another address now"
    newer.cluster_id = "other"
    with pytest.raises(WrongClusterError):
        table.install(newer)


def test_a_map_with_a_hole_is_refused() -> None:
    """Every slot has a shard."""
    broken = cluster_pb2.ClusterMap()
    broken.CopyFrom(table_of().topology.map)
    del broken.slots[1]
    with pytest.raises(ValueError, match="slot 4096 has no shard"):
        RoutingTable(broken)


async def test_waiting_for_a_change() -> None:
    """Returns when something is new, or when the time is over."""
    table = table_of()
    version = table.version
    await table.wait_change(version, 0.01)
    waiting = asyncio.create_task(table.wait_change(version, 5))
    await asyncio.sleep(0)
    table.hint(0, term=9, node_id=3)
    async with asyncio.timeout(1):
        await waiting
    await table.wait_change(version, 5)

"""Clients that go through routers only, and what their waits may not lead to."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any

from tests.unit.router_fakes import FakeCluster, delivery_to, fake_cluster

from mailraft.client import AsyncClient
from mailraft.client.blocking_transport import BlockingTransport
from mailraft.client.settings import Settings
from mailraft.router.seek import SILENT_S
from mailraft.v1 import common_pb2, delivery_pb2, error_pb2

QUORUM_UNAVAILABLE = error_pb2.ERROR_REASON_QUORUM_UNAVAILABLE
COMMIT_UNKNOWN = error_pb2.ERROR_REASON_COMMIT_UNKNOWN


def addresses(cluster: FakeCluster) -> list[str]:
    """Of its nodes, which are the routers here."""
    return [node.address for node in cluster.nodes.values()]


def answer(*recipients: delivery_pb2.RecipientResult) -> delivery_pb2.DeliverMessagesResponse:
    """Of one delivery."""
    result = delivery_pb2.DeliveryResult(recipients=recipients)
    return delivery_pb2.DeliverMessagesResponse(results=[result])


async def test_who_goes_through_routers_never_asks_them_for_the_map() -> None:
    """A slow one is waited for: with the map of the cluster the client would go past them, to nodes
    that it may not reach.
    """
    async with fake_cluster() as cluster:

        async def slow(_: Any) -> delivery_pb2.DeliverMessagesResponse:
            await asyncio.sleep(2 * SILENT_S)
            return answer(delivery_pb2.RecipientResult(message_id="M1"))

        for node in cluster.nodes.values():
            node.hooks["DeliverMessages"] = slow
        async with AsyncClient(addresses(cluster), insecure=True, direct=False) as mail:
            receipt = await mail.deliver(b"Subject: hello\r\n\r\n", to=["anybody"])
        assert [each.message_id for each in receipt.recipients] == ["M1"]
        assert cluster.total("GetClusterMap") == 0


async def deliver(
    targets: list[str], direct: bool, deadline_s: float, *accounts: str
) -> list[delivery_pb2.RecipientResult]:
    """By the blocking client."""
    settings = Settings.of(targets, None, "client", True, 10.0, direct)

    def run() -> list[delivery_pb2.RecipientResult]:
        with closing(BlockingTransport(settings)) as transport:
            options = common_pb2.WriteOptions()
            return list(transport.deliver(delivery_to(*accounts), options, deadline_s).recipients)

    return await asyncio.to_thread(run)


async def test_a_shard_in_trouble_leaves_the_others_their_time() -> None:
    """The blocking client asks one after the other."""
    async with fake_cluster() as cluster:
        stuck, well = cluster.account_in(0), cluster.account_in(1)
        cluster.leaders[0] = 0
        refused, delivered = await deliver(addresses(cluster), True, 2.0, stuck, well)
        assert delivered.message_id
        assert refused.code
        assert not refused.message_id


async def test_a_shard_that_recovers_is_asked_again_in_the_end() -> None:
    """What is left of the time is for those that had too little."""
    async with fake_cluster() as cluster:
        stuck, well = cluster.account_in(0), cluster.account_in(1)
        cluster.leaders[0] = 0
        asyncio.get_running_loop().call_later(1.5, cluster.elect, 0, 2)
        results = await deliver(addresses(cluster), True, 8.0, stuck, well)
        assert all(each.message_id for each in results)
        cluster.leaders[0] = 0
        asyncio.get_running_loop().call_later(2.5, cluster.elect, 0, 3)
        results = await deliver(addresses(cluster), True, 4.0, stuck, well)
        assert all(each.message_id for each in results)


async def test_a_fate_that_is_not_known_is_told_whatever_else_is_said() -> None:
    """By a later try, or of another recipient of the same call."""
    async with fake_cluster(1) as cluster:
        calls = 0

        async def mixed(
            request: delivery_pb2.DeliverMessagesRequest,
        ) -> delivery_pb2.DeliverMessagesResponse:
            nonlocal calls
            calls += 1
            told = [
                delivery_pb2.RecipientResult(code=14, reason=QUORUM_UNAVAILABLE)
                for _ in request.deliveries[0].recipients
            ]
            if calls == 1:
                told[-1].reason = COMMIT_UNKNOWN
            return answer(*told)

        cluster.nodes[1].hooks["DeliverMessages"] = mixed
        first, last = await deliver(addresses(cluster), False, 2.0, "a", "b")
        assert calls > 1, "COMMIT_UNKNOWN is worth another try: it has a request_id"
        assert first.reason in {QUORUM_UNAVAILABLE, COMMIT_UNKNOWN}
        assert last.reason == COMMIT_UNKNOWN

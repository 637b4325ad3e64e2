"""How Client reaches nodes from threads: by the rules of the router, without an event loop."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

import grpc
import pytest
from tests.unit.router_fakes import FakeCluster, delivery_to, fake_cluster
from tests.unit.test_router_hedge import FAST_S, KIND, delay, experienced, read

from mailraft.client.blocking_transport import BlockingTransport
from mailraft.client.settings import Settings
from mailraft.router.attempts import TRY_TIMEOUT_S
from mailraft.router.failures import LostError
from mailraft.router.seek import SILENT_S
from mailraft.v1 import blob_pb2, common_pb2, error_pb2, mailbox_pb2
from mailraft.wire import errors

LOCAL = common_pb2.CONSISTENCY_LOCAL
Result = TypeVar("Result")


async def blocking(
    cluster: FakeCluster, work: Callable[[BlockingTransport], Result], *, zone: str = ""
) -> Result:
    """Do something in a thread with a transport of its own."""
    targets = [node.address for node in cluster.nodes.values()]
    settings = Settings.of(targets, None, "client", True, 10.0, True, zone=zone)

    def run() -> Result:
        with closing(BlockingTransport(settings)) as transport:
            return work(transport)

    return await asyncio.to_thread(run)


def create_mailbox(account: str) -> mailbox_pb2.CreateMailboxRequest:
    """A mutation."""
    return mailbox_pb2.CreateMailboxRequest(account_id=account, request_id=uuid.uuid4().bytes)


@pytest.mark.parametrize("kind", ["mutation", "delivery", "read"])
async def test_a_silent_leader_is_left_as_soon_as_another_is_known(kind: str) -> None:
    """Its peers are asked before the try's time is over, once for all threads that wait."""
    async with fake_cluster() as cluster:
        account = cluster.account_in(0)
        for name in ("CreateMailbox", "DeliverMessages", "GetMessage"):
            delay(cluster.leader_of(account), name, 30)

        def ask(transport: BlockingTransport) -> None:
            if kind == "mutation":
                transport.unary(create_mailbox(account), 8.0)
            elif kind == "delivery":
                transport.deliver(delivery_to(account), common_pb2.WriteOptions(), 8.0)
            else:
                transport.unary(read(account, common_pb2.CONSISTENCY_LINEARIZABLE), 8.0)

        def work(transport: BlockingTransport) -> float:
            assert transport._nodes.table.epoch == 1  # the map of before the election
            began_s = time.monotonic()
            ask(transport)
            return time.monotonic() - began_s

        cluster_map = cluster.map()
        cluster.elect(0, 3)
        newer, told = cluster.map(), iter([cluster_map])
        cluster.map = lambda **_: next(told, newer)  # type: ignore[method-assign]
        took_s = await blocking(cluster, work)
        assert SILENT_S <= took_s < TRY_TIMEOUT_S - 0.1


async def test_a_leader_that_is_only_slow_is_waited_for() -> None:
    """As long as nobody else leads; its peers are not asked without pause."""
    async with fake_cluster() as cluster:
        account = cluster.account_in(0)
        delay(cluster.leader_of(account), "CreateMailbox", 0.9)
        await blocking(cluster, lambda it: it.unary(create_mailbox(account), 8.0))
        assert cluster.total("CreateMailbox") == 1
        assert cluster.total("GetClusterMap") <= 7


async def test_reads_are_spread() -> None:
    """Those that any replica may serve; each takes its part."""
    async with fake_cluster() as cluster:
        account = cluster.account_in(0)

        def work(transport: BlockingTransport) -> None:
            with ThreadPoolExecutor(8) as threads:
                list(threads.map(lambda _: transport.unary(read(account, LOCAL), 8.0), range(80)))

        await blocking(cluster, work)
        assert all(node.calls["GetMessage"] > 3 for node in cluster.nodes.values())


async def test_a_slow_replica_is_not_waited_for() -> None:
    """It hangs: another one answers, and soon it is not asked any more."""
    async with fake_cluster() as cluster:
        account = cluster.account_in(0)
        delay(cluster.nodes[2], "GetMessage", 30)

        def work(transport: BlockingTransport) -> float:
            hedger, began_s = experienced(transport._nodes.hedger, KIND), time.monotonic()
            for _ in range(40):
                transport.unary(read(account, LOCAL), 8.0)
            assert hedger.won >= cluster.nodes[2].calls["GetMessage"]
            assert 1 <= cluster.nodes[2].calls["GetMessage"] <= 10
            return time.monotonic() - began_s

        assert await blocking(cluster, work) < 20  # of 30 s for one read


async def test_errors_of_both_replicas_end_in_another_try() -> None:
    """The first one's is what counts; a third replica answers."""
    async with fake_cluster() as cluster:
        account = cluster.account_in(0)
        failed = 0

        async def fail(_: Any) -> None:
            nonlocal failed
            failed += 1
            await asyncio.sleep(3 * FAST_S)
            if failed <= 2:
                raise errors.ReplicaLaggingError

        for node in cluster.nodes.values():
            node.hooks["GetMessage"] = fail

        def work(transport: BlockingTransport) -> None:
            experienced(transport._nodes.hedger, KIND)
            transport.unary(read(account, LOCAL), 8.0)
            assert not transport._nodes.hedger.won

        await blocking(cluster, work)
        assert failed == 3
        assert all(node.calls["GetMessage"] == 1 for node in cluster.nodes.values())


async def test_writes_are_never_hedged() -> None:
    """However slow the leader is: one call a try."""
    async with fake_cluster() as cluster:
        account = cluster.account_in(0)
        for node in cluster.nodes.values():
            for name in ("CreateMailbox", "DeliverMessages"):
                delay(node, name, 0.3)

        def work(transport: BlockingTransport) -> None:
            kinds = ("CreateMailbox", 0), ("DeliverMessages", 0)
            hedger = experienced(transport._nodes.hedger, *kinds)
            transport.unary(create_mailbox(account), 8.0)
            transport.deliver(delivery_to(account), common_pb2.WriteOptions(), 8.0)
            assert not hedger.budget.spent

        await blocking(cluster, work)
        assert cluster.total("CreateMailbox") == 1
        assert cluster.total("DeliverMessages") == 1


async def test_a_stale_route_fetches_the_map_and_goes_by_it() -> None:
    """One more hop, and the caller hears nothing of it."""
    async with fake_cluster() as cluster:
        account = cluster.account_in(0)

        async def stale(_: Any) -> None:
            raise errors.StaleRouteError(detail=error_pb2.StaleRoute(epoch=7, shard=0))

        def work(transport: BlockingTransport) -> int:
            transport.unary(read(account, LOCAL), 8.0)
            cluster.epoch = 7
            cluster.leader_of(account).hooks["CreateMailbox"] = stale
            cluster.elect(0, 2)
            transport.unary(create_mailbox(account), 8.0)
            return transport._nodes.table.epoch

        assert await blocking(cluster, work) == 7
        assert cluster.total("CreateMailbox") == 2


async def test_a_stopping_server_that_cancels_is_left_for_another() -> None:
    """CANCELLED without a reason of the API: what was done is not known."""

    class Cancelled(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.CANCELLED

        def details(self) -> str:
            return ""

        def trailing_metadata(self) -> tuple[()]:
            return ()

    async with fake_cluster() as cluster:

        def work(transport: BlockingTransport) -> None:
            told = transport._nodes.failure("host:1", Cancelled())
            assert isinstance(told, LostError)

        await blocking(cluster, work)


async def test_the_deadline_of_a_stream_is_what_is_left() -> None:
    """After tries that took their time too."""
    async with fake_cluster() as cluster:
        asked = 0

        async def answer(_: Any) -> list[Any]:
            nonlocal asked
            asked += 1
            await asyncio.sleep(0.3)
            return [errors.ReplicaLaggingError()] if asked < 3 else []

        for node in cluster.nodes.values():
            node.hooks["DownloadBlob"] = answer
        request = blob_pb2.DownloadBlobRequest(
            account_id=cluster.account_in(0),
            read_options=common_pb2.ReadOptions(consistency=LOCAL),
        )

        def work(transport: BlockingTransport) -> None:
            assert transport._nodes.table.epoch == 1
            for node in cluster.nodes.values():
                node.deadlines_s.clear()
            assert not list(transport.stream(request, 2.0))

        await blocking(cluster, work)
        seen_s = sorted(each for node in cluster.nodes.values() for each in node.deadlines_s)
        assert len(seen_s) == 3
        most_s = (1.4, 1.7, 2.0)
        assert all(seen <= most + 0.02 for seen, most in zip(seen_s, most_s, strict=True))

"""Dispatch against real servers: leaders change, nodes die; what is retried and what is not."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import pytest
from tests.unit.router_fakes import delivery_to, dispatching, fake_cluster, method

from mailraft.router.attempts import TRY_TIMEOUT_S
from mailraft.router.seek import SILENT_S
from mailraft.v1 import (
    blob_pb2,
    cluster_pb2,
    common_pb2,
    error_pb2,
    mailbox_pb2,
    message_service_pb2,
)
from mailraft.wire import errors

LINEARIZABLE = common_pb2.ReadOptions(consistency=common_pb2.CONSISTENCY_LINEARIZABLE)
LOCAL = common_pb2.ReadOptions(consistency=common_pb2.CONSISTENCY_LOCAL)


def get_message(
    account: str, options: common_pb2.ReadOptions
) -> message_service_pb2.GetMessageRequest:
    """A read of one message."""
    return message_service_pb2.GetMessageRequest(
        account_id=account, read_options=options, message_id="M1"
    )


def create_mailbox(account: str, request_id: bytes) -> mailbox_pb2.CreateMailboxRequest:
    """A mutation that is not coalesced."""
    return mailbox_pb2.CreateMailboxRequest(account_id=account, request_id=request_id)


def soon(seconds: float) -> float:
    """A deadline."""
    return asyncio.get_running_loop().time() + seconds


async def test_a_delivery_goes_to_the_leader_at_once() -> None:
    """With a right hint there is one call, and nobody else hears of it."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(1)
        result = await dispatcher.deliver(delivery_to(account))
        assert result.recipients[0].message_id == "M0"
        assert cluster.total("DeliverMessages") == 1
        assert cluster.leader_of(account).metadata[0]["x-mailraft-epoch"] == "1"


async def test_a_leader_change_costs_one_more_call() -> None:
    """NOT_LEADER names the new leader; the write goes there, and so do later ones."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)
        cluster.elect(0, 3)
        request = create_mailbox(account, uuid.uuid4().bytes)
        await dispatcher.unary(method("CreateMailbox"), request)
        assert cluster.total("CreateMailbox") == 2
        await dispatcher.unary(method("CreateMailbox"), request)
        assert cluster.total("CreateMailbox") == 3


async def test_without_a_hint_replicas_are_tried_in_turn() -> None:
    """NOT_LEADER without an address: the others are asked, each once."""
    async with fake_cluster() as cluster, dispatching(cluster, hints=False) as dispatcher:
        cluster.tells_leader = False
        account = cluster.account_in(2)
        result = await dispatcher.deliver(delivery_to(account))
        assert result.recipients[0].message_id
        assert cluster.total("DeliverMessages") <= 3
        before = cluster.total("DeliverMessages")
        await dispatcher.deliver(delivery_to(account))
        assert cluster.total("DeliverMessages") == before + 1


async def test_an_election_is_waited_out() -> None:
    """NO_LEADER everywhere: tried again until there is one, within the deadline."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)
        cluster.leaders[0] = 0

        async def elect() -> None:
            await asyncio.sleep(0.3)
            cluster.elect(0, 2)

        electing = asyncio.create_task(elect())
        result = await dispatcher.deliver(delivery_to(account), None, soon(5))
        assert result.recipients[0].message_id
        assert cluster.total("DeliverMessages") < 30
        await electing


async def test_no_leader_until_the_deadline_is_told_as_such() -> None:
    """The last answer is the caller's, in time; nothing was sent that could have been done."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)
        cluster.leaders[0] = 0
        started = time.monotonic()
        result = await dispatcher.deliver(delivery_to(account), None, soon(0.5))
        assert result.recipients[0].reason == error_pb2.ERROR_REASON_NO_LEADER
        assert result.recipients[0].code == 14
        assert time.monotonic() - started < 1.0


async def test_a_dead_node_does_not_eat_the_deadline() -> None:
    """Its connection is refused, so another replica is tried at once."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)
        await cluster.leader_of(account).stop()
        cluster.elect(0, 3)
        started = time.monotonic()
        result = await dispatcher.deliver(delivery_to(account), None, soon(5))
        assert result.recipients[0].message_id
        assert time.monotonic() - started < 1.0


async def silent(_: Any) -> None:
    """A hook: takes a call and never answers."""
    await asyncio.sleep(60)


async def test_a_silent_node_costs_one_try() -> None:
    """It accepts and never answers: the try has its own time, then another node is asked."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)
        cluster.leader_of(account).hooks["DeliverMessages"] = silent
        cluster.elect(0, 3)
        for node in cluster.nodes.values():
            node.hooks["GetClusterMap"] = silent  # nobody tells who leads
        started = time.monotonic()
        result = await dispatcher.deliver(delivery_to(account), None, soon(8))
        assert result.recipients[0].message_id
        assert TRY_TIMEOUT_S - 0.1 < time.monotonic() - started < TRY_TIMEOUT_S + 1.0
        assert all(deadline_s < TRY_TIMEOUT_S + 0.1 for deadline_s in cluster.nodes[1].deadlines_s)


async def test_a_silent_leader_is_left_as_soon_as_another_is_known() -> None:
    """Its peers are asked before the try's time is over: of deliveries, other writes and reads."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)
        for name in ("DeliverMessages", "CreateMailbox", "GetMessage"):
            cluster.leader_of(account).hooks[name] = silent
        began = [
            asyncio.create_task(call)
            for call in (
                dispatcher.deliver(delivery_to(account), None, soon(8)),
                dispatcher.unary(
                    method("CreateMailbox"), create_mailbox(account, uuid.uuid4().bytes), soon(8)
                ),
                dispatcher.unary(method("GetMessage"), get_message(account, LINEARIZABLE), soon(8)),
            )
        ]
        _, waiting = await asyncio.wait(began, timeout=SILENT_S + 0.1)
        assert len(waiting) == len(began), "left although it leads"
        asked = cluster.total("GetClusterMap")
        assert 2 <= asked <= 4, "not asked together"
        cluster.elect(0, 3)
        started = time.monotonic()
        await asyncio.wait_for(asyncio.gather(*began), 4)
        assert time.monotonic() - started < TRY_TIMEOUT_S - SILENT_S - 0.1
        assert cluster.nodes[2].calls["DeliverMessages"] == 0, "not told where to go"


async def test_a_node_that_comes_back_is_used_again() -> None:
    """Channels reconnect by themselves."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)
        node = cluster.leader_of(account)
        await dispatcher.deliver(delivery_to(account))
        await node.stop()
        delivering = asyncio.create_task(dispatcher.deliver(delivery_to(account), None, soon(9)))
        await asyncio.sleep(0.3)
        await node.start()
        result = await delivering
        assert result.recipients[0].message_id


async def test_a_mutation_without_request_id_is_not_sent_twice() -> None:
    """Once it was sent and the answer is lost, it ends as COMMIT_UNKNOWN."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)
        node = cluster.leader_of(account)

        async def die(_: Any) -> None:
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(node.stop()))
            await asyncio.sleep(5)

        node.hooks["CreateMailbox"] = node.hooks["DeliverMessages"] = die
        with pytest.raises(errors.CommitUnknownError):
            await dispatcher.unary(method("CreateMailbox"), create_mailbox(account, b""))
        assert cluster.total("CreateMailbox") == 1
        await node.start()
        result = await dispatcher.deliver(delivery_to(account, request_id=b""), None, soon(4))
        assert result.recipients[0].reason == error_pb2.ERROR_REASON_COMMIT_UNKNOWN
        assert node.calls["DeliverMessages"] == 1


async def test_a_mutation_without_request_id_may_go_on_before_it_is_done() -> None:
    """NOT_LEADER says that nothing was done."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        cluster.elect(0, 2)
        await dispatcher.unary(method("CreateMailbox"), create_mailbox(cluster.account_in(0), b""))
        assert cluster.total("CreateMailbox") == 2


async def test_a_lost_answer_is_asked_for_again_by_request_id() -> None:
    """The node did it and died; the retry answers with the same message."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)
        node = cluster.leader_of(account)
        delivery = delivery_to(account)

        async def do_and_die(_: Any) -> None:
            cluster.delivered[delivery.request_id, account] = "Mfirst"
            cluster.elect(0, 2)
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(node.stop()))
            await asyncio.sleep(5)

        node.hooks["DeliverMessages"] = do_and_die
        result = await dispatcher.deliver(delivery, None, soon(5))
        assert result.recipients[0].message_id == "Mfirst"


async def test_an_unknown_fate_is_not_forgotten() -> None:
    """COMMIT_UNKNOWN first, then NO_LEADER: the caller must not hear "nothing was done"."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)

        async def unknown(_: Any) -> None:
            cluster.leaders[0] = 0
            raise errors.CommitUnknownError

        cluster.leader_of(account).hooks["CreateMailbox"] = unknown
        request = create_mailbox(account, uuid.uuid4().bytes)
        with pytest.raises(errors.CommitUnknownError):
            await dispatcher.unary(method("CreateMailbox"), request, soon(0.5))
        assert cluster.total("CreateMailbox") > 2


async def test_what_is_full_is_not_pressed_further() -> None:
    """OVERLOADED is for the caller, with its delay."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)

        async def full(_: Any) -> None:
            raise errors.OverloadedError(retry_after_ms=321)

        cluster.leader_of(account).hooks["CreateMailbox"] = full
        with pytest.raises(errors.OverloadedError) as caught:
            await dispatcher.unary(method("CreateMailbox"), create_mailbox(account, b"1"))
        assert caught.value.retry_after_ms == 321
        assert cluster.total("CreateMailbox") == 1


async def test_a_leader_without_quorum_is_left_for_one_that_has_it() -> None:
    """QUORUM_UNAVAILABLE: each other replica is asked once; then it is the answer."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)

        async def cut_off(_: Any) -> None:
            raise errors.QuorumUnavailableError

        cluster.leader_of(account).hooks["CreateMailbox"] = cut_off
        request = create_mailbox(account, b"1")
        cluster.elect(0, 2)
        await dispatcher.unary(method("CreateMailbox"), request)
        for node in cluster.nodes.values():
            node.hooks["CreateMailbox"] = cut_off
        calls = cluster.total("CreateMailbox")
        with pytest.raises(errors.QuorumUnavailableError):
            await dispatcher.unary(method("CreateMailbox"), request, soon(5))
        assert cluster.total("CreateMailbox") == calls + 3


async def test_linearizable_reads_go_to_the_leader_and_local_ones_stay_off_the_dead() -> None:
    """A LOCAL read needs any one replica."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)
        leader = cluster.leader_of(account)
        read = get_message(account, LINEARIZABLE)
        response: Any = await dispatcher.unary(method("GetMessage"), read)
        assert response.served.replica_id == leader.replica_id
        await leader.stop()
        response = await dispatcher.unary(method("GetMessage"), get_message(account, LOCAL))
        assert response.served.replica_id != leader.replica_id


async def test_a_lagging_replica_is_left_for_another() -> None:
    """REPLICA_LAGGING is asked again elsewhere."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)

        async def lagging(_: Any) -> None:
            raise errors.ReplicaLaggingError

        for number in (1, 2):
            cluster.nodes[number].hooks["GetMessage"] = lagging
        session = common_pb2.ReadOptions(min_state="1abc")
        response: Any = await dispatcher.unary(method("GetMessage"), get_message(account, session))
        assert response.served.replica_id == cluster.nodes[3].replica_id


async def test_a_required_replica_is_asked_and_no_other() -> None:
    """Not even when it does not lead, is unreachable, or is not in the map."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)
        for number, node in cluster.nodes.items():
            options = common_pb2.ReadOptions(
                consistency=common_pb2.CONSISTENCY_LOCAL, require_replica=node.replica_id
            )
            response: Any = await dispatcher.unary(
                method("GetMessage"), get_message(account, options)
            )
            assert response.served.replica_id == node.replica_id
            assert node.calls["GetMessage"] == 1, number
        strict = common_pb2.ReadOptions(
            consistency=common_pb2.CONSISTENCY_LINEARIZABLE,
            require_replica=cluster.nodes[3].replica_id,
        )
        with pytest.raises(errors.NotLeaderError):
            await dispatcher.unary(method("GetMessage"), get_message(account, strict), soon(0.3))
        await cluster.nodes[2].stop()
        gone = common_pb2.ReadOptions(require_replica=cluster.nodes[2].replica_id)
        with pytest.raises(errors.UnavailableError):
            await dispatcher.unary(method("GetMessage"), get_message(account, gone), soon(0.3))
        missing = common_pb2.ReadOptions(require_replica=99)
        with pytest.raises(errors.ReplicaNotFoundError):
            await dispatcher.unary(method("GetMessage"), get_message(account, missing))
        assert cluster.nodes[1].calls["GetMessage"] == 1
        assert cluster.nodes[2].calls["GetMessage"] == 1


async def test_a_stale_route_fetches_the_map() -> None:
    """STALE_ROUTE: the newer map is asked for once, and the request goes by it."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)
        cluster.epoch = 7

        async def stale(_: Any) -> None:
            raise errors.StaleRouteError(detail=error_pb2.StaleRoute(epoch=7, shard=0))

        cluster.leader_of(account).hooks["CreateMailbox"] = stale
        cluster.elect(0, 2)
        await dispatcher.unary(method("CreateMailbox"), create_mailbox(account, b"1"))
        assert dispatcher.table.epoch == 7
        assert cluster.total("GetClusterMap") == 1


async def test_a_reply_from_a_newer_map_fetches_it_beside_the_work() -> None:
    """Served.map_epoch is enough to notice."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        cluster.epoch = 3
        version = dispatcher.table.version
        await dispatcher.unary(method("GetMessage"), get_message("user1", LOCAL))
        await dispatcher.table.wait_change(version, 3)
        assert dispatcher.table.epoch == 3


async def test_a_download_is_retried_before_its_first_part_only() -> None:
    """Afterwards a broken stream is the caller's to resume."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)
        request = blob_pb2.DownloadBlobRequest(account_id=account, blob_id="B1-0")
        parts = [blob_pb2.DownloadBlobResponse(chunk=blob_pb2.BlobChunk(data=b"x"))] * 3

        async def not_here(_: Any) -> list[Any]:
            raise errors.NotLeaderError

        async def whole(_: Any) -> list[Any]:
            return parts

        async def half(_: Any) -> list[Any]:
            return [parts[0], errors.ShuttingDownError()]

        cluster.nodes[1].hooks["DownloadBlob"] = not_here
        for number in (2, 3):
            cluster.nodes[number].hooks["DownloadBlob"] = whole
        got = [part async for part in dispatcher.stream(method("DownloadBlob"), request)]
        assert got == parts
        for node in cluster.nodes.values():
            node.hooks["DownloadBlob"] = half
        calls = cluster.total("DownloadBlob")
        broken = dispatcher.stream(method("DownloadBlob"), request)
        assert await anext(broken) == parts[0]
        with pytest.raises(errors.ShuttingDownError):
            await anext(broken)
        assert cluster.total("DownloadBlob") == calls + 1


async def test_an_upload_finds_the_leader_and_takes_its_chunks_along() -> None:
    """A node that does not lead says so on the header; chunks already taken are sent again."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(0)
        cluster.elect(0, 2)
        header = blob_pb2.UploadBlobRequest(
            header=blob_pb2.UploadHeader(account_id=account, request_id=b"1" * 16)
        )

        async def chunks() -> Any:
            for _ in range(3):
                yield blob_pb2.UploadBlobRequest(chunk=blob_pb2.BlobChunk(data=b"x" * 1000))

        response = await dispatcher.upload(header, chunks())
        assert response.size_bytes == 3000
        # At most each node: a write to a stream that has ended may hide who leads (grpc.aio).
        assert 2 <= cluster.total("UploadBlob") <= 3


async def test_calls_to_one_node_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound the caller is told OVERLOADED at once."""
    monkeypatch.setattr("mailraft.router.pool.CALLS_PER_NODE_MAX", 2)
    async with fake_cluster(nodes=1) as cluster, dispatching(cluster) as dispatcher:

        async def slow(_: Any) -> None:
            await asyncio.sleep(0.2)

        cluster.nodes[1].hooks["CreateMailbox"] = slow
        calls = (
            dispatcher.unary(method("CreateMailbox"), create_mailbox(f"user{i}", b"1"))
            for i in range(5)
        )
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refused = [each for each in outcomes if isinstance(each, errors.OverloadedError)]
        assert len(refused) == 3


async def test_the_map_answers_without_a_node() -> None:
    """Locate and GetClusterMap cost no call."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        account = cluster.account_in(3)
        request = cluster_pb2.LocateRequest(account_id=account)
        response: Any = await dispatcher.unary(method("Locate"), request)
        assert response.shard.id == 3
        assert response.shard.leader.node_id == cluster.leaders[3]
        assert len(response.nodes) == 3
        known = cluster_pb2.GetClusterMapRequest(known_epoch=1)
        response = await dispatcher.unary(method("GetClusterMap"), known)
        assert not response.map.nodes
        assert len(response.map.shards) == 4
        assert not cluster.total("GetClusterMap")

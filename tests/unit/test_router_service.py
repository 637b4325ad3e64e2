"""The router process: every service forwarded, over real connections on both sides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.unit.router_fakes import INSECURE, FakeCluster, delivery_to, fake_cluster, method

from mailraft.router.methods import SERVICES
from mailraft.router.service import RouterServer, serve
from mailraft.v1 import (
    account_pb2,
    admin_pb2,
    blob_pb2,
    change_pb2,
    cluster_pb2,
    delivery_pb2,
    mailbox_pb2,
    message_service_pb2,
)
from mailraft.wire import errors
from mailraft.wire.credentials import open_channel
from mailraft.wire.metadata import ACCOUNT_KEY


@asynccontextmanager
async def routed(
    nodes: int = 3, shards: int = 4, **options: Any
) -> AsyncIterator[tuple[FakeCluster, RouterServer, grpc.aio.Channel]]:
    """A cluster of fakes, a router before it, a channel to the router."""
    async with fake_cluster(nodes, shards) as cluster:
        router = await serve(cluster.map(), INSECURE, "127.0.0.1:0", **options)
        try:
            async with open_channel(f"127.0.0.1:{router.port}", INSECURE) as channel:
                yield cluster, router, channel
        finally:
            await router.stop(drain_s=0, grace_s=0)


async def call(channel: grpc.aio.Channel, request: Any, **options: Any) -> Any:
    """A unary call by the type of its request."""
    name = type(request).__name__.removesuffix("Request")
    each = method(name)
    stub = channel.unary_unary(
        each.path,
        request_serializer=each.request.SerializeToString,
        response_deserializer=each.response.FromString,
    )
    return await stub(request, **options)


async def test_calls_reach_the_nodes() -> None:
    """Deliveries, reads, mutations and administration."""
    async with routed() as (cluster, _, channel):
        accounts = [cluster.account_in(shard) for shard in range(4)]
        request = delivery_pb2.DeliverMessagesRequest(
            deliveries=[delivery_to(*accounts), delivery_to(accounts[0])]
        )
        response = await call(channel, request)
        assert [len(result.recipients) for result in response.results] == [4, 1]
        read = message_service_pb2.GetMessageRequest(account_id="alice", message_id="M5")
        assert (await call(channel, read)).message.id == "M5"
        await call(channel, mailbox_pb2.CreateMailboxRequest(account_id="alice", request_id=b"1"))
        await call(channel, admin_pb2.GetSettingsRequest())
        assert cluster.total("CreateMailbox") == 1
        assert cluster.total("GetSettings") == 1


async def test_the_account_in_the_metadata_must_be_the_requests() -> None:
    """A proxy in between may rely on it."""
    async with routed() as (cluster, _, channel):
        read = message_service_pb2.GetMessageRequest(account_id="alïce", message_id="M5")
        await call(channel, read, metadata=((ACCOUNT_KEY, "al%C3%AFce"),))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, read, metadata=((ACCOUNT_KEY, "bob"),))
        error = errors.from_rpc_error(caught.value)
        assert isinstance(error, errors.BadFieldError)
        assert "account_id" in error.fields
        assert cluster.total("GetMessage") == 1


async def test_an_error_of_a_node_comes_through_as_it_was() -> None:
    """Reason, message and details, even ones that this router does not know."""
    async with routed(nodes=1, shards=1) as (cluster, _, channel):
        info = error_details_pb2.ErrorInfo(domain="mailraft", reason="FROM_THE_FUTURE")
        status = status_pb2.Status(code=9, message="not yet")
        packed = any_pb2.Any()
        packed.Pack(info)
        status.details.append(packed)

        async def refuse(_: Any) -> None:
            raise errors.from_status(status)

        cluster.nodes[1].hooks["CreateMailbox"] = refuse
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, mailbox_pb2.CreateMailboxRequest(account_id="a", request_id=b"1"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert errors.from_rpc_error(caught.value).to_status() == status


async def test_a_router_follows_the_map() -> None:
    """Without a call that fails first; an older map, and one of another cluster, change nothing."""
    async with routed(nodes=1, shards=1) as (cluster, server, _):
        table = server.dispatcher.fleet.table
        known = table.epoch
        for epoch, cluster_id in ((known + 7, ""), (known + 3, ""), (known + 9, "another")):
            told = cluster.map()
            told.epoch, told.cluster_id = epoch, cluster_id or told.cluster_id
            cluster.nodes[1].tell_map(told)
        async with asyncio.timeout(5):
            while not cluster.nodes[1].maps.empty() or table.epoch == known:
                await table.wait_change(table.version, 0.1)
        assert table.epoch == known + 7


async def test_the_deadline_is_passed_on() -> None:
    """What is left of it, for one try at most."""
    async with routed(nodes=1, shards=1) as (cluster, _, channel):
        request = mailbox_pb2.CreateMailboxRequest(account_id="a", request_id=b"1")
        await call(channel, request, timeout=0.8)
        await call(channel, request)
        first, second = cluster.nodes[1].deadlines_s
        assert 0.4 < first < 0.85
        assert 0.6 < second < 1.6  # of the 1 s of a try; gRPC rounds up, and the way takes time


async def test_streams_pass_through() -> None:
    """Downloads, uploads, and the cluster map."""
    async with routed() as (cluster, _, channel):
        account = cluster.account_in(2)
        parts = [blob_pb2.DownloadBlobResponse(chunk=blob_pb2.BlobChunk(data=b"x"))] * 2

        async def download(_: Any) -> list[Any]:
            return parts

        for node in cluster.nodes.values():
            node.hooks["DownloadBlob"] = download
        each = method("DownloadBlob")
        stream = channel.unary_stream(
            each.path,
            request_serializer=each.request.SerializeToString,
            response_deserializer=each.response.FromString,
        )(blob_pb2.DownloadBlobRequest(account_id=account, blob_id="B1-0"))
        assert [part async for part in stream] == parts

        async def upload() -> AsyncIterator[blob_pb2.UploadBlobRequest]:
            header = blob_pb2.UploadHeader(account_id=account, request_id=b"1" * 16)
            yield blob_pb2.UploadBlobRequest(header=header)
            for _ in range(8):
                data = bytes(256 * 1024)
                yield blob_pb2.UploadBlobRequest(chunk=blob_pb2.BlobChunk(data=data))

        each = method("UploadBlob")
        response = await channel.stream_unary(
            each.path,
            request_serializer=each.request.SerializeToString,
            response_deserializer=each.response.FromString,
        )(upload())
        assert response.size_bytes == 2 * 1024 * 1024
        each = method("WatchClusterMap")
        watching = channel.unary_stream(
            each.path,
            request_serializer=each.request.SerializeToString,
            response_deserializer=each.response.FromString,
        )(cluster_pb2.WatchClusterMapRequest())
        first: Any = await watching.read()
        assert first.map.epoch == 1
        assert len(first.leaders) == 4
        watching.cancel()


async def test_a_watch_follows_accounts_of_several_nodes() -> None:
    """One stream; a node that ends is told for each of its accounts, and left for another."""
    async with routed() as (cluster, _, channel):
        each = method("Watch")
        stub: Any = channel.stream_stream(
            each.path,
            request_serializer=each.request.SerializeToString,
            response_deserializer=each.response.FromString,
        )
        watch = stub()
        accounts = [cluster.account_in(shard) for shard in range(3)]
        told = {}
        for account in accounts:
            await watch.write(
                change_pb2.WatchRequest(
                    account_id=account, subscribe=change_pb2.WatchSubscribe(since_state="1")
                )
            )
            event = await watch.read()
            told[event.account_id] = event.change.state
        assert set(told) == set(accounts)
        assert len(set(told.values())) == 3
        gone = told[accounts[0]]
        await cluster.nodes[int(gone.removeprefix("node-"))].stop()
        event = await watch.read()
        assert event.account_id == accounts[0]
        assert event.end.code == grpc.StatusCode.UNAVAILABLE.value[0]
        again = change_pb2.WatchRequest(
            account_id=accounts[0], subscribe=change_pb2.WatchSubscribe(since_state="1")
        )
        await watch.write(again)
        event = await watch.read()
        assert event.change.subscribed
        assert event.change.state != gone
        await watch.done_writing()


async def test_accounts_of_all_shards_are_listed_in_pages() -> None:
    """Each once; a shard that cannot be read is named when the caller takes that."""
    async with routed(nodes=1, shards=4) as (cluster, _, channel):

        async def accounts(request: Any) -> account_pb2.ListAccountsResponse:
            (shard,) = request.shards
            if shard == 2:
                raise errors.NoLeaderError
            start = int(request.page_token or 0)
            names = [f"s{shard}a{i}" for i in range(5)][start : start + request.page_size]
            after = start + len(names)
            return account_pb2.ListAccountsResponse(
                accounts=[account_pb2.Account(account_id=name) for name in names],
                next_page_token=str(after) if after < 5 else "",
            )

        cluster.nodes[1].hooks["ListAccounts"] = accounts
        request = account_pb2.ListAccountsRequest(page_size=3, return_partial_success=True)
        seen: list[str] = []
        unreachable: list[int] = []
        while True:
            page = await call(channel, request, timeout=3)
            seen.extend(account.account_id for account in page.accounts)
            unreachable.extend(page.unreachable)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert seen == [f"s{shard}a{i}" for shard in (0, 1, 3) for i in range(5)]
        assert unreachable == [2]
        request.shards.append(1)
        request.page_token = "1AAAA"  # noqa: S105 - not a secret
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, request)
        assert isinstance(errors.from_rpc_error(caught.value), errors.BadPageTokenError)


async def test_health_and_reflection_name_every_service() -> None:
    """SERVING until the router stops; then watchers and streams are told."""
    async with routed() as (_, router, channel):
        health: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            status = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert status.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError):
            await health.Check(health_pb2.HealthCheckRequest(service="nothing"))
        reflect: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        async for answer in reflect.ServerReflectionInfo(iter(asked)):
            names = {each.name for each in answer.list_services_response.service}
            assert names >= set(SERVICES)
        watching = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        each = method("WatchClusterMap")
        maps = channel.unary_stream(
            each.path,
            request_serializer=each.request.SerializeToString,
            response_deserializer=each.response.FromString,
        )(cluster_pb2.WatchClusterMapRequest())
        await maps.read()
        stopping = asyncio.create_task(router.stop(drain_s=0.1, grace_s=5))
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await maps.read()
        assert isinstance(errors.from_rpc_error(caught.value), errors.ShuttingDownError)
        async with asyncio.timeout(3):
            await stopping


async def test_capabilities_come_from_a_node_or_from_who_started_the_router() -> None:
    """Levels are the cluster's, so a router does not invent them."""
    async with routed() as (cluster, _, channel):
        await call(channel, cluster_pb2.GetCapabilitiesRequest())
        assert cluster.total("GetCapabilities") == 1
    given = cluster_pb2.GetCapabilitiesResponse(cluster_id="fake", version="9")
    async with routed(capabilities=given) as (cluster, _, channel):
        response = await call(channel, cluster_pb2.GetCapabilitiesRequest())
        assert response.version == "9"
        assert response.time_ms
        assert not cluster.total("GetCapabilities")

"""BatchService, ClusterService, health and reflection."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.unit.test_services_node import (
    ALICE,
    BOB,
    ELSEWHERE,
    MAIL,
    NODE,
    OTHER_NODE,
    SHARDS,
    FakeShard,
    delivery,
    item,
    refusal,
    request_id,
    running,
)

from mailraft.node.interfaces import META_GROUP, node_of
from mailraft.node.services import batch
from mailraft.node.services.base import Call, Service
from mailraft.node.shard import ReadPoint, Replica
from mailraft.router import dispatch
from mailraft.v1 import (
    account_pb2,
    batch_pb2,
    blob_pb2,
    cluster_pb2,
    common_pb2,
    delivery_pb2,
    mailbox_pb2,
    message_service_pb2,
)
from mailraft.wire import errors, limits
from mailraft.wire.slots import slot_of

# ---- batches


async def test_each_call_of_a_batch_has_its_own_outcome() -> None:
    """In the order of the items; an error is the Status that the call alone would end with."""
    async with running() as (_, calls):
        await calls.create(ALICE)
        get = account_pb2.GetAccountRequest
        items = [
            batch_pb2.BatchItem(get_account=get(account_id=ALICE)),
            batch_pb2.BatchItem(get_account=get(account_id=BOB)),
            batch_pb2.BatchItem(get_account=get(account_id=ELSEWHERE)),
            batch_pb2.BatchItem(
                deliver_messages=delivery_pb2.DeliverMessagesRequest(
                    deliveries=[delivery(MAIL, ALICE)]
                )
            ),
            batch_pb2.BatchItem(
                move_messages=message_service_pb2.MoveMessagesRequest(account_id=ALICE)
            ),
            batch_pb2.BatchItem(),
        ]
        response = await calls.batch.Execute(batch_pb2.ExecuteRequest(items=items))
        one, two, three, four, five, six = response.results
        assert one.get_account.account.account_id == ALICE
        assert four.deliver_messages.results[0].recipients[0].code == 0
        alone = await refusal(calls.accounts.GetAccount(get(account_id=BOB)))
        assert two.error == alone.to_status()
        for result, kind in (
            (three, errors.StaleRouteError),
            (five, errors.BadFieldError),
            (six, errors.BadFieldError),
        ):
            assert isinstance(errors.from_status(result.error), kind)


async def test_every_kind_of_item_has_a_handler() -> None:
    """Each answers with its own response or a Status, never with a bug."""
    kinds = batch_pb2.BatchItem.DESCRIPTOR.oneofs_by_name["request"].fields
    async with running() as (_, calls):
        await calls.create(ALICE)
        items = []
        for kind in kinds:
            each = batch_pb2.BatchItem()
            getattr(each, kind.name).SetInParent()
            items.append(each)
        response = await calls.batch.Execute(batch_pb2.ExecuteRequest(items=items))
        for result in response.results:
            told = errors.from_status(result.error)
            assert isinstance(told, errors.BadFieldError | errors.UnimplementedError), told


async def test_a_full_batch_says_which_reads_to_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reply stays below its limit; mutations are answered all the same."""
    monkeypatch.setattr(batch, "TURN_MAX_BYTES", 10_000)  # several turns of the loop
    noise = bytes(range(256)) * 4_000  # 1,024,000 bytes
    async with running() as (_, calls):
        await calls.create(ALICE)
        [[stored]] = await calls.deliver(delivery(noise, ALICE))
        get = blob_pb2.GetBlobRequest(account_id=ALICE, blob_id=stored.blob_id)
        append = delivery_pb2.AppendMessagesRequest(
            account_id=ALICE, request_id=request_id(), messages=[item(MAIL)]
        )
        items = [batch_pb2.BatchItem(get_blob=get) for _ in range(6)]
        items.append(batch_pb2.BatchItem(append_messages=append))
        response = await calls.batch.Execute(batch_pb2.ExecuteRequest(items=items))
        assert response.ByteSize() < limits.RPC_MAX_BYTES
        told = [each.WhichOneof("result") for each in response.results]
        # Which of the reads find room is decided by the threads that open the bytes.
        assert sorted(told[:6], key=str) == ["error"] * 3 + ["get_blob"] * 3
        assert told[6] == "append_messages"
        full = errors.from_status(response.results[told.index("error")].error)
        assert isinstance(full, errors.ReplyFullError)


async def test_linearizable_reads_of_a_batch_ask_one_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of each replica, for all that are about it; where that fails, each of them says so."""
    asked: list[int] = []
    fails = False
    read = Replica.read

    async def counted(replica: Replica, level: Any, **more: Any) -> ReadPoint:
        asked.append(level)
        if fails:
            raise errors.NotLeaderError
        return await read(replica, level, **more)

    monkeypatch.setattr(Replica, "read", counted)
    async with running() as (_, calls):
        await calls.create(ALICE)
        options = common_pb2.ReadOptions(consistency=common_pb2.CONSISTENCY_LINEARIZABLE)
        request = batch_pb2.ExecuteRequest()
        for account in (ALICE, BOB, ELSEWHERE, ALICE):
            get = account_pb2.GetAccountRequest(account_id=account, read_options=options)
            request.items.add(get_account=get)
        kinds: Any = (None, errors.AccountNotFoundError, errors.StaleRouteError, None)
        shards = len({slot_of(each) % SHARDS for each in (ALICE, BOB)})
        for fails in (False, True):
            asked.clear()
            found = (await calls.batch.Execute(request)).results
            assert asked == [common_pb2.CONSISTENCY_LINEARIZABLE] * shards
            for each, kind in zip(found, kinds, strict=True):
                refused = fails and kind is not errors.StaleRouteError
                expected = errors.NotLeaderError if refused else kind or type(None)
                told = errors.from_status(each.error) if each.HasField("error") else None
                assert isinstance(told, expected)


async def test_a_read_that_waits_holds_up_no_other_of_its_batch() -> None:
    """The first waits here until the last was run; so they are not run in order."""
    ran, last = [], asyncio.Event()

    async def get(request: account_pb2.GetAccountRequest, _: Call) -> Message:
        if request.account_id == "first":
            await last.wait()
        ran.append(request.account_id)
        if request.account_id == "last":
            last.set()
        return account_pb2.GetAccountResponse(state=request.account_id)

    services = [
        Service(module.DESCRIPTOR.services_by_name[name], {"GetAccount": get} if at == 0 else {})
        for at, (module, name) in enumerate(
            (
                (account_pb2, "AccountService"),
                (mailbox_pb2, "MailboxService"),
                (message_service_pb2, "MessageService"),
                (blob_pb2, "BlobService"),
            )
        )
    ]
    request = batch_pb2.ExecuteRequest()
    names = ["first", "second", "last"]
    for name in names:
        request.items.add(get_account=account_pb2.GetAccountRequest(account_id=name))
    nowhere: Any = None  # no read asks for a shard
    async with asyncio.timeout(5):
        ready = await batch.Batch(nowhere, services).Execute(request, Call(0.0))
    response = batch_pb2.ExecuteResponse.FromString(ready.SerializeToString())
    assert [each.get_account.state for each in response.results] == names
    assert ran == ["second", "last", "first"]


async def test_a_batch_of_bad_form_is_refused() -> None:
    """No items, too many, or more recipients than one reply can answer."""
    async with running() as (_, calls):
        many = delivery_pb2.DeliverMessagesRequest(
            deliveries=[delivery(b"x", *(f"{n}" for n in range(1_000)))] * 4
        )
        for items in (
            [],
            [batch_pb2.BatchItem()] * 257,
            [batch_pb2.BatchItem(deliver_messages=many)] * 2,
        ):
            error = await refusal(calls.batch.Execute(batch_pb2.ExecuteRequest(items=items)))
            assert isinstance(error, errors.BadFieldError)


# ---- the cluster


async def test_the_map_is_told_with_the_leaders() -> None:
    """The whole map, or only the hints to who has it already."""
    async with running() as (node, calls):
        whole = (await calls.cluster.GetClusterMap(cluster_pb2.GetClusterMapRequest())).map
        assert [shard.id for shard in whole.shards] == list(range(SHARDS))
        assert whole.shards[1].leader.replica_id == node.shards[1].replica.replica
        assert not whole.shards[2].HasField("leader")
        request = cluster_pb2.GetClusterMapRequest(known_epoch=5)
        hints = (await calls.cluster.GetClusterMap(request)).map
        assert (hints.epoch, len(hints.nodes), len(hints.shards)) == (5, 0, 2)


async def test_the_map_tells_who_leads_the_meta_group() -> None:
    """From a node with a replica of it; another one does not know."""
    async with running() as (node, calls):
        request = cluster_pb2.GetClusterMapRequest()
        assert not (await calls.cluster.GetClusterMap(request)).map.meta.HasField("leader")
        node.meta_shard = FakeShard(META_GROUP)
        told = (await calls.cluster.GetClusterMap(request)).map.meta.leader
        leader = node.meta_shard.replica.replica
        assert (told.replica_id, told.node_id) == (leader, node_of(leader))


async def test_the_map_is_watched() -> None:
    """The map at once, then new leaders as they are learned, then the next map."""
    async with running() as (node, calls):
        stream = calls.cluster.WatchClusterMap(cluster_pb2.WatchClusterMapRequest())
        first = await stream.read()
        assert first.map.epoch == 5
        node.shards[0].follow(OTHER_NODE << 32 | 1)
        second = await stream.read()
        assert [(each.shard, each.node_id) for each in second.leaders] == [(0, OTHER_NODE)]
        assert not second.HasField("map")
        newer = cluster_pb2.ClusterMap()
        newer.CopyFrom(node.map)
        newer.epoch = 6
        node.map = newer
        assert (await stream.read()).map.epoch == 6
        stream.cancel()
        known = calls.cluster.WatchClusterMap(cluster_pb2.WatchClusterMapRequest(known_epoch=6))
        assert not (await known.read()).HasField("map")
        known.cancel()


async def test_accounts_are_located() -> None:
    """Where an account is or would be, with the nodes that hold it."""
    async with running() as (_, calls):
        for account_id, shard, node in ((ALICE, 0, NODE), (ELSEWHERE, 2, OTHER_NODE)):
            request = cluster_pb2.LocateRequest(account_id=account_id)
            told = await calls.cluster.Locate(request)
            assert (told.shard.id, [each.id for each in told.nodes]) == (shard, [node])


async def test_nodes_and_shards_are_told_from_here() -> None:
    """What this node knows; what it does not is left empty."""
    async with running() as (_, calls):
        request: Any = cluster_pb2.ListNodesRequest(page_size=1)
        first = await calls.cluster.ListNodes(request)
        request.page_token = first.next_page_token
        second = await calls.cluster.ListNodes(request)
        assert [each.node.id for each in (*first.nodes, *second.nodes)] == [NODE, OTHER_NODE]
        assert (first.nodes[0].reachable, first.nodes[0].replicas, first.nodes[0].leaders) == (
            True,
            2,
            2,
        )
        assert not second.nodes[0].reachable
        assert not second.next_page_token
        request = cluster_pb2.ListShardsRequest(page_size=2)
        first = await calls.cluster.ListShards(request)
        request.page_token = first.next_page_token
        second = await calls.cluster.ListShards(request)
        assert [each.shard.id for each in (*first.shards, *second.shards)] == [0, 1, 2]
        assert first.shards[0].replicas[0].state == cluster_pb2.REPLICA_STATE_LEADING
        assert first.shards[0].available
        only = cluster_pb2.ListShardsRequest(node_id=OTHER_NODE)
        assert [each.shard.id for each in (await calls.cluster.ListShards(only)).shards] == [2]
        error = await refusal(calls.cluster.GetShard(cluster_pb2.GetShardRequest(shard=99)))
        assert isinstance(error, errors.ShardNotFoundError)


async def test_capabilities_are_what_is_served() -> None:
    """The levels, their defaults and the limits that requests are held to."""
    async with running() as (node, calls):
        told = await calls.cluster.GetCapabilities(cluster_pb2.GetCapabilitiesRequest())
        assert told.default_consistency in told.consistencies
        assert told.default_ack == common_pb2.ACK_LEVEL_QUORUM
        accepted = common_pb2.ACK_LEVEL_ACCEPTED
        assert set(told.ack_levels) == set(common_pb2.AckLevel.values()) - {0, accepted}
        node.map.policy.allow_accepted = True
        node.map.policy.default_consistency = common_pb2.CONSISTENCY_LOCAL
        told = await calls.cluster.GetCapabilities(cluster_pb2.GetCapabilitiesRequest())
        assert accepted in told.ack_levels
        assert told.default_consistency == common_pb2.CONSISTENCY_LOCAL
        assert told.limits.message_bytes == limits.MESSAGE_MAX_BYTES
        assert told.limits.upload_bytes == limits.UPLOAD_MAX_BYTES
        assert told.cluster_id == "test-cluster"


async def test_health_has_a_name_per_service() -> None:
    """Each service of mailraft.v1 is asked for by its full name."""
    async with running() as (_, calls):
        stub = health_pb2_grpc.HealthStub(calls.channel)
        for name in ("", "mailraft.v1.MessageService", "mailraft.v1.ClusterService"):
            told = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert told.status == health_pb2.HealthCheckResponse.SERVING


async def test_calls_run_beside_each_other() -> None:
    """A call that waits for its commit does not hold up the next one."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        await calls.create(BOB)
        node.shard_of(ALICE).stalled = True
        slow = asyncio.ensure_future(calls.deliver(delivery(MAIL, ALICE)))
        [[result]] = await calls.deliver(delivery(MAIL, BOB))
        assert result.code == 0
        assert not slow.done()
        node.shard_of(ALICE).stalled = False
        node.shard_of(ALICE).step()
        [[result]] = await slow
        assert result.code == 0


def results_of_node(asked: Sequence[tuple[str, bytes]]) -> list[batch_pb2.BatchResult]:
    """As a node puts its reply together."""
    items = [
        batch._Item(name, None, "", reads=name == "get_blob", result=result)
        for name, result in asked
    ]
    batch._shorten(items)
    return [batch_pb2.BatchResult.FromString(each.result) for each in items]


def results_of_router(asked: Sequence[tuple[str, bytes]]) -> list[batch_pb2.BatchResult]:
    """As a router does."""
    requests = {
        "get_blob": batch_pb2.BatchItem(get_blob=blob_pb2.GetBlobRequest()),
        "modify_keywords": batch_pb2.BatchItem(
            modify_keywords=message_service_pb2.ModifyKeywordsRequest()
        ),
    }
    items = [requests[name] for name, _ in asked]
    return dispatch.fitting(items, [batch_pb2.BatchResult.FromString(each) for _, each in asked])


@pytest.mark.parametrize("fit", [results_of_node, results_of_router], ids=["node", "router"])
@pytest.mark.parametrize(
    ("asked", "left"),
    [
        ("read 1, change 1, read 2", "read, change, REPLY_FULL"),
        ("change 2, read 2, change 1", "change, REPLY_FULL, change"),
        ("change 3, read 1, change 2", "change, REPLY_FULL, COMMIT_UNKNOWN"),
        ("read 1, change 1, read 1", "read, change, read"),
    ],
)
def test_a_reply_that_is_too_large_leaves_reads_out_and_changes_last(
    fit: Callable[[Sequence[tuple[str, bytes]]], list[batch_pb2.BatchResult]], asked: str, left: str
) -> None:
    """What was changed is not undone by a reply that gRPC would refuse to send. In MiB."""
    results = []
    for each in asked.split(", "):
        kind, _, mib = each.partition(" ")
        result = batch_pb2.BatchResult()
        if kind == "read":
            result.get_blob.blob_id = "x" * (int(mib) << 20)
        else:
            result.modify_keywords.state = "x" * (int(mib) << 20)
        results.append((result.WhichOneof("result") or "", result.SerializeToString()))
    names = {"get_blob": "read", "modify_keywords": "change"}
    found = [
        names.get(each.WhichOneof("result") or "") or errors.from_status(each.error).name
        for each in fit(results)
    ]
    assert ", ".join(found) == left

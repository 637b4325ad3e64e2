"""Many deliveries and reads in few calls; each gets its own answer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from google.protobuf.message import Message
from tests.unit.router_fakes import delivery_to, dispatching, fake_cluster, method

from mailraft.router.coalesce import Coalescer
from mailraft.router.dispatch import Dispatcher
from mailraft.router.failures import NoAnswerError
from mailraft.v1 import (
    batch_pb2,
    common_pb2,
    delivery_pb2,
    error_pb2,
    message_service_pb2,
)
from mailraft.wire import errors


def soon(seconds: float) -> float:
    """A deadline."""
    return asyncio.get_running_loop().time() + seconds


async def test_128_concurrent_deliveries_travel_in_few_calls() -> None:
    """They wait for no timer: what is there goes, the rest follows; two calls at most at once."""
    async with fake_cluster(shards=1) as cluster, dispatching(cluster) as dispatcher:
        deliveries = [delivery_to(f"user{index}") for index in range(128)]
        results = await asyncio.gather(*map(dispatcher.deliver, deliveries))
        assert len({result.recipients[0].message_id for result in results}) == 128
        assert cluster.total("DeliverMessages") <= 4
        for delivery, result in zip(deliveries, results, strict=True):
            key = (delivery.request_id, delivery.recipients[0].account_id)
            assert cluster.delivered[key] == result.recipients[0].message_id


async def test_an_idle_lane_sends_at_once() -> None:
    """One after the other, each is a call of its own."""
    async with fake_cluster(shards=1) as cluster, dispatching(cluster) as dispatcher:
        for _ in range(3):
            await dispatcher.deliver(delivery_to("user1"))
        assert cluster.total("DeliverMessages") == 3


async def test_what_arrives_during_two_calls_forms_the_next() -> None:
    """Two in flight at most, one caller waits for no other; the third carries what came then."""
    async with fake_cluster(nodes=1, shards=1) as cluster, dispatching(cluster) as dispatcher:
        node, gate = cluster.nodes[1], asyncio.Event()

        async def wait(_: Any) -> None:
            await gate.wait()

        node.hooks["DeliverMessages"] = wait
        sent = []
        for index in range(8):
            sent.append(asyncio.create_task(dispatcher.deliver(delivery_to(f"user{index}"))))
            await asyncio.sleep(0.01)
        assert node.most_in_flight == 2
        gate.set()
        await asyncio.gather(*sent)
        assert node.deliveries_per_call == [1, 1, 6]


async def test_fewer_items_wait_for_the_call_before_them() -> None:
    """A second goes beside it once it carries as much; what the callers of the first ask next goes
    along with what waited.
    """
    taken: list[list[int]] = []
    gate = asyncio.Event()

    async def send(items: Sequence[int], _: float) -> Sequence[int]:
        taken.append(list(items))
        await gate.wait()
        return items

    lane = Coalescer[int, int](send)

    async def ask(*items: int) -> None:
        for item in items:
            assert await lane.submit(item, 1, soon(5)) == item

    asking = [asyncio.create_task(ask(*items)) for items in ((1, 11), (2, 12))]
    await asyncio.sleep(0.01)
    for item in (3, 4, 5):
        asking.append(asyncio.create_task(ask(item)))
        await asyncio.sleep(0.01)
    assert taken == [[1, 2], [3, 4]]
    gate.set()
    await asyncio.gather(*asking)
    assert taken == [[1, 2], [3, 4], [5, 11, 12]]


async def test_a_batch_is_bounded_in_bytes_and_in_number() -> None:
    """About 1 MiB, at least one, at most 256."""
    taken: list[int] = []

    async def send(items: Sequence[int], _: float) -> Sequence[int]:
        taken.append(len(items))
        await asyncio.sleep(0.01)
        return items

    lane = Coalescer[int, int](send)
    big = (lane.submit(index, 400_000, soon(5)) for index in range(6))
    assert await asyncio.gather(*big) == [0, 1, 2, 3, 4, 5]
    assert taken == [2, 2, 2]
    taken.clear()
    assert await lane.submit(7, 3_000_000, soon(5)) == 7
    assert taken == [1]
    taken.clear()
    await asyncio.gather(*(lane.submit(index, 1, soon(5)) for index in range(300)))
    assert taken == [256, 44]


async def test_the_queue_of_a_lane_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past it: OVERLOADED, and nothing that waits is lost."""
    monkeypatch.setattr("mailraft.router.coalesce.WAITING_ITEMS_MAX", 10)

    async def send(items: Sequence[int], _: float) -> Sequence[int]:
        return items

    lane = Coalescer[int, int](send)
    outcomes = await asyncio.gather(
        *(lane.submit(index, 1, soon(5)) for index in range(15)), return_exceptions=True
    )
    assert outcomes[:10] == list(range(10))
    assert all(isinstance(outcome, errors.OverloadedError) for outcome in outcomes[10:])


async def test_a_failed_call_fails_its_own_batch_only() -> None:
    """Each caller gets an error of its own; the lane goes on."""
    failing = True

    async def send(items: Sequence[int], _: float) -> Sequence[int]:
        if failing:
            raise errors.ShuttingDownError("x")
        return items

    lane = Coalescer[int, int](send)
    outcomes = await asyncio.gather(
        *(lane.submit(index, 1, soon(5)) for index in range(3)), return_exceptions=True
    )
    assert len({id(outcome) for outcome in outcomes}) == 3
    assert all(isinstance(outcome, errors.ShuttingDownError) for outcome in outcomes)
    failing = False
    assert await lane.submit(1, 1, soon(5)) == 1
    assert lane.idle


async def test_an_item_that_was_not_sent_in_time_is_known_not_to_be_done() -> None:
    """DEADLINE_EXCEEDED for what still waited, a lost answer for what was sent."""

    async def send(items: Sequence[int], _: float) -> Sequence[int]:
        await asyncio.sleep(0.5)
        return items

    lane = Coalescer[int, int](send, calls_max=1, items_max=1)
    outcomes = await asyncio.gather(
        *(lane.submit(index, 1, soon(0.1)) for index in range(2)), return_exceptions=True
    )
    assert isinstance(outcomes[0], errors.UnavailableError)
    assert isinstance(outcomes[1], errors.DeadlineExceededError)


async def test_each_item_ends_at_its_own_deadline() -> None:
    """One timer serves the whole lane: whoever comes later may have to be told earlier."""
    told: list[str] = []
    gate = asyncio.Event()

    async def send(items: Sequence[str], _: float) -> Sequence[str]:
        await gate.wait()
        return items

    lane = Coalescer[str, str](send)

    async def submit(item: str, seconds: float) -> None:
        try:
            told.append(await lane.submit(item, 1, soon(seconds)))
        except NoAnswerError:
            told.append(f"{item}: too late")

    async with asyncio.TaskGroup() as group:
        for item, seconds in (("last", 0.3), ("patient", 30.0), ("first", 0.05), ("second", 0.15)):
            group.create_task(submit(item, seconds))
        await asyncio.sleep(0.5)
        assert told == ["first: too late", "second: too late", "last: too late"]
        gate.set()
    assert told[3:] == ["patient"]
    await lane.close()


async def test_a_delivery_to_several_shards_is_split_and_joined() -> None:
    """Results come in the order of the recipients, under one request_id."""
    async with fake_cluster(shards=4) as cluster, dispatching(cluster) as dispatcher:
        accounts = [cluster.account_in(index % 4, index // 4) for index in range(12)]
        delivery = delivery_to(*accounts)
        result = await dispatcher.deliver(delivery)
        assert len(result.recipients) == 12
        for account, recipient in zip(accounts, result.recipients, strict=True):
            assert recipient.message_id == cluster.delivered[delivery.request_id, account]
        # Four shards, three nodes: shards 0 and 3 have one leader and share its call.
        assert cluster.total("DeliverMessages") == 3


async def test_only_the_recipients_that_failed_are_tried_again() -> None:
    """A leader change in one shard does not send the others' mail again."""
    async with fake_cluster(shards=2) as cluster, dispatching(cluster) as dispatcher:
        accounts = [cluster.account_in(0), cluster.account_in(1), cluster.account_in(0, 1)]
        cluster.elect(0, 3)
        seen: list[list[str]] = []

        async def look(request: delivery_pb2.DeliverMessagesRequest) -> None:
            seen.extend(
                [recipient.account_id for recipient in delivery.recipients]
                for delivery in request.deliveries
            )

        for node in cluster.nodes.values():
            node.hooks["DeliverMessages"] = look
        result = await dispatcher.deliver(delivery_to(*accounts))
        assert all(recipient.message_id for recipient in result.recipients)
        assert seen.count([accounts[1]]) == 1


async def test_a_refused_recipient_keeps_its_own_answer() -> None:
    """OVER_QUOTA of one is no matter of the others, and is not retried."""
    async with fake_cluster(nodes=1, shards=1) as cluster, dispatching(cluster) as dispatcher:

        async def answer(_: Any) -> delivery_pb2.DeliverMessagesResponse:
            results = [
                delivery_pb2.RecipientResult(
                    code=8, reason=error_pb2.ERROR_REASON_OVER_QUOTA, message="full"
                ),
                delivery_pb2.RecipientResult(message_id="M1"),
            ]
            return delivery_pb2.DeliverMessagesResponse(
                results=[delivery_pb2.DeliveryResult(recipients=results)]
            )

        cluster.nodes[1].hooks["DeliverMessages"] = answer
        result = await dispatcher.deliver(delivery_to("full", "roomy"))
        assert result.recipients[0].reason == error_pb2.ERROR_REASON_OVER_QUOTA
        assert result.recipients[1].message_id == "M1"
        assert cluster.total("DeliverMessages") == 1


async def test_deliveries_with_other_levels_travel_apart() -> None:
    """WriteOptions are of the call."""
    async with fake_cluster(nodes=1, shards=1) as cluster, dispatching(cluster) as dispatcher:
        levels = [common_pb2.ACK_LEVEL_QUORUM, common_pb2.ACK_LEVEL_ALL] * 4
        await asyncio.gather(
            *(
                dispatcher.deliver(delivery_to(f"u{i}"), common_pb2.WriteOptions(ack=level))
                for i, level in enumerate(levels)
            )
        )
        assert sorted(cluster.nodes[1].deliveries_per_call) == [4, 4]


async def test_a_shard_in_trouble_does_not_hold_up_the_others() -> None:
    """After its first timeout it has calls of its own."""
    async with fake_cluster(nodes=1, shards=2) as cluster, dispatching(cluster) as dispatcher:
        stuck, fine = cluster.account_in(0), cluster.account_in(1)
        cluster.leaders = {0: 1, 1: 1}

        async def hang(request: delivery_pb2.DeliverMessagesRequest) -> None:
            accounts = [each.recipients[0].account_id for each in request.deliveries]
            if stuck in accounts:
                await asyncio.sleep(60)

        cluster.nodes[1].hooks["DeliverMessages"] = hang
        hanging = [
            asyncio.create_task(dispatcher.deliver(delivery_to(stuck), None, soon(4)))
            for _ in range(8)
        ]
        await asyncio.sleep(1.7)
        started = asyncio.get_running_loop().time()
        await dispatcher.deliver(delivery_to(fine))
        assert asyncio.get_running_loop().time() - started < 0.3
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)


async def test_concurrent_reads_travel_in_batches() -> None:
    """100 reads of all kinds of accounts: few calls, each its own reply or error."""
    async with fake_cluster(nodes=1, shards=4) as cluster, dispatching(cluster) as dispatcher:
        cluster.leaders = dict.fromkeys(range(4), 1)

        async def some_fail(request: message_service_pb2.GetMessageRequest) -> None:
            if request.message_id == "M7":
                raise errors.MessageNotFoundError("gone")

        cluster.nodes[1].hooks["GetMessage"] = some_fail
        reads = [
            message_service_pb2.GetMessageRequest(account_id=f"u{i}", message_id=f"M{i}")
            for i in range(100)
        ]
        outcomes: list[Any] = await asyncio.gather(
            *(dispatcher.unary(method("GetMessage"), read) for read in reads),
            return_exceptions=True,
        )
        assert isinstance(outcomes.pop(7), errors.MessageNotFoundError)
        assert [each.message.id for each in outcomes] == [f"M{i}" for i in range(100) if i != 7]
        assert cluster.total("Execute") + cluster.total("GetMessage") <= 4
        single = await dispatcher.ask(reads[0], message_service_pb2.GetMessageResponse)
        assert single.message.id == "M0"
        assert cluster.total("GetMessage") == 1


async def test_a_batch_of_a_caller_is_routed_item_by_item() -> None:
    """Execute: each item to its own node, with its own outcome, in order."""
    async with fake_cluster(shards=4) as cluster, dispatching(cluster) as dispatcher:
        items = [
            batch_pb2.BatchItem(
                get_message=message_service_pb2.GetMessageRequest(
                    account_id=cluster.account_in(0), message_id="M1"
                )
            ),
            batch_pb2.BatchItem(
                deliver_messages=delivery_pb2.DeliverMessagesRequest(
                    deliveries=[delivery_to(cluster.account_in(1))]
                )
            ),
            batch_pb2.BatchItem(),
        ]
        response: Any = await dispatcher.unary(
            method("Execute"), batch_pb2.ExecuteRequest(items=items)
        )
        assert response.results[0].get_message.message.id == "M1"
        assert response.results[1].deliver_messages.results[0].recipients[0].message_id
        error = errors.from_status(response.results[2].error)
        assert isinstance(error, errors.BadFieldError)


async def test_too_many_deliveries_are_refused() -> None:
    """256 a call."""
    async with fake_cluster() as cluster, dispatching(cluster) as dispatcher:
        request = delivery_pb2.DeliverMessagesRequest(
            deliveries=[delivery_to("u", request_id=uuid.uuid4().bytes)] * 257
        )
        with pytest.raises(errors.BadFieldError):
            await dispatcher.unary(method("DeliverMessages"), request)
        assert not cluster.total("DeliverMessages")


async def test_small_changes_travel_together() -> None:
    """100 changes of keywords at once: few calls, each its own answer; those that wait for replicas
    apart from those that do not; and one that may touch a whole mailbox, alone.
    """
    async with fake_cluster(nodes=1, shards=4) as cluster, dispatching(cluster) as dispatcher:
        cluster.leaders = dict.fromkeys(range(4), 1)

        async def some_fail(request: message_service_pb2.ModifyKeywordsRequest) -> None:
            if request.messages.ids.ids == ["M7"]:
                raise errors.MessageNotFoundError("gone")

        cluster.nodes[1].hooks["ModifyKeywords"] = some_fail
        outcomes = await asyncio.gather(
            *(_change(dispatcher, ids=[f"M{number}"]) for number in range(100)),
            *(_change(dispatcher, ids=["M1"], ack=common_pb2.ACK_LEVEL_ALL) for _ in range(4)),
            return_exceptions=True,
        )
        assert isinstance(outcomes.pop(7), errors.MessageNotFoundError)
        assert not any(isinstance(each, BaseException) for each in outcomes)
        assert cluster.total("ModifyKeywords") == 0
        assert 2 <= cluster.total("Execute") <= 6
        before = cluster.total("Execute")
        await asyncio.gather(
            _change(dispatcher, uids=(1, 9)),
            _change(dispatcher, uids=(1, 9)),
            _change(dispatcher, ids=[f"M{number}" for number in range(17)]),
        )
        assert cluster.total("ModifyKeywords") == 3
        assert cluster.total("Execute") == before


async def _change(
    dispatcher: Dispatcher,
    *,
    ids: list[str] | None = None,
    uids: tuple[int, int] | None = None,
    ack: common_pb2.AckLevel.ValueType = common_pb2.ACK_LEVEL_QUORUM,
) -> Message:
    request = message_service_pb2.ModifyKeywordsRequest(
        account_id="u1",
        request_id=uuid.uuid4().bytes,
        write_options=common_pb2.WriteOptions(ack=ack),
        add=["$seen"],
    )
    if ids is not None:
        request.messages.ids.ids.extend(ids)
    if uids is not None:
        request.messages.uid_set.ranges.extend(uids)
    return await dispatcher.unary(method("ModifyKeywords"), request)

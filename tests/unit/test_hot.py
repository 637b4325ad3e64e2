"""What the load is about: counted within bounds, told without the names of accounts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mailraft.internal.v1 import inspect_service_pb2 as pb
from mailraft.internal.v1 import inspect_service_pb2_grpc
from mailraft.node import hot, inspect
from mailraft.node.hot import INTERVAL_S, KEYS_MAX, HotMeter, parts
from mailraft.v1 import batch_pb2, delivery_pb2, message_service_pb2
from mailraft.wire.access import TABLE, Role
from mailraft.wire.credentials import Insecure, open_channel
from mailraft.wire.observed import ServedCall, pseudonym
from three_nodes import SHARD, Nodes, all_up

LIST = "MessageService/ListMessages"


class Clock:
    """One that is set."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """Set by the test."""
    return Clock()


@pytest.fixture
def meter(clock: Clock) -> HotMeter:
    """Every account is in the shard of its last digit."""
    return HotMeter(lambda account: int(account[-1]), clock)


def listing(account: str) -> ServedCall:
    """A call about one account."""
    return ServedCall(LIST, message_service_pb2.ListMessagesRequest(account_id=account))


def test_the_last_whole_interval_is_told(meter: HotMeter, clock: Clock) -> None:
    """Of the first one what there is; and nothing once nothing came for so long."""
    for account in ("a1", "a1", "b2"):
        meter.ended(listing(account))
    clock.now_s += 4
    first = meter.latest()
    assert (first.length_s, first.total) == (4, 3)
    clock.now_s += INTERVAL_S - 4
    meter.ended(listing("c3"))
    whole = meter.latest()
    assert whole.length_s == INTERVAL_S
    assert whole.accounts.counts == {"a1": 2, "b2": 1}
    assert whole.shards.counts == {"1": 2, "2": 1}
    assert whole.methods.counts == {LIST: 3}
    clock.now_s += INTERVAL_S
    assert meter.latest().accounts.counts == {"c3": 1}
    clock.now_s += 3 * INTERVAL_S
    assert meter.latest().total == 0


def test_what_is_hot_is_found_among_more_accounts_than_are_kept(meter: HotMeter) -> None:
    """With bounded memory."""
    for number in range(20 * KEYS_MAX):
        meter.ended(listing(f"rare-{number}"))
        if number % 10 == 0:
            meter.ended(listing("hot-1"))
    window = meter.latest()
    assert window.accounts.counts.most_common(1)[0][0] == "hot-1"
    assert len(window.accounts.counts) <= KEYS_MAX
    assert window.total == 22 * KEYS_MAX


def test_the_parts_of_large_calls_are_sampled_and_count_in_full() -> None:
    """Recipients of deliveries, and the reads of a batch."""
    deliveries = delivery_pb2.DeliverMessagesRequest()
    for number in range(250):
        deliveries.deliveries.add().recipients.add(account_id=f"a{number % 2}")
    told = list(parts("MessageService/DeliverMessages", deliveries))
    assert sum(count for _, _, count in told) == 250
    assert len(told) <= hot.PARTS_MAX
    batch = batch_pb2.ExecuteRequest()
    for _ in range(3):
        batch.items.add().get_message.account_id = "alice"
    assert (
        list(parts("BatchService/Execute", batch))
        == [("alice", "BatchService/Execute get_message", 1)] * 3
    )


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """Three nodes; alice has five messages."""
    async with all_up(tmp_path, messages=5) as found:
        yield found


@pytest.mark.timeout(60)
async def test_accounts_are_told_as_in_log_lines_unless_asked(nodes: Nodes) -> None:
    """Names are for operators, whose asking is audited."""
    leader = nodes.leader
    key = nodes.running[leader]._options.account_key
    async with open_channel(nodes.map.nodes[leader - 1].address, Insecure()) as channel:
        stub = inspect_service_pb2_grpc.InspectServiceStub(channel)
        told = (await stub.Hot(pb.HotRequest())).hottest
        named = (await stub.HotNamed(pb.HotNamedRequest())).hottest
    assert [each.name for each in told.accounts] == [pseudonym("alice", key)]
    assert b"alice" not in told.SerializeToString()
    assert [(each.name, each.count) for each in named.accounts] == [("alice", 6)]
    assert [each.name for each in told.shards] == [str(SHARD)]
    assert TABLE["/mailraft.internal.v1.InspectService/HotNamed"] == {Role.OPERATOR}


@pytest.mark.timeout(60)
async def test_a_node_measures_its_disk_and_its_peers(nodes: Nodes) -> None:
    """And leaves nothing behind; who does not answer is named."""
    await nodes.stop(3)
    async with open_channel(nodes.map.nodes[0].address, Insecure()) as channel:
        stub = inspect_service_pb2_grpc.InspectServiceStub(channel)
        told = await stub.Measure(pb.MeasureRequest(rounds=5))
    assert len(told.sync_us) == 5
    assert all(told.sync_us)
    assert {each.node_id: (len(each.round_trip_us), each.error) for each in told.peers} == {
        2: (5, ""),
        3: (0, "UNAVAILABLE"),
    }
    assert not (nodes.folder(1) / inspect.PROBE_FILE).exists()

"""Write levels above and below QUORUM: refused on arrival, met, not met, not known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.unit.test_consensus_reads import apply_with_reply, new_replica
from tests.unit.test_services_node import (
    ALICE,
    MAIL,
    Calls,
    FakeNode,
    FakeShard,
    delivery,
    item,
    refusal,
    request_id,
    running,
)

from mailraft.node.durability import Count, EachZone, Everyone, Need, Shortfall
from mailraft.node.interfaces import Peer, replica_id
from mailraft.node.shard import Leadership
from mailraft.v1 import common_pb2, delivery_pb2, error_pb2, message_service_pb2
from mailraft.wire import errors

REPLICAS = common_pb2.WriteOptions(ack=common_pb2.ACK_LEVEL_REPLICAS, replicas=3)
EACH_ZONE = common_pb2.WriteOptions(ack=common_pb2.ACK_LEVEL_EACH_ZONE)
ALL = common_pb2.WriteOptions(ack=common_pb2.ACK_LEVEL_ALL)
ACCEPTED = common_pb2.WriteOptions(ack=common_pb2.ACK_LEVEL_ACCEPTED)
YES, NO, UNKNOWN = (
    common_pb2.LEVEL_MET_YES,
    common_pb2.LEVEL_MET_NO,
    common_pb2.LEVEL_MET_UNKNOWN,
)
OTHERS = tuple(replica_id(node, 1) for node in (8, 9))
FAR = 1_000  # an index that is on disk already


each_level = pytest.mark.parametrize(
    "options", [REPLICAS, EACH_ZONE, ALL], ids=["replicas", "each_zone", "all"]
)

# ---- what a level needs


ZONES = {1: "a", 2: "a", 3: "b"}


@pytest.mark.parametrize(
    ("need", "there", "short"),
    [
        (Count(3), {1, 2, 3}, None),
        (Count(3), {1, 2}, Shortfall(3, 2)),
        (Count(1), {1}, Shortfall(2, 1)),  # never less than a majority
        (Everyone(), {1, 2, 3}, None),
        (Everyone(), {1, 2}, Shortfall(3, 2)),
        (EachZone(ZONES.__getitem__), {1, 3}, None),
        (EachZone(ZONES.__getitem__), {1, 2}, Shortfall(2, 1, ("b",))),
    ],
)
def test_what_a_level_needs(need: Need, there: set[int], short: Shortfall | None) -> None:
    """Of three voters in two zones."""
    assert need.shortfall(there, {1, 2, 3}) == short


@pytest.mark.parametrize("need", [Count(1), Everyone(), EachZone(str)])
def test_a_level_is_never_met_by_nobody(need: Need) -> None:
    """Where nobody leads no voter is known, and nothing follows from that."""
    assert need.shortfall((), ()) is not None


# ---- calls


@asynccontextmanager
async def three_voters() -> AsyncIterator[tuple[FakeNode, Calls, FakeShard]]:
    """ALICE's shard has two more voters, which have everything on disk, in zones a, a and b."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        shard = node.shard_of(ALICE)
        shard.others = dict.fromkeys(OTHERS, FAR)
        node.cluster.peers = lambda: [  # type: ignore[method-assign]
            Peer(7, "node-7", "", "a"),
            Peer(8, "node-8", "", "a"),
            Peer(9, "node-9", "", "b"),
        ]
        yield node, calls, shard


@each_level
async def test_a_level_is_refused_on_arrival(options: common_pb2.WriteOptions) -> None:
    """With node 9 out of contact none of them can be met: QUORUM_UNAVAILABLE, nothing written."""
    async with three_voters() as (node, calls, shard):
        shard.silent = {OTHERS[1]}
        rows = node.rows()
        error = await refusal(calls.append(ALICE, item(MAIL), write_options=options))
        assert isinstance(error.detail, error_pb2.QuorumUnavailable)
        zones = ["b"] if options == EACH_ZONE else []
        assert list(error.detail.missing_zones) == zones
        assert error.detail.reachable == error.detail.needed - 1
        request = delivery_pb2.DeliverMessagesRequest(
            deliveries=[delivery(MAIL, ALICE)], write_options=options
        )
        answer = (await calls.messages.DeliverMessages(request)).results[0].recipients[0]
        assert answer.reason == error_pb2.ERROR_REASON_QUORUM_UNAVAILABLE
        assert node.rows() == rows


@each_level
async def test_a_level_is_waited_for(options: common_pb2.WriteOptions) -> None:
    """Until node 9 has it on disk; writes at QUORUM pass meanwhile."""
    async with three_voters() as (_, calls, shard):
        shard.on_disk(OTHERS[1], 1)
        waiting = asyncio.ensure_future(calls.append(ALICE, item(MAIL), write_options=options))
        await asyncio.sleep(0.05)
        later = await calls.append(ALICE, item(MAIL))
        assert not waiting.done()
        assert shard.watched
        shard.on_disk(OTHERS[1], later.served.index - 1)
        served = (await waiting).served
        assert not shard.watched
        assert (served.level_met, served.ack_met, served.replicas) == (YES, options.ack, 3)
        assert served.committed


@each_level
async def test_a_level_that_is_not_met_in_time(options: common_pb2.WriteOptions) -> None:
    """The write stands, and the reply says that the level was not met."""
    async with three_voters() as (_, calls, shard):
        shard.on_disk(OTHERS[1], 1)
        request = delivery_pb2.AppendMessagesRequest(
            account_id=ALICE, request_id=request_id(), messages=[item(MAIL)], write_options=options
        )
        reply = await calls.messages.AppendMessages(request, timeout=0.3)
        served = reply.served
        assert (served.level_met, served.committed, served.replicas) == (NO, True, 2)
        assert (served.ack_asked, served.ack_met) == (options.ack, common_pb2.ACK_LEVEL_QUORUM)
        assert reply.messages[0].message_id
        shard.on_disk(OTHERS[1], FAR)
        again = await calls.messages.AppendMessages(request)
        assert again.served.level_met == YES
        assert again.messages == reply.messages


async def test_a_leader_that_is_deposed_cannot_tell() -> None:
    """It is committed; on how many disks, only the next leader hears."""
    async with three_voters() as (_, calls, shard):
        shard.on_disk(OTHERS[1], 1)
        waiting = asyncio.ensure_future(calls.append(ALICE, item(MAIL), write_options=ALL))
        await asyncio.sleep(0.05)
        shard.follow(OTHERS[0])
        served = (await waiting).served
        assert (served.level_met, served.committed) == (UNKNOWN, True)


async def test_replicas_has_to_be_told_how_many() -> None:
    """And with other levels it means nothing."""
    async with three_voters() as (_, calls, _):
        for ack, replicas in ((common_pb2.ACK_LEVEL_REPLICAS, 0), (common_pb2.ACK_LEVEL_ALL, 3)):
            options = common_pb2.WriteOptions(ack=ack, replicas=replicas)
            error = await refusal(calls.append(ALICE, item(MAIL), write_options=options))
            assert isinstance(error, errors.BadFieldError)


async def test_the_default_is_the_clusters() -> None:
    """And a request may ask for another."""
    async with three_voters() as (node, calls, shard):
        node.map.policy.default_ack = common_pb2.ACK_LEVEL_ALL
        served = (await calls.append(ALICE, item(MAIL))).served
        assert (served.ack_asked, served.ack_met) == (ALL.ack, ALL.ack)
        shard.silent = {OTHERS[1]}
        await refusal(calls.append(ALICE, item(MAIL)))
        quorum = common_pb2.WriteOptions(ack=common_pb2.ACK_LEVEL_QUORUM)
        assert (await calls.append(ALICE, item(MAIL), write_options=quorum)).served.committed


# ---- ACCEPTED


async def wait_committed(calls: Calls, request: bytes) -> message_service_pb2.WaitOutcome.ValueType:
    """What became of a request of ALICE."""
    asked = message_service_pb2.WaitCommittedRequest(account_id=ALICE, request_id=request)
    return (await calls.messages.WaitCommitted(asked)).outcome  # type: ignore[no-any-return]


async def test_accepted_has_to_be_allowed() -> None:
    """By the cluster's settings, which are against it at first."""
    async with three_voters() as (node, calls, _):
        rows = node.rows()
        error = await refusal(calls.append(ALICE, item(MAIL), write_options=ACCEPTED))
        assert isinstance(error, errors.LevelNotAllowedError)
        assert node.rows() == rows


async def test_accepted_says_nothing_that_may_be_lost() -> None:
    """No UID, no state, not even for a recipient; WaitCommitted tells what became of it."""
    async with three_voters() as (node, calls, _):
        node.map.policy.allow_accepted = True
        appended = await calls.append(ALICE, item(MAIL), write_options=ACCEPTED)
        assert not appended.state
        assert not appended.messages
        served = appended.served
        assert (served.committed, served.index, served.replicas) == (False, 0, 1)
        assert served.ack_met == ACCEPTED.ack
        sent = delivery(MAIL, ALICE)
        request = delivery_pb2.DeliverMessagesRequest(deliveries=[sent], write_options=ACCEPTED)
        result = (await calls.messages.DeliverMessages(request)).results[0].recipients[0]
        assert (result.code, result.message_id, result.state) == (0, "", "")
        assert result.served.ack_met == ACCEPTED.ack
        committed = message_service_pb2.WAIT_OUTCOME_COMMITTED
        assert await wait_committed(calls, sent.request_id) == committed
        lost = message_service_pb2.WAIT_OUTCOME_LOST
        assert await wait_committed(calls, request_id()) == lost


async def test_what_became_of_a_request_is_only_told_when_it_is_certain() -> None:
    """COMMIT_UNKNOWN at the deadline; REQUEST_ID_TOO_OLD where nobody remembers."""
    async with three_voters() as (_, calls, shard):
        asked = message_service_pb2.WaitCommittedRequest(account_id=ALICE, request_id=request_id(1))
        error = await refusal(calls.messages.WaitCommitted(asked))
        assert isinstance(error, errors.RequestIdTooOldError)
        shard.stalled = True
        asked.request_id = request_id()
        error = await refusal(calls.messages.WaitCommitted(asked, timeout=0.2))
        assert isinstance(error.detail, error_pb2.CommitUnknown)
        assert error.detail.request_id == asked.request_id


async def test_accepted_is_answered_when_it_is_on_this_disk() -> None:
    """Not before, and not only when it is committed; a lost leader cannot tell."""
    replica = new_replica()
    accepting = asyncio.create_task(replica.accept("command", deadline_s=time.monotonic() + 5))
    await asyncio.sleep(0)
    entry = replica.next_entry()
    assert entry is not None
    replica.placed(entry.token, 11, 1)
    assert replica.told_disks({7: 10, 8: 11})
    await asyncio.sleep(0)
    assert not accepting.done()
    assert not replica.told_disks({7: 11, 8: 10})
    await accepting
    apply_with_reply(replica, 11)
    lost = asyncio.create_task(replica.accept("command", deadline_s=time.monotonic() + 5))
    await asyncio.sleep(0)
    entry = replica.next_entry()
    assert entry is not None
    replica.placed(entry.token, 12, 1)
    replica.lead(Leadership(8, 2, leading=False))
    with pytest.raises(errors.CommitUnknownError):
        await lost

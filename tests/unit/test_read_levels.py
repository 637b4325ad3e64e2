"""Reads of the freshest among n replicas, and reads of a bounded age."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from tests.unit.test_consensus_reads import apply, apply_with_reply, new_replica
from tests.unit.test_services_levels import get_account
from tests.unit.test_services_node import (
    ALICE,
    MAIL,
    FakeShard,
    delivery,
    read_at,
    refusal,
    running,
)

from mailraft.node.quorum_reads import Position, covers, freshest
from mailraft.node.services import levels
from mailraft.node.shard import REFRESH_S, Leadership, Replica
from mailraft.v1 import common_pb2, error_pb2
from mailraft.wire import errors

QUORUM, BOUNDED, LOCAL = (
    common_pb2.CONSISTENCY_QUORUM,
    common_pb2.CONSISTENCY_BOUNDED,
    common_pb2.CONSISTENCY_LOCAL,
)
VOTERS = (1, 2, 3)
OTHERS = (8 << 32 | 1, 9 << 32 | 1)


# ---- the rule of QUORUM


def at(replica: int, applied: int, last: int, version: int = 1, **more: Any) -> Position:
    """A replica of three voters."""
    voters = VOTERS if version == 1 else (2, 3, 4)
    return dataclasses.replace(
        Position(replica, applied, last, version, voters),
        **more,
    )


@pytest.mark.parametrize(
    ("positions", "index", "proven"),
    [
        ([at(1, 5, 5), at(2, 4, 5)], 5, True),
        ([at(1, 5, 5), at(2, 5, 6)], 5, False),  # entry 6 may have been acknowledged
        ([at(1, 5, 5), at(2, 5, 6)], 6, True),  # ... and has been applied since
        ([at(1, 5, 5)], 5, False),  # no majority
        ([at(1, 5, 5), at(1, 5, 5)], 5, False),  # one voter, asked twice
        ([at(1, 5, 5), at(9, 5, 5)], 5, False),  # 9 is no voter
        ([at(1, 5, 5), at(2, 5, 5, amnesic=True)], 5, False),  # it may have forgotten
        ([at(2, 5, 5), at(3, 5, 5, version=2)], 5, False),  # other majorities count by now
        ([at(1, 5, 5), at(2, 5, 5), at(3, 5, 5)], 5, True),
    ],
    ids=str,
)
def test_when_a_read_is_complete(
    positions: Sequence[Position], index: int, *, proven: bool
) -> None:
    """Of three voters. Each case that is not proven lacks one part of the proof."""
    assert covers(positions, index) is proven


def test_the_freshest_has_applied_most() -> None:
    """However long another's log is."""
    assert freshest([at(1, 4, 9), at(2, 5, 5), at(3, 3, 9)]).replica == 2


# ---- QUORUM


def with_others(shard: FakeShard, **of_first: Any) -> None:
    """Two more voters, as far as this one, or the first of them as told."""
    shard.others = dict.fromkeys(OTHERS, 1)
    shard.positions = [shard.position(replica=other) for other in OTHERS]
    shard.positions[0] = dataclasses.replace(shard.positions[0], **of_first)


async def test_a_quorum_read_needs_no_leader() -> None:
    """It asks a majority, or as many as it is told, and says so."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        shard = node.shard_of(ALICE)
        with_others(shard)
        shard.follow(0)
        for asked, replicas in ((0, 2), (3, 3), (1, 1)):
            served = (await get_account(calls, ALICE, read_at(QUORUM, replicas=asked))).served
            assert served.consistency_met == QUORUM
            assert (served.replicas, served.complete) == (replicas, replicas > 1)


async def test_a_quorum_read_that_lacks_replicas_is_refused() -> None:
    """Never served from fewer than it was asked to."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        shard = node.shard_of(ALICE)
        with_others(shard)
        shard.positions = []
        error = await refusal(get_account(calls, ALICE, read_at(QUORUM)))
        assert isinstance(error.detail, error_pb2.QuorumUnavailable)
        assert (error.detail.needed, error.detail.reachable) == (2, 1)


async def test_a_quorum_read_waits_for_what_another_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A little; then it names the one to ask."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        shard = node.shard_of(ALICE)
        with_others(shard, applied_index=3, last_index=3)
        error = await refusal(get_account(calls, ALICE, read_at(QUORUM)))
        assert isinstance(error.detail, error_pb2.ReplicaLagging)
        assert error.detail.fresher_replica_id == OTHERS[0]
        monkeypatch.setattr(levels, "CATCH_UP_MS", 5_000)
        reading = asyncio.ensure_future(get_account(calls, ALICE, read_at(QUORUM)))
        await asyncio.sleep(0.05)
        await calls.deliver(delivery(MAIL, ALICE))
        served = (await reading).served
        assert (served.index, served.complete) == (3, True)


async def test_a_quorum_read_tells_when_it_may_lack_something() -> None:
    """Another's log ends behind what is applied: what is there may have been acknowledged."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        with_others(node.shard_of(ALICE), last_index=9)
        served = (await get_account(calls, ALICE, read_at(QUORUM))).served
        assert not served.complete


# ---- age and BOUNDED


class Clock:
    """A replica's, that is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, replica: Replica) -> None:
        self.now_s = 1_000.0
        monkeypatch.setattr(replica, "_now", lambda: self.now_s)


async def answer_read(replica: Replica, index: int) -> None:
    """The question that waits is answered with this index."""
    await asyncio.sleep(0)
    token = replica.next_read()
    assert token is not None
    replica.read_ready(token, index)


async def test_the_age_counts_from_when_a_quorum_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from when it answered, nor before what it told is applied; leading proves nothing."""
    replica = new_replica()
    clock = Clock(monkeypatch, replica)
    assert replica.age_ms() >= 2**31 * 1_000
    reading = asyncio.create_task(replica.read(BOUNDED, deadline_s=2_000, max_age_ms=500))
    await asyncio.sleep(0)
    token = replica.next_read()
    assert token is not None
    clock.now_s += 3
    replica.read_ready(token, 11)
    assert replica.age_ms() >= 2**31 * 1_000
    apply(replica, 11)
    assert (await reading).age_ms == 0  # when it began
    assert replica.age_ms() == 3_000


async def test_a_bounded_read_asks_only_when_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the bound it is served at once, and past half of it finds out for the next."""
    replica = new_replica(leader=8, leading=False)
    clock = Clock(monkeypatch, replica)
    first = asyncio.create_task(replica.read(BOUNDED, deadline_s=2_000, max_age_ms=1_000))
    await answer_read(replica, 10)
    await first
    clock.now_s += 0.375
    point = await replica.read(BOUNDED, deadline_s=2_000, max_age_ms=1_000)
    assert (point.age_ms, replica.next_read()) == (375, None)
    clock.now_s += 0.25
    assert (await replica.read(BOUNDED, deadline_s=2_000, max_age_ms=1_000)).age_ms == 625
    await answer_read(replica, 10)
    assert replica.age_ms() == 0


async def test_a_bounded_read_is_refused_when_nobody_can_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Past its bound and without a leader; within it, it is served until then."""
    replica = new_replica(leader=8, leading=False)
    clock = Clock(monkeypatch, replica)
    first = asyncio.create_task(replica.read(BOUNDED, deadline_s=2_000, max_age_ms=1_000))
    await answer_read(replica, 10)
    await first
    replica.lead(Leadership())
    clock.now_s += 1
    assert (await replica.read(BOUNDED, deadline_s=2_000, max_age_ms=1_000)).age_ms == 1_000
    clock.now_s += 0.0009765625
    with pytest.raises(errors.ReplicaLaggingError) as refused:
        await replica.read(BOUNDED, deadline_s=2_000, max_age_ms=1_000)
    assert isinstance(refused.value.detail, error_pb2.ReplicaLagging)
    assert refused.value.detail.age_ms == 1_001


async def test_a_local_read_finds_out_its_age_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """It never waits, and asks at most once in a while."""
    replica = new_replica(leader=8, leading=False)
    clock = Clock(monkeypatch, replica)
    assert (await replica.read(LOCAL, deadline_s=2_000)).age_ms >= 2**31 * 1_000
    await answer_read(replica, 10)
    assert (await replica.read(LOCAL, deadline_s=2_000)).age_ms == 0
    clock.now_s += REFRESH_S
    await replica.read(LOCAL, deadline_s=2_000)
    assert replica.next_read() is None
    clock.now_s += 0.1
    await replica.read(LOCAL, deadline_s=2_000)
    await replica.read(LOCAL, deadline_s=2_000)
    await answer_read(replica, 10)
    assert replica.next_read() is None


async def test_a_write_proves_its_leader_current(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of when it came; under load no leader has to ask how old it is."""
    replica = new_replica()
    clock = Clock(monkeypatch, replica)
    writing = asyncio.create_task(replica.propose("command", deadline_s=2_000))
    await asyncio.sleep(0)
    entry = replica.next_entry()
    assert entry is not None
    replica.placed(entry.token, 11, 1)
    clock.now_s += 2
    apply_with_reply(replica, 11)
    await writing
    assert replica.age_ms() == 2_000

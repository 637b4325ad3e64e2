"""Linearizable reads at a Replica: from the handler to the host's question, and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from dict_view import DictView
from mailraft.node.interfaces import Applied, Entry, EntryKind, Proposal, View
from mailraft.node.shard import Leadership, ReadPoint, Replica
from mailraft.v1 import common_pb2
from mailraft.wire import errors, feature_levels

LINEARIZABLE = common_pb2.CONSISTENCY_LINEARIZABLE


class Machine:
    """A StateMachine that changes nothing."""

    def apply(self, _view: View, _entry: Entry) -> Applied:
        return Applied(())

    def encode(self, commands: Sequence[Proposal]) -> tuple[bytes, tuple[bytes, ...]]:
        return b"", ()


class Standing:
    """Implements shard.Standing: alone, and nobody else is heard."""

    def leader_heard_s(self) -> float:
        return time.monotonic()

    def in_contact(self) -> frozenset[int]:
        return frozenset((7,))

    def durable(self) -> dict[int, int]:
        return {7: 10}

    def feature_level(self) -> int:
        return feature_levels.LEVEL

    def watch_disks(self) -> None:
        return


def new_replica(*, leader: int = 7, leading: bool = True) -> Replica:
    """Of replica 7, which leads unless told otherwise."""
    replica = Replica(
        1,
        7,
        Machine(),
        DictView(),
        applied_index=10,
        wake=lambda: None,
        now=time.monotonic,
        standing=Standing(),
    )
    replica.lead(Leadership(leader, 1, leading=leading))
    return replica


def begin_read(replica: Replica, *, within_s: float = 5.0) -> asyncio.Task[ReadPoint]:
    """A linearizable read under way."""
    deadline_s = time.monotonic() + within_s
    return asyncio.create_task(replica.read(LINEARIZABLE, deadline_s=deadline_s))


def apply(replica: Replica, index: int) -> None:
    """As the runtime does."""
    replica.applied(Entry(index, 1, EntryKind.COMMAND), Applied(()))


def apply_with_reply(replica: Replica, index: int) -> None:
    """As the runtime does, of an entry with one command."""
    replica.applied(Entry(index, 1, EntryKind.COMMAND), Applied((), ("reply",)))


async def test_reads_that_wait_share_one_question() -> None:
    """One token for all of them; what comes later gets another."""
    replica = new_replica()
    first = [begin_read(replica) for _ in range(3)]
    await asyncio.sleep(0)
    token = replica.next_read()
    assert token is not None
    assert replica.next_read() is None
    later = begin_read(replica)
    await asyncio.sleep(0)
    assert replica.next_read() == token + 1
    replica.read_ready(token, 10)
    assert {point.index for point in await asyncio.gather(*first)} == {10}
    assert not later.done()
    replica.read_ready(token + 1, 10)
    await later


async def test_a_read_waits_until_its_index_is_applied() -> None:
    """A view of before would lack what was acknowledged."""
    replica = new_replica()
    read = begin_read(replica)
    await asyncio.sleep(0)
    token = replica.next_read()
    assert token is not None
    replica.read_ready(token, 12)
    apply(replica, 11)
    await asyncio.sleep(0)
    assert not read.done()
    apply(replica, 12)
    assert (await read).index == 12


async def test_a_follower_serves_a_read_too() -> None:
    """The question goes to its leader; the view is its own."""
    replica = new_replica(leader=8, leading=False)
    read = begin_read(replica)
    await asyncio.sleep(0)
    token = replica.next_read()
    assert token is not None
    replica.read_ready(token, 10)
    assert (await read).index == 10


async def test_a_refusal_names_the_leader() -> None:
    """Leadership changed meanwhile: the caller asks there."""
    replica = new_replica()
    read = begin_read(replica)
    await asyncio.sleep(0)
    token = replica.next_read()
    assert token is not None
    replica.lead(Leadership(8, 2, leading=False))
    replica.read_refused(token)
    with pytest.raises(errors.NotLeaderError):
        await read


async def test_without_a_leader_a_read_is_refused_at_once() -> None:
    """There is nobody to ask."""
    with pytest.raises(errors.NoLeaderError):
        await begin_read(new_replica(leader=0, leading=False))


async def test_without_a_quorum_a_read_ends_at_its_deadline() -> None:
    """It never answers from what it has."""
    replica = new_replica()
    with pytest.raises(errors.QuorumUnavailableError):
        await begin_read(replica, within_s=0.02)


async def test_a_stopped_replica_answers_its_readers() -> None:
    """Wherever their reads are."""
    replica = new_replica()
    asked = begin_read(replica)
    await asyncio.sleep(0)
    assert replica.next_read() is not None
    waiting = begin_read(replica)
    await asyncio.sleep(0)
    replica.stop("shutting down")
    for read in (asked, waiting):
        with pytest.raises(errors.ShuttingDownError):
            await read

"""Row 13: heartbeats, votes and acknowledgements never wait behind bodies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from mailraft.client import AsyncClient
from mailraft.internal.v1 import raft_pb2
from mailraft.node import peers
from mailraft.node.consensus.frames import Frames, is_bulk
from mailraft.node.consensus.settings import Settings
from three_nodes import SHARD, Nodes, until

LARGE_BYTES = 2 * 1024 * 1024  # more than HTTP/2 lets a sender be ahead of its reader
ELECTION_S = Settings().election_timeout_max_s


@pytest.fixture
async def stuck(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Nodes that read no more of what carries appends, from the next such frame on."""
    found: set[int] = set()
    exchange = peers.PeerService.Exchange

    async def reluctant(service: Any, frames: Any, context: Any) -> Any:
        async def some() -> AsyncIterator[raft_pb2.ExchangeRequest]:
            async for frame in frames:
                while is_bulk(frame) and service._view.node in found:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                yield frame

        return await exchange(service, some(), context)

    monkeypatch.setattr(peers.PeerService, "Exchange", reluctant)
    return found


@pytest.fixture
async def nodes(tmp_path: Path, stuck: set[int]) -> AsyncIterator[Nodes]:
    """All three are up, and one leads."""
    found = Nodes(tmp_path)
    for number in (1, 2, 3):
        await found.start(number)
    await until(lambda: found.leader != 0)
    yield found
    stuck.clear()
    for number in list(found.running):
        await found.stop(number)


def term(nodes: Nodes, number: int) -> int:
    """Of the shard, as a node knows it."""
    return next(iter(nodes.running[number].replicas())).leadership.term


def queued_bytes(nodes: Nodes, sender: int, receiver: int) -> int:
    """Appends that a node has for another, and cannot send."""
    return _link(nodes, sender, receiver)._bulk._queue_bytes


async def deliver_large(mail: AsyncClient, count: int) -> list[asyncio.Task[object]]:
    """Begin to deliver what does not compress."""
    noise = random.Random(13)
    return [
        asyncio.create_task(
            mail.deliver(b"Subject: large\r\n\r\n" + noise.randbytes(LARGE_BYTES), to=["alice"])
        )
        for _ in range(count)
    ]


@pytest.mark.timeout(90)
async def test_a_stuck_bulk_stream_causes_no_election(nodes: Nodes, stuck: set[int]) -> None:
    """Both followers stop reading appends until flow control stops the leader: for several election
    timeouts nothing can be committed, and it leads on in its term. Then they read on, and it is.
    """
    leader, first_term = nodes.leader, term(nodes, nodes.leader)
    followers = [number for number in (1, 2, 3) if number != leader]
    async with nodes.client() as mail:
        await mail.create_account("alice")
        await until(nodes.alike)
        applied = nodes.applied(leader)[0]
        stuck.update(followers)
        deliveries = await deliver_large(mail, 4)
        await until(lambda: all(queued_bytes(nodes, leader, number) for number in followers))
        await asyncio.sleep(5 * ELECTION_S)
        assert nodes.leader == leader
        assert {term(nodes, number) for number in (1, 2, 3)} == {first_term}
        for number in followers:
            replica = next(iter(nodes.running[number].replicas()))
            assert replica.heard_age_ms() < ELECTION_S * 1000, "it hears its leader all along"
        assert nodes.applied(leader)[0] == applied, "nothing can be committed meanwhile"
        stuck.clear()
        await asyncio.gather(*deliveries)
    await until(nodes.alike)
    assert term(nodes, leader) == first_term


@pytest.mark.timeout(60)
async def test_a_stuck_bulk_stream_delays_no_news_of_a_leader(
    nodes: Nodes, stuck: set[int]
) -> None:
    """Leadership is handed over while appends to the third node are stuck, those of the new leader
    too: the third takes part in the election, and follows who was elected.
    """
    leader = nodes.leader
    target, third = [number for number in (1, 2, 3) if number != leader]
    async with nodes.client() as mail:
        await mail.create_account("alice")
        await until(nodes.alike)
        stuck.add(third)
        await asyncio.gather(*await deliver_large(mail, 4))
        await until(lambda: queued_bytes(nodes, leader, third) > 0)
        node = nodes.running[leader]
        assert node._runtime is not None
        replica = next(iter(nodes.running[target].replicas())).replica
        assert await node._runtime.transfer(SHARD, replica, deadline_s=node.now_s() + ELECTION_S)
        follower = next(iter(nodes.running[third].replicas()))
        await until(lambda: nodes.leader == target)
        await until(lambda: follower.leadership.leader == replica, 2 * ELECTION_S)
        assert term(nodes, third) == term(nodes, target)
        await asyncio.sleep(2 * ELECTION_S)
        assert follower.heard_age_ms() < ELECTION_S * 1000
        assert follower.leadership.leader == replica


@pytest.mark.timeout(60)
async def test_a_node_that_is_back_is_spoken_to_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own streams say that it is there: nobody waits until it is time to try again."""
    monkeypatch.setattr(peers, "RECONNECT_MIN_S", 300.0)
    nodes = Nodes(tmp_path)
    try:
        await nodes.start(1)
        await asyncio.sleep(1.0)  # it has tried in vain, and waits
        await nodes.start(2)
        await until(lambda: all(_link(nodes, *pair)._up for pair in ((1, 2), (2, 1))))
    finally:
        for number in list(nodes.running):
            await nodes.stop(number)


def _link(nodes: Nodes, sender: int, receiver: int) -> peers.PeerLink:
    streams = nodes.running[sender]._streams
    assert streams is not None
    return streams._links[receiver]


def _envelope(**body: Any) -> raft_pb2.Envelope:
    return raft_pb2.Envelope(group=SHARD, to_replica=2 << 32, **body)


def test_no_frame_holds_both_kinds() -> None:
    """Appends and the rest come in frames of their own, each in the order they were added."""
    frames = Frames()
    append: Callable[[int], raft_pb2.AppendEntries] = lambda at: raft_pb2.AppendEntries(  # noqa: E731
        prev_log_index=at
    )
    frames.add(2, _envelope(append_entries=append(1)))
    frames.add(2, _envelope(append_reply=raft_pb2.AppendReply(success=True)))
    frames.add(2, _envelope(append_entries=append(2)))
    frames.open(2).heartbeat.sequence = 7
    bulk = [frame for _, frame in frames.done if is_bulk(frame)]
    control = [frame for _, frame in frames.done if not is_bulk(frame)]
    assert [[e.append_entries.prev_log_index for e in frame.envelopes] for frame in bulk] == [
        [1, 2]
    ]
    assert [(len(frame.envelopes), frame.heartbeat.sequence) for frame in control] == [(1, 7)]


def test_each_queue_is_bounded() -> None:
    """A peer that takes nothing costs this node no more than the bounds of its two queues."""
    lane = peers._Lane(1_000)
    frame = raft_pb2.ExchangeRequest(envelopes=[_envelope(term_notice=raft_pb2.TermNotice())])
    for _ in range(1_000):
        lane.put(frame)
    assert 1_000 - frame.ByteSize() < lane._queue_bytes <= 1_000

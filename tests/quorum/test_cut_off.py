"""Cells where a node has clients and no peers, or does not hear its leader: partitions, lagging."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.faults.network import ProxiedCluster, both_ways
from tests.quorum.cells import (
    ACCEPTED,
    ALICE,
    BOUND_MS,
    BOUNDED,
    LINEARIZABLE,
    LOCAL,
    MAIL,
    NO_COMMIT,
    NO_QUORUM,
    OF_ALL,
    OF_MAJORITY,
    OF_ONE,
    QUORUM,
    REFUSED_WITHIN_S,
    SESSION,
    STRONGER,
    at,
    committed,
    connected,
    count,
    leader_and_others,
    only_at,
    read,
    refused,
    short,
    write,
)

from mailraft.client import AsyncClient, Consistency, LevelNotMetError, errors

pytestmark = pytest.mark.timeout(120)

ELECTED_S = 2.0
TIGHT_MS = 500
TIGHT: Any = {"consistency": Consistency.BOUNDED, "max_staleness_ms": TIGHT_MS}


@pytest.fixture
async def mail(proxied: ProxiedCluster) -> AsyncIterator[AsyncClient]:
    """A client of `proxied`, with an account that has a message; ACCEPTED is allowed."""
    async with connected(proxied) as client:
        yield client


async def not_met(mail: AsyncClient, args: Any) -> None:
    """Committed or not, the level is not said to be met."""
    await refused(write(mail, **short(args)), errors.QuorumUnavailableError, LevelNotMetError)


async def caught_up(mail: AsyncClient, node: int) -> None:
    """The replica of this node serves reads that promise everything."""
    newest = await count(mail, LINEARIZABLE)
    async with asyncio.timeout(10):
        while True:
            try:
                assert await count(mail, at(node, LINEARIZABLE)) >= newest
            except (*NO_QUORUM, errors.NotLeaderError, errors.DeadlineExceededError):
                await asyncio.sleep(0.1)
            else:
                return


async def test_a_leader_that_is_cut_off(proxied: ProxiedCluster, mail: AsyncClient) -> None:
    """On its side what needs a quorum is refused, and the rest tells how old it is; on the other
    side everything goes on that can do without one replica.
    """
    leader, others = await leader_and_others(proxied)
    seen = (await mail.list_messages(ALICE, "INBOX", **at(leader, BOUNDED))).state
    async with only_at(proxied, leader) as isolated:
        await isolated.list_messages(ALICE, "INBOX", **LOCAL)  # it is connected
        await proxied.network.cut(both_ways([leader], others))
        cut_s = time.monotonic()
        for args in QUORUM:
            await committed(mail, args)
        for args in STRONGER:
            await not_met(mail, args)
        assert time.monotonic() - cut_s < ELECTED_S + len(STRONGER) * REFUSED_WITHIN_S
        for args in (LINEARIZABLE, OF_ONE, OF_MAJORITY, SESSION, BOUNDED, LOCAL):
            await read(mail, args)

        for args in (*QUORUM, *STRONGER, ACCEPTED):
            await refused(write(isolated, **short(args)), *NO_COMMIT)
        await refused(read(mail, at(leader, LINEARIZABLE)), *NO_QUORUM)
        for args in (OF_MAJORITY, OF_ALL):
            await refused(read(mail, at(leader, args)), errors.QuorumUnavailableError)
        newest = mail.session.state_of(ALICE)
        await refused(
            read(mail, {**at(leader, SESSION), "min_state": newest}), errors.ReplicaLaggingError
        )
        await read(mail, {**at(leader, SESSION), "min_state": seen})
        assert not (await read(mail, at(leader, OF_ONE))).complete
        await asyncio.sleep(max(0.0, cut_s + BOUND_MS / 1000 - time.monotonic()))
        await refused(read(mail, at(leader, BOUNDED)), errors.ReplicaLaggingError)
        cut_ms = (time.monotonic() - cut_s) * 1000
        assert (await read(mail, at(leader, LOCAL))).age_ms >= cut_ms - TIGHT_MS
    await proxied.network.heal()
    await caught_up(mail, leader)
    for args in STRONGER:
        await committed(mail, args)


async def test_an_accepted_write_that_is_lost(proxied: ProxiedCluster, mail: AsyncClient) -> None:
    """Accepted by a leader that had lost its quorum: gone, and WaitCommitted tells. Once it has
    noticed, it accepts nothing more.
    """
    leader, others = await leader_and_others(proxied)
    async with only_at(proxied, leader) as isolated:
        await isolated.list_messages(ALICE, "INBOX", **LOCAL)  # it is connected
        before = await count(mail, LINEARIZABLE)
        await proxied.network.cut(both_ways([leader], others))
        receipt = await isolated.deliver(MAIL, to=[ALICE], **ACCEPTED)
        assert not receipt.recipients[0].served.committed
        await refused(write(isolated, ack=QUORUM[0]["ack"]), *NO_COMMIT)  # it has noticed
        await refused(write(isolated, **ACCEPTED), *NO_COMMIT)
        await committed(mail, QUORUM[0])
        await proxied.network.heal()
        assert not await mail.wait_committed(ALICE, receipt.request_id)
        assert await count(mail, LINEARIZABLE) == before + 1


async def test_a_follower_that_lags(proxied: ProxiedCluster, mail: AsyncClient) -> None:
    """It hears the other follower, not the leader: it shows no level what that may not see, and
    says why; a QUORUM read finds out that the other is further.
    """
    leader, (lagging, other) = await leader_and_others(proxied)
    await caught_up(mail, lagging)
    before = await count(mail, LINEARIZABLE)
    await proxied.network.cut(both_ways([leader], [lagging]))
    cut_s = time.monotonic()
    for args in QUORUM:
        await committed(mail, args)
    for args in STRONGER:
        await not_met(mail, args)
    for args in (LINEARIZABLE, OF_ONE, OF_MAJORITY, SESSION, BOUNDED, LOCAL):
        await read(mail, args)
        await read(mail, at(other, args))

    assert await count(mail, at(lagging, LOCAL)) == before
    assert await count(mail, at(lagging, OF_ONE)) == before
    await refused(read(mail, at(lagging, SESSION)), errors.ReplicaLaggingError)
    await refused(read(mail, at(lagging, LINEARIZABLE)), *NO_QUORUM)
    await refused(read(mail, at(lagging, OF_MAJORITY)), errors.ReplicaLaggingError)
    await refused(read(mail, at(lagging, OF_ALL)), errors.QuorumUnavailableError)
    await asyncio.sleep(max(0.0, cut_s + BOUND_MS / 1000 - time.monotonic()))
    await refused(read(mail, at(lagging, BOUNDED)), errors.ReplicaLaggingError)
    assert (await read(mail, at(lagging, LOCAL))).age_ms >= BOUND_MS
    await proxied.network.heal()
    await caught_up(mail, lagging)
    for args in (SESSION, OF_MAJORITY, OF_ALL, BOUNDED):
        await read(mail, at(lagging, args))


async def test_bounded_while_a_follower_is_cut_off(
    proxied: ProxiedCluster, mail: AsyncClient
) -> None:
    """BOUNDED(500 ms) there: nothing older is ever shown, it is refused once that cannot be known,
    and goes on when the network does. The rest of the shard writes all the time.
    """
    leader, (cut_off, other) = await leader_and_others(proxied)
    acknowledged: list[tuple[float, int]] = []  # when, how many messages there were then

    async def keep_writing() -> None:
        while True:
            await write(mail)
            acknowledged.append((time.monotonic(), len(acknowledged) + 1))

    before = await count(mail, LINEARIZABLE)
    answered: list[float] = []
    refusals: list[float] = []

    async def read_for(duration_s: float) -> None:
        end_s = time.monotonic() + duration_s
        while (began_s := time.monotonic()) < end_s:
            try:
                page = await mail.list_messages(ALICE, "INBOX", page_size=1, **at(cut_off, TIGHT))
            except errors.ReplicaLaggingError:
                refusals.append(time.monotonic())
                continue
            answered.append(began_s)
            assert page.served.age_ms <= TIGHT_MS
            due_s = began_s - TIGHT_MS / 1000
            due = max((total for at_s, total in acknowledged if at_s < due_s), default=0)
            assert page.total_messages >= before + due, "older than its bound"

    writing = asyncio.create_task(keep_writing())
    try:
        await read_for(1.5)
        assert answered
        assert not refusals
        await proxied.network.cut(both_ways([cut_off], [leader, other]))
        cut_s = time.monotonic()
        await read_for(4.0)
        assert max(answered) < cut_s + TIGHT_MS / 1000 + 0.1, "it cannot know that any more"
        assert refusals[0] - cut_s < REFUSED_WITHIN_S + TIGHT_MS / 1000 + 0.5
        await proxied.network.heal()
        await caught_up(mail, cut_off)
        healed_s = time.monotonic()
        await read_for(1.0)
        assert max(answered) > healed_s
    finally:
        writing.cancel()
        await asyncio.wait([writing])
    assert len(acknowledged) > 50

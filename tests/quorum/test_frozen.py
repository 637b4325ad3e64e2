"""Cells where the leader is stopped and continued, so that it believes to lead until it hears
otherwise; and reads while there is no leader, or no majority.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from tests.quorum.cells import (
    ACCEPTED,
    ALICE,
    BOUNDED,
    LINEARIZABLE,
    LOCAL,
    NO_COMMIT,
    NO_QUORUM,
    OF_MAJORITY,
    OF_ONE,
    QUORUM,
    SESSION,
    SHARD,
    STRONGER,
    at,
    committed,
    count,
    leader_and_others,
    only_at,
    read,
    refused,
    short,
    until_met,
    write,
)
from tests.quorum.level_faults import frozen

from mailraft.client import AsyncClient, Consistency, LevelNotMetError, errors
from mailraft.cluster.local import LocalCluster

pytestmark = pytest.mark.timeout(120)

ROUNDS = 3
READS = 8  # of each level, from the moment at which it goes on
TIGHT: Any = {"consistency": Consistency.BOUNDED, "max_staleness_ms": 500}
SERVED_WITHIN_S = 1.5
MAJORITY_DOWN_READS_MIN = 10


async def test_a_leader_that_is_stopped_and_continued(
    cluster: LocalCluster, mail: AsyncClient
) -> None:
    """While it is stopped, the others do what can be done without it. When it goes on, it shows no
    level what that may not see, and takes no write as a leader.
    """
    for _ in range(ROUNDS):
        leader, _ = await leader_and_others(cluster)
        async with only_at(cluster, leader) as awakened:
            await read(awakened, LOCAL)  # it is connected
            with frozen(cluster.pid_of(leader)):
                for args in QUORUM:
                    await committed(mail, args)
                for args in STRONGER:
                    await refused(write(mail, **short(args)), *NO_COMMIT, LevelNotMetError)
                for args in (LINEARIZABLE, OF_ONE, OF_MAJORITY, SESSION, BOUNDED, LOCAL):
                    await read(mail, args)
                newest = await count(mail, LINEARIZABLE)
                await asyncio.sleep(TIGHT["max_staleness_ms"] / 1000)
            await awakened_shows(mail, leader, newest)
            stale = [awakened_takes(awakened, args) for args in (*QUORUM, ACCEPTED)]
            await asyncio.gather(*stale)
        await cluster.wait_ready()
        for args in STRONGER:
            await until_met(mail, args)


async def awakened_shows(mail: AsyncClient, node: int, newest: int) -> None:
    """Everything, or nothing, at each level that may not see less."""

    async def shows(args: Any) -> None:
        for _ in range(READS):
            try:
                shown = await count(mail, at(node, args))
            except (*NO_QUORUM, errors.NotLeaderError, errors.ReplicaLaggingError):
                continue
            assert shown >= newest, f"{args} shows {shown} of {newest}"

    await asyncio.gather(*(shows(args) for args in (LINEARIZABLE, SESSION, TIGHT)))


async def awakened_takes(awakened: AsyncClient, args: Any) -> None:
    """It is no leader any more: it sends on to who is, or refuses."""
    try:
        receipt = await awakened.deliver(b"late", to=[ALICE], **short(args))
    except (*NO_COMMIT, errors.NotLeaderError):
        return
    assert await awakened.wait_committed(ALICE, receipt.request_id) or args is ACCEPTED


async def test_reads_through_an_election(cluster: LocalCluster, mail: AsyncClient) -> None:
    """QUORUM(2) needs no leader: served all the time between two, and so are SESSION and LOCAL."""
    two: Any = {**OF_MAJORITY, "replicas": 2}
    for _ in range(ROUNDS):
        leader, _ = await leader_and_others(cluster)
        for args in (two, SESSION, LOCAL):
            await read(mail, args)
        cluster.kill(leader)
        served = 0
        while await cluster.leader_of(SHARD) is None:
            for args in (two, SESSION, LOCAL):
                began_s = time.monotonic()
                await read(mail, args)
                assert time.monotonic() - began_s < SERVED_WITHIN_S
            served += 1
        assert served, "there was no time without a leader"
        cluster.start(leader)
        await cluster.wait_ready()


async def test_reads_with_a_majority_down(cluster: LocalCluster, mail: AsyncClient) -> None:
    """LOCAL and SESSION go on at the last replica, each with the newest that it had."""
    leader, others = await leader_and_others(cluster)
    newest = (await write(mail)).served.index
    await read(mail, at(others[1], SESSION))  # it has that, too
    cluster.kill(leader)
    cluster.kill(others[0])
    end_s, reads = time.monotonic() + 4.0, 0
    while time.monotonic() < end_s:
        for args in (LOCAL, SESSION):
            assert (await read(mail, args)).index >= newest
        reads += 1
    assert reads >= MAJORITY_DOWN_READS_MIN

"""Each cell of the consistency menu on real processes: all up, one of three down, two down."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
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
    SESSION,
    SHARD,
    STRONGER,
    at,
    committed,
    count,
    read,
    refused,
    short,
    write,
)

from mailraft.client import Ack, AsyncClient, Consistency, LevelNotMetError, errors
from mailraft.cluster.local import LocalCluster
from mailraft.v1 import common_pb2

pytestmark = pytest.mark.timeout(120)


async def kill(cluster: LocalCluster, *, followers: int) -> None:
    """So many of those that do not lead."""
    leader = await cluster.leader_of(SHARD)
    for node in [each for each in cluster.nodes if each != leader][:followers]:
        cluster.kill(node)


# ---- all up


async def test_every_level_is_met_when_all_are_up(cluster: LocalCluster, mail: AsyncClient) -> None:
    """And every reply says so."""
    for args in (*QUORUM, *STRONGER):
        served = await committed(mail, args)
        assert served.replicas == 3 or args in QUORUM
    receipt = await mail.deliver(MAIL, to=[ALICE], **ACCEPTED)
    served = receipt.recipients[0].served
    assert served.ack_met == Ack.ACCEPTED.value
    assert not served.committed
    assert not receipt.recipients[0].message_id
    assert await mail.wait_committed(ALICE, receipt.request_id)
    assert (await read(mail, LINEARIZABLE)).age_ms == 0
    for args, replicas in ((OF_ONE, 1), (OF_MAJORITY, 2), (OF_ALL, 3)):
        assert (await read(mail, args)).replicas == replicas
    await asyncio.sleep(0.5)  # nothing is written, so that all have applied all
    assert (await read(mail, OF_MAJORITY)).complete
    await read(mail, SESSION)
    assert (await read(mail, BOUNDED)).age_ms <= BOUND_MS
    there = at(cluster.nodes[0], LOCAL)
    await read(mail, there)
    await asyncio.sleep(0.2)
    assert (await read(mail, there)).age_ms < 2_000, "it found out meanwhile"


@pytest.mark.usefixtures("mail")
async def test_defaults_are_the_clients(cluster: LocalCluster) -> None:
    """Where a call says nothing; and it may say something else."""
    async with AsyncClient(
        cluster.router_address,
        certs=cluster.certs_folder,
        reads={"consistency": Consistency.BOUNDED, "max_staleness_ms": BOUND_MS},
        writes={"ack": Ack.ALL},
    ) as other:
        page = await other.list_messages(ALICE, "INBOX")
        assert page.served.consistency_met == Consistency.BOUNDED.value
        assert (await write(other)).served.ack_met == Ack.ALL.value
        assert (await write(other, ack=Ack.QUORUM)).served.ack_met == Ack.QUORUM.value
        await read(other, LOCAL)


# ---- one of three down


async def test_with_one_down(cluster: LocalCluster, mail: AsyncClient) -> None:
    """All but what needs it goes on; what needs it is refused, and nothing is written."""
    await kill(cluster, followers=1)
    for args in QUORUM:
        await committed(mail, args)
    receipt = await mail.deliver(MAIL, to=[ALICE], **ACCEPTED)
    assert await mail.wait_committed(ALICE, receipt.request_id)
    before = await count(mail, LINEARIZABLE)
    for args in STRONGER:
        await refused(write(mail, **short(args)), errors.QuorumUnavailableError)
    assert await count(mail, LINEARIZABLE) == before
    for args in (OF_ONE, OF_MAJORITY, SESSION, BOUNDED, LOCAL):
        await read(mail, args)
    await refused(read(mail, short(OF_ALL)), errors.QuorumUnavailableError)


async def test_with_the_leader_down(cluster: LocalCluster, mail: AsyncClient) -> None:
    """Reads that need none are served before there is another, writes once there is."""
    leader = await cluster.leader_of(SHARD)
    assert leader is not None
    await write(mail)
    await read(mail, OF_MAJORITY)
    cluster.kill(leader)
    for args in (OF_MAJORITY, SESSION, LOCAL):
        began_s = time.monotonic()
        await read(mail, args)
        assert time.monotonic() - began_s < 1.5
    assert (await write(mail)).served.committed
    await read(mail, LINEARIZABLE)


async def test_a_replica_that_is_lost_after_arrival(
    cluster: LocalCluster, mail: AsyncClient
) -> None:
    """The write is committed, and the client is told so, with the receipt."""
    leader = await cluster.leader_of(SHARD)
    silent = next(node for node in cluster.nodes if node != leader)
    for _ in range(5):
        os.kill(cluster.pid_of(silent), signal.SIGSTOP)
        try:
            with pytest.raises((LevelNotMetError, errors.QuorumUnavailableError)) as raised:
                await write(mail, ack=Ack.ALL, deadline_s=1.5)
        finally:
            os.kill(cluster.pid_of(silent), signal.SIGCONT)
        if isinstance(raised.value, LevelNotMetError):
            [receipt] = raised.value.result.recipients
            assert receipt.message_id
            served = receipt.served
            assert (served.level_met, served.committed) == (common_pb2.LEVEL_MET_NO, True)
            assert (served.ack_met, served.replicas) == (Ack.QUORUM.value, 2)
            assert (await write(mail, ack=Ack.ALL)).level_met
            return
        await write(mail, ack=Ack.ALL)  # once it is heard again
    pytest.fail("the leader never believed the replica to be there")


# ---- two of three down


async def test_with_two_down(cluster: LocalCluster, mail: AsyncClient) -> None:
    """What needs a quorum is refused in time, with its reason; what does not goes on."""
    await write(mail)
    await read(mail, BOUNDED)
    bounded_since_s = time.monotonic()
    await kill(cluster, followers=2)
    await asyncio.sleep(1.0)
    assert (await read(mail, LOCAL)).age_ms >= 500
    await read(mail, SESSION)
    assert not (await read(mail, OF_ONE)).complete
    assert (await read(mail, BOUNDED)).age_ms <= BOUND_MS
    for args in (*QUORUM, *STRONGER, ACCEPTED):
        await refused(write(mail, **short(args)), *NO_COMMIT)
    for level in (LINEARIZABLE, OF_MAJORITY, OF_ALL):
        await refused(read(mail, short(level)), *NO_QUORUM)
    await asyncio.sleep(max(0.0, bounded_since_s + BOUND_MS / 1000 + 0.5 - time.monotonic()))
    await refused(read(mail, short(BOUNDED)), *NO_QUORUM, errors.ReplicaLaggingError)
    served = await read(mail, LOCAL)
    assert served.age_ms >= BOUND_MS

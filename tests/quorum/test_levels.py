"""Each cell of the consistency menu on real processes: all up, one of three down, two down."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mailraft.client import Ack, AsyncClient, Consistency, LevelNotMetError, errors
from mailraft.client.results import RecipientReceipt
from mailraft.cluster.local import LocalCluster
from mailraft.cluster.operator import Operator
from mailraft.v1 import admin_pb2, common_pb2

pytestmark = pytest.mark.timeout(120)

SHARD = 1
MAIL = b"Subject: hello\r\n\r\nHello\r\n"
DEADLINE_S = 5.0  # of a call that is to succeed
REFUSED_WITHIN_S = 2.0
BOUND_MS = 3_000

STRONGER: tuple[Any, ...] = (
    {"ack": Ack.REPLICAS, "replicas": 3},
    {"ack": Ack.EACH_ZONE},  # each node is a zone of its own
    {"ack": Ack.ALL},
)
QUORUM: tuple[Any, ...] = ({"ack": Ack.QUORUM}, {"ack": Ack.REPLICAS, "replicas": 2})
ACCEPTED: Any = {"ack": Ack.ACCEPTED}

LINEARIZABLE: Any = {"consistency": Consistency.LINEARIZABLE}
OF_ONE: Any = {"consistency": Consistency.QUORUM, "replicas": 1}
OF_MAJORITY: Any = {"consistency": Consistency.QUORUM}
OF_ALL: Any = {"consistency": Consistency.QUORUM, "replicas": 3}
SESSION: Any = {"consistency": Consistency.SESSION}
BOUNDED: Any = {"consistency": Consistency.BOUNDED, "max_staleness_ms": BOUND_MS}
LOCAL: Any = {"consistency": Consistency.LOCAL}


@pytest.fixture
async def mail(cluster: LocalCluster) -> AsyncIterator[AsyncClient]:
    """A client of `cluster`, with an account that has a message; ACCEPTED is allowed."""
    async with Operator(cluster.router_address, cluster.credentials()) as operator:
        wanted = admin_pb2.Settings(allow_accepted=True)
        await operator.change_settings(wanted, ["allow_accepted"])
    async with cluster.client(deadline_s=DEADLINE_S) as connected:
        await connected.create_account("alice")
        await until_accepted(connected)
        yield connected


async def until_accepted(mail: AsyncClient) -> None:
    """The setting has reached the leader."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await write(mail, **ACCEPTED)
            except errors.LevelNotAllowedError:
                await asyncio.sleep(0.05)
            else:
                return


async def write(mail: AsyncClient, **args: Any) -> RecipientReceipt:
    """One delivery."""
    return (await mail.deliver(MAIL, to=["alice"], **args)).recipients[0]


async def read(mail: AsyncClient, args: Any) -> common_pb2.Served:
    """One page, and how it was served."""
    served = (await mail.list_messages("alice", "INBOX", **args)).served
    assert served.consistency_asked == served.consistency_met == args["consistency"]
    return served


async def refused(call: Any, *reasons: type[errors.MailraftError]) -> errors.MailraftError:
    """For one of these reasons, and before the deadline of the call."""
    began_s = time.monotonic()
    with pytest.raises(reasons) as error:
        await call
    assert time.monotonic() - began_s < REFUSED_WITHIN_S + 0.5
    return error.value


async def kill(cluster: LocalCluster, *, followers: int) -> None:
    """So many of those that do not lead."""
    leader = await cluster.leader_of(SHARD)
    for node in [each for each in cluster.nodes if each != leader][:followers]:
        cluster.kill(node)


def short(args: Any) -> Any:
    """With the deadline of a call that is to be refused."""
    return {**args, "deadline_s": REFUSED_WITHIN_S}


# ---- all up


async def test_every_level_is_met_when_all_are_up(mail: AsyncClient) -> None:
    """And every reply says so."""
    for args in (*QUORUM, *STRONGER):
        served = (await write(mail, **args)).served
        assert (served.ack_asked, served.ack_met) == (args["ack"], args["ack"])
        assert (served.level_met, served.committed) == (common_pb2.LEVEL_MET_YES, True)
        assert served.replicas == 3 or args in QUORUM
    receipt = await mail.deliver(MAIL, to=["alice"], **ACCEPTED)
    served = receipt.recipients[0].served
    assert served.ack_met == Ack.ACCEPTED.value
    assert not served.committed
    assert not receipt.recipients[0].message_id
    assert await mail.wait_committed("alice", receipt.request_id)
    assert (await read(mail, LINEARIZABLE)).age_ms == 0
    for args, replicas in ((OF_ONE, 1), (OF_MAJORITY, 2), (OF_ALL, 3)):
        assert (await read(mail, args)).replicas == replicas
    await asyncio.sleep(0.5)  # nothing is written, so that all have applied all
    assert (await read(mail, OF_MAJORITY)).complete
    await read(mail, SESSION)
    assert (await read(mail, BOUNDED)).age_ms <= BOUND_MS
    await read(mail, LOCAL)
    await asyncio.sleep(0.2)
    assert (await read(mail, LOCAL)).age_ms < 2_000, "it found out meanwhile"


@pytest.mark.usefixtures("mail")
async def test_defaults_are_the_clients(cluster: LocalCluster) -> None:
    """Where a call says nothing; and it may say something else."""
    async with AsyncClient(
        cluster.router_address,
        certs=cluster.certs_folder,
        reads={"consistency": Consistency.BOUNDED, "max_staleness_ms": BOUND_MS},
        writes={"ack": Ack.ALL},
    ) as other:
        page = await other.list_messages("alice", "INBOX")
        assert page.served.consistency_met == Consistency.BOUNDED.value
        assert (await write(other)).served.ack_met == Ack.ALL.value
        assert (await write(other, ack=Ack.QUORUM)).served.ack_met == Ack.QUORUM.value
        await read(other, LOCAL)


# ---- one of three down


async def test_with_one_down(cluster: LocalCluster, mail: AsyncClient) -> None:
    """All but what needs it goes on; what needs it is refused, and nothing is written."""
    await kill(cluster, followers=1)
    for args in QUORUM:
        assert (await write(mail, **args)).served.level_met == common_pb2.LEVEL_MET_YES
    receipt = await mail.deliver(MAIL, to=["alice"], **ACCEPTED)
    assert await mail.wait_committed("alice", receipt.request_id)
    before = (await mail.list_messages("alice", "INBOX", **LINEARIZABLE)).total_messages
    for args in STRONGER:
        await refused(write(mail, **short(args)), errors.QuorumUnavailableError)
    after = (await mail.list_messages("alice", "INBOX", **LINEARIZABLE)).total_messages
    assert after == before
    for args in (OF_ONE, OF_MAJORITY, SESSION, BOUNDED, LOCAL):
        await read(mail, args)
    await refused(
        mail.list_messages("alice", "INBOX", **short(OF_ALL)),
        errors.QuorumUnavailableError,
    )


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
    no_quorum = (errors.QuorumUnavailableError, errors.NoLeaderError)
    for args in (*QUORUM, *STRONGER, ACCEPTED):
        await refused(
            write(mail, **short(args)),
            *no_quorum,
            errors.CommitUnknownError,
        )
    for level in (LINEARIZABLE, OF_MAJORITY, OF_ALL):
        await refused(mail.list_messages("alice", "INBOX", **short(level)), *no_quorum)
    await asyncio.sleep(max(0.0, bounded_since_s + BOUND_MS / 1000 + 0.5 - time.monotonic()))
    await refused(
        mail.list_messages("alice", "INBOX", **short(BOUNDED)),
        *no_quorum,
        errors.ReplicaLaggingError,
    )
    served = await read(mail, LOCAL)
    assert served.age_ms >= BOUND_MS

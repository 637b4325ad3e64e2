"""Cells of the consistency menu: the levels as arguments of calls, and what each call must show."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mailraft.client import Ack, AsyncClient, Consistency, LevelNotMetError, errors
from mailraft.client.results import RecipientReceipt
from mailraft.cluster.local import LocalCluster
from mailraft.cluster.operator import Operator
from mailraft.node.interfaces import replica_id
from mailraft.v1 import admin_pb2, common_pb2

SHARD = 1
ALICE = "alice"
MAIL = b"Subject: hello\r\n\r\nHello\r\n"
DEADLINE_S = 5.0  # of a call that is to succeed
REFUSED_WITHIN_S = 2.0
LED_WITHIN_S = 10.0
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

NO_QUORUM = (errors.QuorumUnavailableError, errors.NoLeaderError)
NO_COMMIT = (*NO_QUORUM, errors.CommitUnknownError)


@asynccontextmanager
async def connected(cluster: LocalCluster) -> AsyncIterator[AsyncClient]:
    """A client, with an account that has a message; ACCEPTED is allowed."""
    async with Operator(cluster.router_address, cluster.credentials()) as operator:
        wanted = admin_pb2.Settings(allow_accepted=True)
        await operator.change_settings(wanted, ["allow_accepted"])
    async with cluster.client(deadline_s=DEADLINE_S) as client:
        await client.create_account(ALICE)
        await _until_accepted(client)
        yield client


async def _until_accepted(mail: AsyncClient) -> None:
    """The setting has reached the leader."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await write(mail, **ACCEPTED)
            except errors.LevelNotAllowedError:
                await asyncio.sleep(0.05)
            else:
                return


def only_at(cluster: LocalCluster, node: int) -> AsyncClient:
    """A client that knows one node and no other."""
    return AsyncClient(
        cluster.address_of(node),
        certs=cluster.certs_folder,
        direct=False,
        deadline_s=REFUSED_WITHIN_S,
    )


async def write(mail: AsyncClient, **args: Any) -> RecipientReceipt:
    """One delivery."""
    return (await mail.deliver(MAIL, to=[ALICE], **args)).recipients[0]


async def committed(mail: AsyncClient, args: Any) -> common_pb2.Served:
    """One delivery that meets its level."""
    served = (await write(mail, **args)).served
    assert (served.ack_asked, served.ack_met) == (args["ack"], args["ack"])
    assert (served.level_met, served.committed) == (common_pb2.LEVEL_MET_YES, True)
    return served


async def until_met(mail: AsyncClient, args: Any) -> None:
    """The leader hears all of them again."""
    async with asyncio.timeout(10):
        while True:
            try:
                await committed(mail, args)
            except (errors.QuorumUnavailableError, LevelNotMetError):
                await asyncio.sleep(0.1)
            else:
                return


async def read(mail: AsyncClient, args: Any) -> common_pb2.Served:
    """One page, and how it was served."""
    served = (await mail.list_messages(ALICE, "INBOX", page_size=1, **args)).served
    assert served.consistency_asked == served.consistency_met == args["consistency"]
    return served


async def count(mail: AsyncClient, args: Any) -> int:
    """How many messages such a read shows."""
    return (await mail.list_messages(ALICE, "INBOX", page_size=1, **args)).total_messages


async def refused(
    call: Awaitable[object], *reasons: type[errors.MailraftError]
) -> errors.MailraftError:
    """For one of these reasons, and before the deadline of the call."""
    began_s = time.monotonic()
    with pytest.raises(reasons) as error:
        await call
    assert time.monotonic() - began_s < REFUSED_WITHIN_S + 0.5
    return error.value


def short(args: Any) -> Any:
    """With the deadline of a call that is to be refused."""
    return {**args, "deadline_s": REFUSED_WITHIN_S}


def at(node: int, args: Any) -> Any:
    """At the replica of this node and no other."""
    return {**short(args), "replica": replica_id(node, 1)}


async def leader_and_others(cluster: LocalCluster) -> tuple[int, list[int]]:
    """Who leads the shard, and who does not."""
    async with asyncio.timeout(LED_WITHIN_S):
        while (leader := await cluster.leader_of(SHARD)) is None:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.05)
    return leader, [node for node in cluster.nodes if node != leader]

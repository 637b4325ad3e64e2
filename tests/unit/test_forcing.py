"""A replica that goes on alone, since most voters of its group are lost for good."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from mailraft.internal.v1 import recovery_service_pb2 as pb
from mailraft.internal.v1 import recovery_service_pb2_grpc
from mailraft.node import forcing
from mailraft.node.consensus.host import Host
from mailraft.node.interfaces import (
    Configuration,
    Entry,
    HardState,
    LogBase,
    ReplicaId,
    StoredLog,
    replica_id,
)
from mailraft.wire import errors
from mailraft.wire.credentials import Insecure, open_channel
from three_nodes import SHARD, Nodes, all_up, deliver, until

FIRST = replica_id(1, 1)
FORCED = forcing.FORCED_VERSION


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """Three nodes with ten messages on each."""
    async with all_up(tmp_path, messages=10) as found:
        yield found


def asked(nodes: Nodes, number: int) -> Any:
    """Of a node's recovery service."""
    channel = open_channel(nodes.map.nodes[number - 1].address, Insecure())
    return recovery_service_pb2_grpc.RecoveryServiceStub(channel)


async def surveyed(nodes: Nodes, number: int) -> pb.SurveyedReplica:
    """Its replica of the only shard."""
    request = pb.SurveyRequest(cluster_id=nodes.map.cluster_id)
    [told] = (await asked(nodes, number).Survey(request)).replicas
    assert isinstance(told, pb.SurveyedReplica)
    return told


async def forced(nodes: Nodes, number: int, told: pb.SurveyedReplica) -> pb.ForceResponse:
    """Force a replica as it was surveyed. Raises MailraftError."""
    request = pb.ForceRequest(
        cluster_id=nodes.map.cluster_id,
        group=told.group,
        replica_id=told.replica_id,
        last_index=told.last_index,
        last_term=told.last_term,
    )
    try:
        answer = await asked(nodes, number).Force(request)
    except grpc.aio.AioRpcError as error:
        raise errors.from_rpc_error(error) from None
    assert isinstance(answer, pb.ForceResponse)
    return answer


def voters(nodes: Nodes, number: int) -> tuple[ReplicaId, ...]:
    """By what a node has in its log."""
    host = nodes.running[number]._host
    assert host is not None
    configuration = host.configuration(SHARD)
    assert configuration is not None
    return configuration.voters


async def listed(nodes: Nodes) -> int:
    """How many messages alice has, read linearizably from whoever leads."""
    async with nodes.client() as mail:
        return (await mail.get_account("alice")).usage.messages


async def lose(nodes: Nodes, monkeypatch: pytest.MonkeyPatch, *lost: int) -> None:
    """Stop them, and have whom they led notice at once."""
    monkeypatch.setattr("mailraft.node.recovery.HEARD_LATELY_S", 0.5)
    for number in lost:
        await nodes.stop(number)


def test_the_new_identity_is_above_all_that_others_can_have_made() -> None:
    """Whatever versions the lost voters went on to make, and whatever ids they were given."""
    stored = StoredLog(FIRST, LogBase(1, 0, Configuration(7, (FIRST,))), *_end(5))
    once = forcing.forced(stored)
    assert once.voters == (replica_id(1, 1 + forcing.FORCED_INCARNATION),)
    assert once.version > 7 + 1_000_000
    assert forcing.times_forced(once.version) == 1
    again = StoredLog(once.voters[0], LogBase(1, 0, once), *_end(9))
    assert forcing.forced(again).version > once.version + 1_000_000
    assert forcing.forced(again).voters > once.voters


def _end(index: int) -> tuple[Any, ...]:
    return HardState(3, FIRST), index, 3, index


@pytest.mark.timeout(90)
async def test_a_forced_replica_serves_what_it_had_and_takes_more(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a restart; and asked again it is the same."""
    await lose(nodes, monkeypatch, 2, 3)
    await until(lambda: nodes.leader == 0)
    told = await until_lost(nodes, 1)
    answer = await forced(nodes, 1, told)
    assert answer == await forced(nodes, 1, told)
    assert answer.replica_id == forcing.successor(told.replica_id)
    await until(lambda: nodes.leader == 1)
    assert await listed(nodes) == 10
    async with nodes.client() as mail:
        await deliver(mail, 2)
    await nodes.stop(1)
    await nodes.start(1)
    await until(lambda: nodes.leader == 1)
    assert voters(nodes, 1) == (answer.replica_id,)
    assert await listed(nodes) == 12


@pytest.mark.timeout(90)
async def test_lost_voters_that_come_back_never_count(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are a majority of what was; to the one that goes on alone they are strangers."""
    await lose(nodes, monkeypatch, 2, 3)
    answer = await forced(nodes, 1, await until_lost(nodes, 1))
    await until(lambda: nodes.leader == 1)
    term = next(iter(nodes.running[1].replicas())).leadership.term
    for number in (2, 3):
        await nodes.start(number)
    await until(lambda: any(leads(nodes, number) for number in (2, 3)))
    async with nodes.client() as mail:  # of node 1, which was running first
        await deliver(mail, 3)
    assert leads(nodes, 1)
    assert next(iter(nodes.running[1].replicas())).leadership.term == term
    assert voters(nodes, 1) == (answer.replica_id,)
    assert all(answer.replica_id not in voters(nodes, number) for number in (2, 3))


@pytest.mark.timeout(90)
async def test_it_is_refused_while_there_is_a_leader_or_the_log_is_another(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing changes then."""
    told = await surveyed(nodes, 1)
    with pytest.raises(errors.JobConflictError, match="has a leader"):
        await forced(nodes, 1, told)
    await lose(nodes, monkeypatch, 2, 3)
    told = await until_lost(nodes, 1)
    told.last_index += 1
    with pytest.raises(errors.JobConflictError, match="ends at"):
        await forced(nodes, 1, told)
    told.replica_id = replica_id(1, 9)
    with pytest.raises(errors.ReplicaNotFoundError):
        await forced(nodes, 1, told)
    assert voters(nodes, 1) == tuple(replica_id(number, 1) for number in (1, 2, 3))


def leads(nodes: Nodes, number: int) -> bool:
    """Whether a node leads the only shard, as it sees it."""
    return next(iter(nodes.running[number].replicas())).leadership.leading


async def until_lost(nodes: Nodes, number: int) -> pb.SurveyedReplica:
    """As surveyed once it hears no leader."""
    while (told := await surveyed(nodes, number)).leader:
        pass
    return told


class Nothing:
    """A log without entries."""

    def entries(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        return []

    def term(self, index: int) -> int | None:
        return None


def test_a_flush_of_the_life_before_gives_no_turn_to_it() -> None:
    """The replica that was replaced had a write under way. It is not heard of again."""
    host = Host(1, seed=1)
    alone = Configuration(1, (FIRST,))
    host.add_group(0.0, SHARD, StoredLog(FIRST, LogBase(1, 0, alone), *_newborn()), Nothing())
    now_s, under_way = 0.0, 0
    while not under_way:  # until it elects itself, and its term is to be written
        now_s += 0.1
        under_way = host.step(now_s, [], 0).sequence
    host.remove_group(SHARD)
    heir = forcing.successor(FIRST)
    stored = StoredLog(heir, LogBase(1, 0, Configuration(FORCED, (heir,))), *_newborn())
    host.add_group(now_s, SHARD, stored, Nothing())
    ready = host.step(now_s + 0.01, [], under_way)
    assert {each.replica for each in ready.changed} == {heir}
    for _ in range(20):
        now_s += 0.1
        ready = host.step(now_s, [], under_way)
        assert all(each.replica == heir for each in ready.changed)
        under_way = max(under_way, ready.sequence)
    status = host.status(SHARD)
    assert status is not None
    assert status.leading


def _newborn() -> tuple[Any, ...]:
    return HardState(), 1, 0, 1

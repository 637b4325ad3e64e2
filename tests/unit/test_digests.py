"""A replica whose state differs from that of its peers is found within seconds, and steps aside."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from mailraft.internal.v1 import record_pb2
from mailraft.node import digest_exchange, repair
from mailraft.node.agreement import compare
from mailraft.node.engine import keys, quarantine
from mailraft.node.engine.groups import MARK_EVERY, MARKS_MAX
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import AppendEntries, ApplyWrite, Configuration, Entry, EntryKind
from mailraft.node.mailstore.account_change import prefix_of
from mailraft.v1 import cluster_pb2, cluster_pb2_grpc
from mailraft.wire.credentials import Insecure, open_channel
from three_nodes import SHARD, Nodes, all_up, break_apply, deliver, until

A, B = bytes(15) + b"a", bytes(15) + b"b"
# Two turns are enough where nobody else wants the machine.
FOUND_S = 8 * digest_exchange.COMPARE_S

# ---- compare -------------------------------------------------------------------------------------


def test_three_that_agree() -> None:
    """They are compared at the highest index that all three tell of."""
    told = {1: [(32, A), (40, B)], 2: [(32, A), (41, B)], 3: [(32, A), (40, B)]}
    verdict = compare(told, voters=(1, 2, 3))
    assert verdict is not None
    assert verdict.index == 32
    assert verdict.agreeing == {1, 2, 3}
    assert not verdict.differing


def test_a_majority_is_right_whoever_leads() -> None:
    """The leader is no judge: two against it are right."""
    verdict = compare({1: [(7, B)], 2: [(7, A)], 3: [(7, A)]}, voters=(1, 2, 3), leader=1)
    assert verdict is not None
    assert verdict.differing == {1}
    assert verdict.certain


def test_of_two_the_one_that_differs_from_the_leader() -> None:
    """It is named, but not for certain."""
    verdict = compare({1: [(7, B)], 2: [(7, A)]}, voters=(1, 2, 3), leader=2)
    assert verdict is not None
    assert verdict.differing == {1}
    assert not verdict.certain


def test_without_majority_and_leader_all_differ() -> None:
    """Nobody can tell who is right."""
    verdict = compare({1: [(7, B)], 3: [(7, A)]}, voters=(1, 2, 3), leader=2)
    assert verdict is not None
    assert verdict.differing == {1, 3}
    assert not verdict.certain


def test_learners_have_no_say() -> None:
    """Two learners that agree are no majority against a voter."""
    told = {1: [(7, A)], 4: [(7, B)], 5: [(7, B)]}
    verdict = compare(told, voters=(1, 2, 3), leader=1)
    assert verdict is not None
    assert verdict.differing == {4, 5}
    assert not verdict.certain


def test_nothing_to_compare() -> None:
    """No index that two tell of: no verdict, and no false alarm."""
    assert compare({1: [(7, A)], 2: [(8, B)]}, voters=(1, 2)) is None
    assert compare({}, voters=(1, 2)) is None


# ---- three nodes ---------------------------------------------------------------------------------


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """All three are up, and one leads."""
    async with all_up(tmp_path) as found:
        yield found


@pytest.fixture
def unrepaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """What steps aside stays there, to be looked at."""
    monkeypatch.setattr(repair, "LOOK_S", 3600.0)


def differing(nodes: Nodes, number: int) -> set[int]:
    """Nodes whose replica is known, at this node, to differ."""
    return {replica >> 32 for replica in nodes.running[number].differing(SHARD)}


def diverged_metric(nodes: Nodes, number: int) -> float | None:
    """As Prometheus would see it."""
    return nodes.registries[number].get_sample_value(
        "mailraft_shard_diverged_replicas", {"shard": str(SHARD)}
    )


async def status(nodes: Nodes, number: int, whose: int) -> cluster_pb2.ReplicaStatus:
    """Of the replica on a node, as another node, or itself, tells it over gRPC."""
    async with open_channel(nodes.map.nodes[number - 1].address, Insecure()) as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        reply = await stub.GetShard(cluster_pb2.GetShardRequest(shard=SHARD), timeout=10)
        return next(each for each in reply.shard.replicas if each.replica_id >> 32 == whose)


@pytest.mark.timeout(90)
async def test_equal_replicas_are_compared_under_writes(nodes: Nodes) -> None:
    """While mail comes in, every node compares at ever higher indexes and finds no difference."""

    def compared(number: int) -> float:
        value = nodes.registries[number].get_sample_value(
            "mailraft_shard_compared_index", {"shard": str(SHARD)}
        )
        return value or 0.0

    async with nodes.client() as mail:
        await mail.create_account("alice")
        await until(lambda: all(compared(number) > 0 for number in (1, 2, 3)))
        before = compared(1)
        await deliver(mail, 3 * MARK_EVERY)
        await until(lambda: all(compared(n) >= before + MARK_EVERY for n in (1, 2, 3)))
    assert [diverged_metric(nodes, number) for number in (1, 2, 3)] == [0, 0, 0]
    told = await status(nodes, 1, 1)
    assert told.digest == nodes.applied(1)[2]
    assert [each.applied_index for each in told.earlier] == [
        MARK_EVERY * number for number in (1, 2, 3)
    ]


@pytest.mark.timeout(90)
@pytest.mark.usefixtures("unrepaired")
@pytest.mark.parametrize("whose", ["leader", "follower"])
async def test_a_wrong_byte_is_found_within_seconds(
    nodes: Nodes, whose: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One replica applies an entry otherwise than the two others. All nodes tell, it steps aside,
    over a restart too, and the others serve.
    """
    async with nodes.client() as mail:
        await mail.create_account("alice")
        await until(nodes.alike)
        leader = nodes.leader
        broken = leader if whose == "leader" else next(n for n in (1, 2, 3) if n != leader)
        break_apply(nodes, broken)
        with caplog.at_level(logging.ERROR):
            await deliver(mail, 1)
            await until(
                lambda: all(differing(nodes, number) == {broken} for number in (1, 2, 3)), FOUND_S
            )
        replica = next(iter(nodes.running[broken].replicas()))
        errors = [each for each in caplog.records if each.levelno == logging.ERROR]
        named = f"replica {replica.replica:#x} (node {broken}) of shard {SHARD} has another state"
        told = [each.getMessage() for each in errors if named in each.getMessage()]
        assert len(told) == 3
        assert any("seen at applied index" in each for each in told)
        assert [diverged_metric(nodes, number) for number in (1, 2, 3)] == [1, 1, 1]
        await until(lambda: nodes.leader not in {0, broken})
        assert replica.stopped
        assert not replica.leadership.leading
        for number in (1, 2, 3):
            seen = await status(nodes, number, broken)
            assert seen.state == cluster_pb2.REPLICA_STATE_CORRUPT
        await deliver(mail, 1)  # the others go on
        await nodes.stop(broken)
        await nodes.start(broken)
        assert next(iter(nodes.running[broken].replicas())).stopped


@pytest.mark.timeout(90)
@pytest.mark.parametrize("whose", ["leader", "follower"])
async def test_a_replica_that_differs_is_fetched_again(nodes: Nodes, whose: str) -> None:
    """It steps aside, begins again empty, and in the end holds what its peers hold and votes; what
    it had is kept until then, and not longer.
    """
    async with nodes.client() as mail:
        await mail.create_account("alice")
        await until(nodes.alike)
        leader = nodes.leader
        broken = leader if whose == "leader" else next(n for n in (1, 2, 3) if n != leader)
        wrong = next(iter(nodes.running[broken].replicas()))
        break_apply(nodes, broken)
        await deliver(mail, 1)
        await until(lambda: quarantine.kept(nodes.folder(broken)) is not None, 4 * FOUND_S)
        assert wrong.stopped
        await deliver(mail, 3)
        await until(lambda: quarantine.kept(nodes.folder(broken)) is None, 4 * FOUND_S)
        again = next(iter(nodes.running[broken].replicas()))
        assert again is not wrong
        assert not again.stopped
        await until(nodes.alike)
        await until(lambda: not any(differing(nodes, number) for number in (1, 2, 3)), 2 * FOUND_S)
        other = next(number for number in (1, 2, 3) if number not in {leader, broken})
        await nodes.stop(other)
        await deliver(mail, 1)  # with its vote
        assert not (nodes.folder(broken) / quarantine.QUARANTINE_FOLDER).exists()


@pytest.mark.timeout(90)
@pytest.mark.usefixtures("unrepaired")
async def test_a_flipped_byte_in_a_stopped_node_is_found(nodes: Nodes) -> None:
    """A row of the state is changed behind the engine's back: found with the first entry that
    reads it.
    """
    async with nodes.client() as mail:
        await mail.create_account("alice")
        await deliver(mail, 3)
        await until(nodes.alike)
        broken = next(number for number in (1, 2, 3) if number != nodes.leader)
        await nodes.stop(broken)
        store = Store.open(nodes.folder(broken), cluster_id=nodes.map.cluster_id, node=broken)
        key = keys.account_record(prefix_of("alice"))
        record = record_pb2.AccountRecord.FromString(store.view(SHARD).get(key) or b"")
        record.used_bytes ^= 1
        batch = store._backend.batch()
        row = store._state(SHARD).state_prefix + key
        batch.put(keys.STATE, row, record.SerializeToString())
        store._backend.write(batch)
        store.close()
        await nodes.start(broken)
    async with nodes.client() as mail:
        await deliver(mail, 1)
        others = {1, 2, 3} - {broken}
        await until(
            lambda: all(differing(nodes, number) == {broken} for number in others), 2 * FOUND_S
        )
        await until(lambda: next(iter(nodes.running[broken].replicas())).stopped, FOUND_S)


@pytest.mark.timeout(90)
async def test_with_two_replicas_nobody_steps_aside(nodes: Nodes) -> None:
    """That they differ is told; with one of them aside nothing could be written."""
    async with nodes.client() as mail:
        await mail.create_account("alice")
        await until(nodes.alike)
        broken, gone = [number for number in (1, 2, 3) if number != nodes.leader]
        await nodes.stop(gone)
        break_apply(nodes, broken)
    async with nodes.client() as mail:
        await deliver(mail, 1)
        await until(lambda: all(len(differing(nodes, number)) == 1 for number in nodes.running))
        assert not any(next(iter(node.replicas())).stopped for node in nodes.running.values())
        await deliver(mail, 1)


# ---- the engine ----------------------------------------------------------------------------------


async def test_a_bounded_number_of_digests_is_kept(tmp_path: Path) -> None:
    """Those of indexes that MARK_EVERY divides, and the newest, which alone survives a restart."""
    only = Nodes(tmp_path)

    def open_store() -> Store:
        return Store.open(only.folder(1), cluster_id=only.map.cluster_id, node=1)

    store = open_store()
    store.create_group(SHARD, 1 << 32, Configuration(1, (1 << 32,)))
    last = MARK_EVERY * (MARKS_MAX + 3) + 1
    entries = tuple(Entry(index, 1, EntryKind.NOOP) for index in range(2, last + 1))
    writes: Sequence[ApplyWrite] = [ApplyWrite(SHARD, each.index, 1, ()) for each in entries]
    store.write([AppendEntries(SHARD, entries), *writes])
    told = store.digests(SHARD)
    assert [each.index for each in told[:-1]] == [
        MARK_EVERY * number for number in range(4, MARKS_MAX + 4)
    ]
    assert (told[-1].index, told[-1].term, told[-1].digest) == store.applied(SHARD)
    store.close()
    store = open_store()
    assert store.digests(SHARD) == told[-1:]
    store.close()

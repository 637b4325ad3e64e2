"""Snapshots between real nodes in one process: gRPC, RocksDB, consensus, and their failures."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from mailraft.internal.v1 import peer_service_pb2_grpc, snapshot_pb2
from mailraft.node import failpoints, snapshot_receiver, snapshots
from mailraft.node.consensus.compaction import CompactionLimits
from mailraft.node.consensus.settings import Settings
from mailraft.node.engine import keys
from mailraft.node.engine.snapshot import Pack
from mailraft.node.engine.store import Store
from mailraft.wire import errors
from three_nodes import SHARD, Nodes, until

SMALL = Settings(compaction=CompactionLimits(entries_max=8, follower_bytes_max=1_000))


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """All three are up, and one leads."""
    found = Nodes(tmp_path, SMALL)
    for number in (1, 2, 3):
        await found.start(number)
    await until(lambda: found.leader != 0)
    yield found
    failpoints.arm("")
    for number in list(found.running):
        await found.stop(number)


async def leave_behind(nodes: Nodes, *, messages: int = 40, size_bytes: int = 20_000) -> int:
    """A follower is down while the others compact their logs past it; answers its number."""
    async with nodes.client() as mail:
        await mail.create_account("alice")
        await mail.deliver(b"Subject: first\r\n\r\n", to=["alice"])
        await until(nodes.alike)
        behind = next(number for number in nodes.running if number != nodes.leader)
        seen = nodes.applied(behind)[0]
        await nodes.stop(behind)
        draw = random.Random(1)
        for number in range(messages):
            body = draw.randbytes(size_bytes // 2).hex().encode()
            await mail.deliver(b"Subject: %d\r\n\r\n%s\r\n" % (number, body), to=["alice"])
    await until(lambda: nodes.base_index(nodes.leader) > seen)
    return behind


@pytest.mark.timeout(120)
async def test_a_follower_below_the_log_is_caught_up(
    nodes: Nodes, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gets a snapshot, is equal afterwards, takes entries again, and serves what it was sent."""
    behind = await leave_behind(nodes)
    await nodes.start(behind)
    await until(nodes.alike)
    await until(lambda: sum(metrics.sent for metrics in nodes.metrics()) == 1)
    async with nodes.client() as mail:
        await mail.deliver(b"Subject: last\r\n\r\n", to=["alice"])
        await until(nodes.alike)
        for other in list(nodes.running):
            if other not in {behind, nodes.leader}:
                await nodes.stop(other)
        page = await mail.list_messages("alice", "INBOX", page_size=50)
        assert len(page.messages) == 42
        for message in page.messages:
            assert (await mail.fetch_body("alice", message.id)).startswith(b"Subject: ")
    with capsys.disabled():
        print(
            f"\n  sent {sum(m.sent_bytes for m in nodes.metrics()) / 1024:.0f} KiB; the "
            f"sender's loop was held {max(m.held_loop_ms_max for m in nodes.metrics()):.1f} ms"
        )


@pytest.mark.timeout(120)
async def test_a_stream_that_breaks_is_gone_on_with(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second stream begins where the first ended, and nothing is read twice."""
    behind = await leave_behind(nodes, messages=60, size_bytes=60_000)
    offers: list[int] = []
    sent: list[int] = []
    write = snapshots._Stream.write

    async def broken(
        stream: snapshots._Stream, request: snapshot_pb2.InstallSnapshotRequest
    ) -> None:
        if request.HasField("offer"):
            offers.append(request.offer.snapshot_id)
        if request.HasField("pack"):
            if len(offers) == 1 and request.pack.number == 5:
                raise ConnectionError("cut by the test")
            sent.append(request.pack.number)
        await write(stream, request)

    monkeypatch.setattr(snapshots._Stream, "write", broken)
    await nodes.start(behind)
    await until(nodes.alike)
    assert len(offers) == 2
    assert offers[0] == offers[1]
    assert sorted(set(sent)) == list(range(max(sent) + 1))
    assert len(sent) - len(set(sent)) <= 5


@pytest.mark.timeout(120)
async def test_damage_on_the_way_is_refused_and_tried_again(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit in the stream never becomes a replica; a fresh snapshot does."""
    behind = await leave_behind(nodes)
    take = snapshot_receiver._pack
    damaged: list[int] = []

    def flipped(sent: snapshot_pb2.SnapshotPack) -> Pack:
        if not damaged and sent.number == 1:
            damaged.append(1)
            sent.rows = sent.rows[:-1] + bytes((sent.rows[-1] ^ 4,))
        return take(sent)

    monkeypatch.setattr(snapshot_receiver, "_pack", flipped)
    await nodes.start(behind)
    await until(nodes.alike)
    assert damaged
    await until(lambda: sum(metrics.sent for metrics in nodes.metrics()) == 1)
    assert not list((nodes.folder(behind) / "incoming").glob("*"))


@pytest.mark.timeout(120)
async def test_what_is_offered_wrongly_is_refused(nodes: Nodes) -> None:
    """Another cluster, another replica, no offer, or what is held already: nothing is burnt."""
    follower = next(number for number in nodes.running if number != nodes.leader)
    status = nodes.running[follower]._snapshots
    assert status is not None
    replica = next(iter(nodes.running[follower].replicas())).replica
    good = snapshot_pb2.SnapshotOffer(
        cluster_id=nodes.map.cluster_id,
        from_node=nodes.leader,
        to_node=follower,
        group=SHARD,
        to_replica=replica,
        index=1,
    )

    async def answer(**changes: object) -> snapshot_pb2.InstallSnapshotResponse:
        offer = snapshot_pb2.SnapshotOffer()
        offer.CopyFrom(good)
        for name, value in changes.items():
            setattr(offer, name, value)
        async with grpc.aio.insecure_channel(nodes.map.nodes[follower - 1].address) as channel:
            call = peer_service_pb2_grpc.PeerServiceStub(channel).InstallSnapshot()  # type: ignore[call-arg]
            await call.write(snapshot_pb2.InstallSnapshotRequest(offer=offer))
            found = await call.read()
            call.cancel()
            assert isinstance(found, snapshot_pb2.InstallSnapshotResponse)
            return found

    assert (await answer()).verdict == snapshots.DONE
    for wrong in (
        {"cluster_id": "another", "index": 1000},
        {"to_node": 9, "index": 1000},
        {"from_node": 77, "index": 1000},
        {"to_replica": replica + 1, "index": 1000},
        {"group": 5, "index": 1000},
    ):
        found = await answer(**wrong)
        assert found.verdict == snapshots.REFUSED, wrong
        assert found.reason


def test_a_feed_resumes_at_what_is_held() -> None:
    """Packs are kept until they are acknowledged, and no longer."""

    class Source:
        totals = None

        def packs(self) -> list[Pack]:
            return [Pack(n, 1, 1, b"x" * 10, 0) for n in range(6)]

    feed = snapshots._Feed(Source())  # type: ignore[arg-type]
    feed._packs = iter(Source().packs())
    assert [feed.take().number for _ in range(4)] == [0, 1, 2, 3]  # type: ignore[union-attr]
    assert feed.in_flight_bytes == 40
    feed.held(2)
    assert feed.in_flight_bytes == 20
    feed.resume(3)
    assert feed.in_flight_bytes == 0
    assert [feed.take().number for _ in range(3)] == [3, 4, 5]  # type: ignore[union-attr]
    assert feed.take() is None
    with pytest.raises(snapshots.SnapshotRefusedError, match="not kept"):
        feed.resume(1)


@pytest.mark.timeout(120)
async def test_a_node_on_an_empty_folder_is_rebuilt_by_its_peers(nodes: Nodes) -> None:
    """Faults, row 17: under its old name it votes only when it holds what the leader held."""
    lost = await leave_behind(nodes)
    shutil.rmtree(nodes.folder(lost))
    await nodes.start(lost)
    store = nodes.running[lost]._store
    assert store is not None
    await until(nodes.alike)
    await until(lambda: not store.load(SHARD).amnesic)
    other = next(number for number in nodes.running if number not in {lost, nodes.leader})
    await nodes.stop(other)
    async with nodes.client() as mail:
        await mail.deliver(b"Subject: with its help\r\n\r\n", to=["alice"])
        assert len((await mail.list_messages("alice", "INBOX", page_size=50)).messages) == 42


@pytest.mark.timeout(120)
async def test_a_replica_with_a_damaged_log_steps_aside(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    """Faults, row 7: it neither votes nor serves, and says so; the other two go on."""
    async with nodes.client() as mail:
        await mail.create_account("alice")
    await until(nodes.alike)
    damaged = next(number for number in nodes.running if number != nodes.leader)
    await nodes.stop(damaged)
    store = Store.open(nodes.folder(damaged), cluster_id=nodes.map.cluster_id, node=damaged)
    batch = store._backend.batch()
    last = store.load(SHARD).last_index
    batch.put(keys.LOG, keys.log_entry(SHARD, last), b"\x08\x01\x10\x01\x18\x02\x22\x01x")
    store._backend.write(batch)
    store.close()
    with caplog.at_level("CRITICAL"):
        await nodes.start(damaged)
    assert "the replica of shard 1 steps aside" in caplog.text
    replica = next(iter(nodes.running[damaged].replicas()))
    with pytest.raises(errors.ShuttingDownError, match="damaged"):
        await replica.propose(object(), deadline_s=0)
    async with nodes.client() as mail:
        await mail.deliver(b"Subject: without it\r\n\r\n", to=["alice"])
    assert not replica.leadership.leader, "it hears nothing"

"""mailraft check hash and check blobs, on three nodes that take mail meanwhile."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from mailraft.client.ids import RequestIds
from mailraft.internal.v1 import audit_service_pb2, audit_service_pb2_grpc, record_pb2
from mailraft.node import body_audit, digest_exchange
from mailraft.node.body_audit import BodyAudit, TooManySuspectsError
from mailraft.node.engine import keys
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import (
    AppendEntries,
    ApplyWrite,
    Configuration,
    DeleteBody,
    Entry,
    EntryKind,
    Put,
)
from mailraft.wire.credentials import Insecure, open_channel
from three_nodes import SHARD, Nodes, all_up, break_apply, deliver, until

OK, FAILED, UNAVAILABLE = 0, 1, 3


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """All three are up, one leads, and alice has five messages."""
    async with all_up(tmp_path, messages=5) as found:
        yield found


async def check(nodes: Nodes, what: str, *more: str) -> tuple[int, str]:
    """Run the command; its exit status and what it prints."""
    server = nodes.map.nodes[next(iter(nodes.running)) - 1].address
    arguments = ("check", what, "--server", server, "--insecure", *more)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mailraft.cluster.cli", *arguments, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), 40.0)
    assert process.returncode is not None
    return process.returncode, output.decode()


@asynccontextmanager
async def under_writes(nodes: Nodes) -> AsyncIterator[None]:
    """Mail comes in all along."""
    async with nodes.client() as mail:

        async def on_and_on() -> None:
            while True:
                await deliver(mail, 1)

        writer = asyncio.create_task(on_and_on())
        yield
        writer.cancel()
        with suppress(asyncio.CancelledError):
            await writer


# ---- hash ----------------------------------------------------------------------------------------


@pytest.mark.timeout(90)
async def test_hash_of_a_sound_cluster(nodes: Nodes) -> None:
    """One line a shard, at rest and under writes; the same as JSON."""
    assert await check(nodes, "hash") == (OK, f"s{SHARD} @{nodes.applied(1)[0]}: 3/3 match\n")
    async with under_writes(nodes):
        status, told = await check(nodes, "hash")
    assert status == OK
    assert told.endswith(": 3/3 match\n")
    status, told = await check(nodes, "hash", "-o", "json")
    document: Any = json.loads(told)
    assert (status, document["status"]) == (OK, "OK")
    assert document["shards"][0]["matching"] == ["n1", "n2", "n3"]


@pytest.mark.timeout(90)
async def test_hash_names_the_replica_that_differs(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before it has found out itself, and after it has stepped aside."""
    monkeypatch.setattr(digest_exchange, "COMPARE_S", 600.0)
    broken = next(number for number in (1, 2, 3) if number != nodes.leader)
    await asyncio.sleep(2.5)  # a turn of the exchange that was under way
    break_apply(nodes, broken)
    async with nodes.client() as mail:
        await deliver(mail, 1)
    await until(lambda: len({nodes.applied(number)[0] for number in (1, 2, 3)}) == 1)
    line = f": 2/3 match, n{broken} differs\n"
    status, told = await check(nodes, "hash")
    assert status == FAILED
    assert told.endswith(line)
    exchange = nodes.running[broken]._digests
    assert exchange is not None
    await exchange.turn()
    status, told = await check(nodes, "hash")
    assert status == FAILED
    assert told.endswith(line)
    status, told = await check(nodes, "hash", "-o", "json")
    document: Any = json.loads(told)
    assert (status, document["status"]) == (FAILED, "DIFFERENT")
    assert document["shards"][0]["differing"] == [f"n{broken}"]


@pytest.mark.timeout(90)
async def test_hash_tells_who_is_missing(nodes: Nodes) -> None:
    """Two of three agree, and the third cannot be asked: not wrong, and not checked."""
    gone = next(number for number in (1, 2, 3) if number != nodes.leader)
    await nodes.stop(gone)
    status, told = await check(nodes, "hash")
    assert status == UNAVAILABLE
    assert (
        told == f"s{SHARD} @{nodes.applied(nodes.leader)[0]}: 2/3 match, n{gone} does not answer\n"
    )


# ---- blobs ---------------------------------------------------------------------------------------


def put_body(nodes: Nodes, number: int, index: int, ordinal: int, body: bytes | None) -> None:
    """Store or remove a body behind the engine's back."""
    store = nodes.store(number)
    key = keys.body(SHARD, store._state(SHARD).birth.generation, index, ordinal)
    batch = store._backend.batch()
    if body is None:
        batch.delete(keys.BODY, key)
    else:
        batch.put(keys.BODY, key, body)
    store._backend.write(batch)


def first_body(nodes: Nodes, number: int) -> tuple[int, int]:
    """Where the first body that a message refers to lies."""
    return keys.body_position(next(nodes.store(number).bodies(SHARD))[0])


@pytest.mark.timeout(90)
async def test_blobs_of_a_sound_cluster(nodes: Nodes) -> None:
    """Every body is referred to, on each replica, at rest and under writes."""
    status, told = await check(nodes, "blobs")
    index = nodes.applied(1)[0]
    counts = f"s{SHARD} {{}} @{index}: 5 stored, 5 referenced, 0 waiting, 0 missing, 0 orphans"
    assert status == OK
    assert told.splitlines() == [
        *(counts.format(f"n{number}") for number in (1, 2, 3)),
        "total: stored=15 referenced=15 waiting=0 missing=0 orphans=0",
    ]
    async with under_writes(nodes):
        assert (await check(nodes, "blobs"))[0] == OK


@pytest.mark.timeout(90)
async def test_blobs_that_wait_are_no_orphans(nodes: Nodes) -> None:
    """A retry brings a body that nobody takes: it is known until it is removed."""
    same = RequestIds().next()
    async with nodes.client() as mail:
        for _ in range(3):
            await mail.deliver(b"Subject: again\r\n\r\n", to=["alice"], request_id=same)
    await until(nodes.alike)
    status, told = await check(nodes, "blobs")
    assert status == OK
    assert told.count("8 stored, 6 referenced, 2 waiting, 0 missing, 0 orphans") == 3


@pytest.mark.timeout(90)
async def test_a_missing_body_and_an_orphan_are_named(nodes: Nodes) -> None:
    """One replica has lost a body and another has one too many: each is told by its id."""
    index, ordinal = first_body(nodes, 2)
    put_body(nodes, 2, index, ordinal, None)
    put_body(nodes, 3, index, 99, b"nobody knows of it")
    status, told = await check(nodes, "blobs")
    lines = told.splitlines()
    assert status == FAILED
    assert lines[0].endswith("0 missing, 0 orphans")
    assert lines[1].endswith(
        f"4 stored, 5 referenced, 0 waiting, 1 missing ({index}-{ordinal}), 0 orphans"
    )
    assert lines[2].endswith(
        f"6 stored, 5 referenced, 0 waiting, 0 missing, 1 orphans ({index}-99)"
    )
    assert lines[3] == "total: stored=15 referenced=15 waiting=0 missing=1 orphans=1"
    status, told = await check(nodes, "blobs", "-o", "json")
    document: Any = json.loads(told)
    assert (status, document["status"]) == (FAILED, "DAMAGED")
    assert document["replicas"][2]["first_orphans"] == [f"{index}-99"]


def test_what_is_stored_for_the_log_is_no_orphan(tmp_path: Path) -> None:
    """A body that was removed stays while its entry is in the log, and one whose entry is not
    applied yet is not looked at.
    """
    store = Store.open(tmp_path, cluster_id="c", node=1)
    store.create_group(SHARD, 1 << 32, Configuration(1, (1 << 32,)))
    entries = [Entry(at, 1, EntryKind.COMMAND, b"", (b"body %d" % at,)) for at in (2, 3, 4, 5)]
    record = record_pb2.BlobRecord(format=1, references=2).SerializeToString()
    store.write(
        [
            AppendEntries(SHARD, tuple(entries)),
            ApplyWrite(SHARD, 2, 1, (Put(keys.blob(2, 0), record),)),
            ApplyWrite(SHARD, 3, 1, (Put(keys.free_body(1, 3), b""),)),
            ApplyWrite(SHARD, 4, 1, (DeleteBody(4, 0),)),
        ]
    )
    audit = BodyAudit(store, SHARD)
    list(audit.steps())
    found = audit.found
    assert (found.applied_index, found.stored, found.waiting) == (4, 3, 2)
    assert (found.referenced, found.references) == (1, 2)
    assert (found.missing_count, found.orphan_count) == (0, 0)
    store.close()


@pytest.mark.timeout(90)
async def test_an_audit_is_of_one_moment(nodes: Nodes) -> None:
    """What is written while it runs does not show in it."""
    audit = BodyAudit(nodes.store(1), SHARD)
    put_body(nodes, 1, *first_body(nodes, 1), None)
    async with nodes.client() as mail:
        await deliver(mail, 3)
    list(audit.steps())
    found = audit.found
    assert found.complete
    assert (found.stored, found.referenced, found.references) == (5, 5, 5)
    assert (found.missing_count, found.orphan_count) == (0, 0)


@pytest.mark.timeout(90)
async def test_suspects_are_bounded(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store full of orphans fails the audit, and not the node's memory."""
    monkeypatch.setattr(body_audit, "SUSPECTS_MAX", 3)
    index, _ = first_body(nodes, 1)
    for ordinal in range(90, 94):
        put_body(nodes, 1, index, ordinal, b"nobody knows of it")
    with pytest.raises(TooManySuspectsError):
        list(BodyAudit(nodes.store(1), SHARD).steps())
    status, told = await check(nodes, "blobs")
    assert status == UNAVAILABLE
    assert "not looked at: RESOURCE_EXHAUSTED more than 3 bodies are not counted" in told


@pytest.mark.timeout(90)
async def test_one_audit_a_node_and_throttled(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads no faster than it may and tells how far it is; a second one is refused meanwhile."""
    monkeypatch.setattr(body_audit, "STEP_ROWS", 1)
    monkeypatch.setattr(body_audit, "ROWS_PER_S", 10)
    monkeypatch.setattr(body_audit, "TELL_S", 0.0)
    loop = asyncio.get_running_loop()
    request = audit_service_pb2.AuditBodiesRequest(group=SHARD)
    async with open_channel(nodes.map.nodes[0].address, Insecure()) as channel:
        stub = audit_service_pb2_grpc.AuditServiceStub(channel)
        began_s = loop.time()
        pages = aiter(stub.AuditBodies(request, timeout=20))
        first = await anext(pages)
        assert (first.stored, first.complete) == (1, False)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(stub.AuditBodies(request, timeout=20)))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        told = [page async for page in pages]
    assert told[-1].complete
    assert told[-1].stored == 5
    assert loop.time() - began_s >= 0.9, "ten rows, ten a second"

"""Backup and restore on three real nodes in this process: what was recorded is what comes back."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mailraft.client import AsyncClient
from mailraft.client.options import Consistency, MailboxRole
from mailraft.cluster.backup.account import account_at
from mailraft.cluster.backup.create import create
from mailraft.cluster.backup.manifest import Manifest
from mailraft.cluster.backup.nodes import Nodes
from mailraft.cluster.backup.replay import NotArchivedError, shard_at
from mailraft.cluster.backup.restore import Target, restore_account, restore_cluster
from mailraft.cluster.backup.store import Folder
from mailraft.cluster.backup.stream import GAP, Stream
from mailraft.cluster.backup.verify import verify
from mailraft.cluster.errors import ClusterError
from mailraft.node.consensus.compaction import CompactionLimits
from mailraft.node.consensus.settings import Settings
from mailraft.wire import errors
from mailraft.wire.credentials import Insecure
from three_nodes import SHARD, until
from three_nodes import Nodes as Cluster

Shown = dict[tuple[str, ...], list[tuple[str, tuple[str, ...], int, bool]]]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Three nodes with one shard."""
    running = Cluster(tmp_path / "nodes")
    for number in (1, 2, 3):
        await running.start(number)
    await until(lambda: running.leader != 0)
    yield running
    for number in (1, 2, 3):
        await running.stop(number)


@pytest.fixture
async def mail(cluster: Cluster) -> AsyncIterator[AsyncClient]:
    """A client of them."""
    async with cluster.client() as client:
        yield client


@pytest.fixture
async def nodes(cluster: Cluster) -> AsyncIterator[Nodes]:
    """What a backup asks."""
    async with Nodes(cluster.map, Insecure()) as asked:
        yield asked


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    """Where backups go."""
    return Folder(tmp_path / "store", create=True)


async def shown(mail: AsyncClient, account: str) -> Shown:
    """Mailboxes by their paths, and of each message what restoring promises: in UID order."""
    boxes = {each.id: each for each in await mail.list_mailboxes(account)}
    found: Shown = {}
    for box in boxes.values():
        path, at = [box.name], box.parent_id
        while at:
            path, at = [boxes[at].name, *path], boxes[at].parent_id
        rows = []
        async for each in mail.iter_messages(
            account, box.id, consistency=Consistency.LINEARIZABLE, page_size=1000
        ):
            raw = await mail.fetch_body(account, each.id)
            deleted = next(m.deleted for m in each.memberships if m.mailbox_id == box.id)
            row = (hashlib.sha256(raw).hexdigest(), tuple(each.keywords))
            rows.append((*row, each.internal_time_ms, deleted))
        found[tuple(path)] = rows
    return found


def in_any_order(found: Shown) -> Shown:
    """Of the messages of a mailbox."""
    return {path: sorted(rows) for path, rows in found.items()}


def stream_of(nodes: Nodes, store: Folder, taken: list[str]) -> Stream:
    """Told why it takes backups."""

    async def take() -> Manifest:
        return await create(nodes, store)

    return Stream(nodes, store, take, took=lambda _, why: taken.append(why))


async def archived(stream: Stream) -> None:
    """Everything that was acknowledged before."""
    await stream.step()
    stream.finish()


async def test_a_cluster_comes_back_in_another(
    cluster: Cluster, mail: AsyncClient, nodes: Nodes, store: Folder, tmp_path: Path
) -> None:
    """All that was acknowledged before the last poll. Old states are too old, UIDVALIDITYs new."""
    for name in ("alice", "bob"):
        await mail.create_account(name, attributes={"who": name})
    await mail.deliver(b"Subject: 0\r\n\r\n", to=["alice", "bob"])
    stream = stream_of(nodes, store, [])
    await stream.begin()
    await mail.deliver(b"Subject: 1\r\n\r\n", to=["alice", "bob"], keywords=["$flagged"])
    receipt = await mail.deliver(b"Subject: 2\r\n\r\n", to=["alice"])
    await archived(stream)
    await mail.deliver(b"Subject: not archived\r\n\r\n", to=["alice"])
    old_state = receipt.recipients[0].state
    old_inbox = await mail.get_mailbox("alice", "INBOX")
    other = Cluster(tmp_path / "other")
    for number in (1, 2, 3):
        await other.start(number)
    try:
        await until(lambda: other.leader != 0)
        async with other.client() as there, Nodes(other.map, Insecure()) as asked:
            target = Target(there, asked)
            done = await restore_cluster(store, cluster.map.cluster_id, target)
            assert (done.accounts, done.messages, done.appended, done.left) == (2, 5, 5, [])
            then = await shown(mail, "alice")
            then["INBOX",].pop()
            assert await shown(there, "alice") == then
            assert await shown(there, "bob") == await shown(mail, "bob")
            assert dict((await there.get_account("bob")).attributes) == {"who": "bob"}
            again = await restore_cluster(store, cluster.map.cluster_id, target)
            assert (again.messages, again.appended) == (5, 0)
            inbox = await there.get_mailbox("alice", "INBOX")
            assert inbox.uid_validity > old_inbox.uid_validity
            with pytest.raises(errors.StateTooOldError):
                await there.list_changes("alice", old_state)
            with pytest.raises(errors.StateTooOldError):
                await there.get_account("alice", min_state=old_state)
    finally:
        for number in (1, 2, 3):
            await other.stop(number)
    with pytest.raises(ClusterError, match="the cluster that was backed up"):
        await restore_cluster(store, cluster.map.cluster_id, Target(mail, nodes))


async def test_a_compacted_log_is_a_gap_and_a_new_backup(tmp_path: Path, store: Folder) -> None:
    """Nothing is passed over: a backup takes the place of what was not archived."""
    limits = CompactionLimits(entries_max=40)
    running = Cluster(tmp_path / "nodes", Settings(compaction=limits))
    for number in (1, 2, 3):
        await running.start(number)
    try:
        await until(lambda: running.leader != 0)
        async with running.client() as mail, Nodes(running.map, Insecure()) as nodes:
            await mail.create_account("alice")
            taken: list[str] = []
            stream = stream_of(nodes, store, taken)
            await stream.begin()
            await archived(stream)
            for number in range(120):
                await mail.deliver(b"Subject: %d\r\n\r\n" % number, to=["alice"])
            await stream.step()
            assert taken == ["the archive begins", GAP]
            await mail.deliver(b"Subject: last\r\n\r\n", to=["alice"])
            await archived(stream)
            with shard_at(store, running.map.cluster_id, SHARD, None) as then:
                was = account_at(then, "alice")
                assert was is not None
                assert len(was.messages) == 121
            assert verify(store, running.map.cluster_id).problems == []
    finally:
        for number in (1, 2, 3):
            await running.stop(number)


async def test_an_account_comes_back_as_it_was(
    cluster: Cluster, mail: AsyncClient, nodes: Nodes, store: Folder
) -> None:
    """In place and into another account: mailboxes, contents, keywords and Deleted marks."""
    await mail.create_account("alice", max_bytes=10_000_000)
    for number in range(20):
        await mail.deliver(b"Subject: %d\r\n\r\n%s" % (number, b"x" * 100), to=["alice"])
    taken: list[str] = []
    stream = stream_of(nodes, store, taken)
    await stream.begin()
    work = await mail.create_mailbox("alice", "work", subscribed=True)
    deep = await mail.create_mailbox("alice", "deep", parent_id=work.id)
    ids = [each.id async for each in mail.iter_messages("alice")]
    await mail.modify_keywords("alice", ids[:5], add=["$seen", "mine"])
    inbox = await mail.get_mailbox("alice", "INBOX")
    await mail.move_messages("alice", ids[5:10], deep.id, source=inbox.id)
    await mail.update_memberships("alice", ids[:2], add=[work.id], deleted={work.id: True})
    await mail.append("alice", [b"Subject: large\r\n\r\n" + bytes(2_000_000)], work.id)
    await asyncio.sleep(0.01)
    at_ms, then = time.time_ns() // 1_000_000, await shown(mail, "alice")
    await asyncio.sleep(0.01)
    await mail.expunge_messages("alice", ids[3:8])
    await mail.update_mailbox("alice", work.id, name="play")
    await mail.update_mailbox("alice", deep.id, parent_id="")
    await mail.create_mailbox("alice", "work", role=MailboxRole.JUNK)
    await mail.modify_keywords("alice", ids[:3], replace=["other"])
    await mail.deliver(b"Subject: later\r\n\r\n", to=["alice"])
    await archived(stream)
    before = await mail.get_account("alice")
    assert await shown(mail, "alice") != then

    target = Target(mail, nodes)
    told = await restore_account(
        store, cluster.map.cluster_id, target, "alice", at_ms=at_ms, dry_run=True
    )
    assert (told.appended, told.expunged) == (5, 1)
    written = await restore_account(
        store, cluster.map.cluster_id, target, "alice", at_ms=at_ms, into="alice-then"
    )
    assert written.appended == 21
    into = await shown(mail, "alice-then")
    assert in_any_order(into) == in_any_order(then)
    assert into["INBOX",] == then["INBOX",], "in the order of their UIDs"
    written = await restore_account(store, cluster.map.cluster_id, target, "alice", at_ms=at_ms)
    assert (written.appended, written.expunged) == (5, 1)
    assert in_any_order(await shown(mail, "alice")) == in_any_order(then)
    assert (await mail.get_account("alice")).highest_modseq > before.highest_modseq
    again = await restore_account(store, cluster.map.cluster_id, target, "alice", at_ms=at_ms)
    assert (again.appended, again.changed, again.expunged, again.mailboxes) == (0, 0, 0, 0)
    assert taken == ["the archive begins"]
    assert verify(store, cluster.map.cluster_id).problems == []
    assert SHARD in nodes.groups
    later = time.time_ns() // 1_000_000 + 60_000
    with pytest.raises(NotArchivedError):
        await restore_account(store, cluster.map.cluster_id, target, "alice", at_ms=later)

"""What lies in a backup store: found damaged, counted, pruned, replayed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from backed_up_shard import CLUSTER, GROUP, START_MS, BackedUpShard, delivery
from mailraft.cluster.backup import chunks
from mailraft.cluster.backup.account import account_at, account_ids
from mailraft.cluster.backup.archive import Archive, Reach, entries_after
from mailraft.cluster.backup.manifest import BackupNotFoundError, backups, only_cluster
from mailraft.cluster.backup.prune import prune
from mailraft.cluster.backup.replay import NotArchivedError, shard_at
from mailraft.cluster.backup.sealed import (
    DamagedBackupError,
    Kind,
    NewerBackupError,
    seal,
    unseal,
)
from mailraft.cluster.backup.store import Folder, NoStoreError, NotStoredError, StoreBusyError
from mailraft.cluster.backup.verify import verify
from mailraft.cluster.errors import ClusterError
from mailraft.internal.v1 import command_pb2

DAY_MS = 24 * 3_600_000
KINDS = ("backups", "log", "head", "state", "bodies")


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    """An empty one."""
    return Folder(tmp_path / "store", create=True)


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[BackedUpShard]:
    """With the account alice."""
    made = BackedUpShard(tmp_path / "engine")
    made.create("alice")
    yield made
    made.close()


def mail(number: int) -> bytes:
    """One that no other is like."""
    return b"Subject: %d\r\n\r\n" % number + random.Random(number).randbytes(2_000)


def filled(shard: BackedUpShard, store: Folder) -> None:
    """Two backups, the second on the first, and a log from the first on."""
    for number in range(10):
        shard.deliver("alice", mail(number), number)
    first = shard.backup(store, "b-1")
    archive = Archive(store, CLUSTER)
    for number in range(10, 20):
        shard.deliver("alice", mail(number), number)
        shard.archive(archive, shard.index - 1, shard.index, number)
    shard.backup(store, "b-2", first)


def subjects(store: Folder, at_ms: int | None, scratch: Path) -> list[int]:
    """Of alice's mail at a time."""
    when = None if at_ms is None else START_MS + at_ms
    with shard_at(store, CLUSTER, GROUP, when, folder=scratch) as then:
        was = account_at(then, "alice")
        assert was is not None
        raws = [was.raw(each) for each in was.messages]
        return [int(raw.split(b"\r\n")[0].split()[1]) for raw in raws]


# ---- files ---------------------------------------------------------------------------------------


def test_every_bit_of_a_sealed_file_is_proven() -> None:
    """Header included: another case, kind or length is as wrong as other data."""
    sealed = seal(Kind.STATE, b"rows")
    assert unseal(Kind.STATE, "it", sealed) == b"rows"
    for at in range(len(sealed) * 8):
        flipped = bytearray(sealed)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises((DamagedBackupError, NewerBackupError)):
            unseal(Kind.STATE, "it", bytes(flipped))
    with pytest.raises(DamagedBackupError):
        unseal(Kind.STATE, "it", sealed[:-1])
    with pytest.raises(DamagedBackupError):
        unseal(Kind.BODIES, "it", sealed)


def test_a_newer_format_is_told_apart_from_damage() -> None:
    """What to do about it is another thing."""
    sealed = seal(Kind.HEAD, b"{}").replace(b"mailraft-backup 1 ", b"mailraft-backup 2 ")
    with pytest.raises(NewerBackupError):
        unseal(Kind.HEAD, "it", sealed)


def test_a_folder_holds_whole_files_only(store: Folder, tmp_path: Path) -> None:
    """What is being written is not listed, and a file that is replaced is never half of each."""
    store.put("a/b/one", b"1")
    store.put("a/two", b"22")
    (tmp_path / "store" / "a" / ".partial").write_bytes(b"half")
    assert list(store.list("a/")) == [("a/b/one", 1), ("a/two", 2)]
    assert list(store.list("a/b/")) == [("a/b/one", 1)]
    assert list(store.list("none/")) == []
    store.put("a/two", b"3")
    assert (store.get("a/two"), store.has("a/two")) == (b"3", True)
    store.delete("a/two")
    store.delete("a/two")
    assert not store.has("a/two")
    with pytest.raises(NotStoredError):
        store.get("a/two")
    with pytest.raises(NoStoreError):
        Folder(tmp_path / "nowhere")


def test_one_changes_a_store_at_a_time(store: Folder) -> None:
    """A prune would remove what a backup is about to name."""
    with store.lock():
        with pytest.raises(StoreBusyError), store.lock():
            raise AssertionError("two hold it")
        with pytest.raises(StoreBusyError):
            prune(store, CLUSTER, 1)
    with store.lock():
        pass


# ---- verify --------------------------------------------------------------------------------------


def test_verify_counts_what_was_backed_up(shard: BackedUpShard, store: Folder) -> None:
    """Every row, body and entry is read."""
    filled(shard, store)
    found = verify(store, CLUSTER)
    assert found.problems == []
    assert (found.backups, found.shards, found.segments, found.entries) == (2, 2, 10, 10)
    assert found.bodies == 10 + 20
    assert verify(store, CLUSTER, ("b-2",)).backups == 1
    newest = backups(store, CLUSTER)[-1].shards[0]
    assert (newest.accounts, newest.messages, newest.bodies) == (1, 20, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_verify_finds_a_flipped_bit(
    shard: BackedUpShard, store: Folder, tmp_path: Path, kind: str
) -> None:
    """In each kind of file, anywhere; and a file that is cut, or gone."""
    filled(shard, store)
    newest = backups(store, CLUSTER)[-1].shards[0]
    name = {
        "backups": f"clusters/{CLUSTER}/backups/b-1",
        "log": next(name for name, _ in store.list(f"clusters/{CLUSTER}/log/")),
        "head": f"clusters/{CLUSTER}/head",
        "state": newest.state[0].name,
        "bodies": newest.body_chunks[0].name,
    }[kind]
    path = tmp_path / "store" / name
    whole = path.read_bytes()
    chance = random.Random(kind)
    for _ in range(30):
        at = chance.randrange(len(whole) * 8)
        flipped = bytearray(whole)
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(flipped)
        assert verify(store, CLUSTER).problems, f"bit {at} of {name}"
    path.write_bytes(whole[:-1])
    assert verify(store, CLUSTER).problems
    if kind in ("state", "bodies"):
        path.unlink()
        assert verify(store, CLUSTER).problems
    path.write_bytes(whole)
    assert verify(store, CLUSTER).problems == []


def test_verify_finds_a_body_that_no_chunk_holds(shard: BackedUpShard, store: Folder) -> None:
    """A manifest that is whole, but does not name what its state needs."""
    filled(shard, store)
    newest = backups(store, CLUSTER)[-1]
    told = newest.encode().partition(b"\n")[2].decode()
    gone = newest.shards[0].body_chunks[0]
    assert gone.sha256 in told
    wrong = json.loads(told)
    del wrong["shards"][0]["body_chunks"][0]
    store.put(newest.name, seal(Kind.MANIFEST, json.dumps(wrong).encode()))
    (problem,) = verify(store, CLUSTER).problems
    assert "10 bodies are missing" in problem


# ---- incremental and prune -----------------------------------------------------------------------


def test_an_incremental_backup_stores_only_what_is_new(
    shard: BackedUpShard, store: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bodies by their position, state by stretches of rows that did not change."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES_MIN", 2_000)
    monkeypatch.setattr(chunks, "CUT_ONE_IN", 8)
    for number in range(200):
        shard.deliver("alice", mail(number), number)
    first = shard.backup(store, "b-1")
    shard.deliver("alice", mail(200), 200)
    second = shard.backup(store, "b-2", first)
    assert second.new_bytes < first.new_bytes / 10
    assert second.size_bytes > first.size_bytes
    shared = {each.sha256 for each in first.shards[0].state} & {
        each.sha256 for each in second.shards[0].state
    }
    assert len(shared) > len(first.shards[0].state) / 2
    assert verify(store, CLUSTER).problems == []


def test_prune_keeps_what_a_kept_backup_needs(
    shard: BackedUpShard, store: Folder, tmp_path: Path
) -> None:
    """Chunks are shared; the log is needed from the oldest kept backup on."""
    filled(shard, store)
    archive = Archive(store, CLUSTER)
    archive.open()
    for number in range(20, 23):
        shard.deliver("alice", mail(number), number)
        shard.archive(archive, shard.index - 1, shard.index, number)
    size_bytes = sum(size for _, size in store.list(""))
    would = prune(store, CLUSTER, 1, dry_run=True)
    assert (would.backups, would.kept) == (("b-1",), 1)
    assert sum(size for _, size in store.list("")) == size_bytes
    done = prune(store, CLUSTER, 1)
    assert done == would
    assert sum(size for _, size in store.list("")) == size_bytes - done.freed_bytes
    assert [each.id for each in backups(store, CLUSTER)] == ["b-2"]
    assert verify(store, CLUSTER).problems == []
    assert done.segments == 10
    assert subjects(store, None, tmp_path) == list(range(23))
    assert prune(store, CLUSTER, 1).freed_bytes == 0


def test_prune_removes_nothing_when_it_cannot_know(
    shard: BackedUpShard, store: Folder, tmp_path: Path
) -> None:
    """A manifest that cannot be read may need any chunk."""
    filled(shard, store)
    path = tmp_path / "store" / backups(store, CLUSTER)[1].name
    path.write_bytes(path.read_bytes()[:-1])
    before = list(store.list(""))
    with pytest.raises(DamagedBackupError):
        prune(store, CLUSTER, 1)
    assert list(store.list("")) == before


def test_chunks_of_dead_bodies_are_not_taken_over(
    shard: BackedUpShard, store: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a store would keep expunged mail for ever."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES_MAX", 4_000)
    for number in range(10):
        shard.deliver("alice", mail(number), number)
    first = shard.backup(store, "b-1")
    window = command_pb2.UpdateAccount(account_id="alice", undelete_window_ms=1)
    shard.do(command_pb2.Command(time_ms=START_MS, update_account=window))
    wanted = command_pb2.Selection(messages=range(1, 6))
    expunge = command_pb2.ExpungeMessages(account_id="alice", messages=wanted)
    shard.do(command_pb2.Command(time_ms=START_MS + 20, expunge_messages=expunge))
    shard.keep_up(START_MS + 100 * DAY_MS)
    shard.keep_up(START_MS + 200 * DAY_MS)
    second = shard.backup(store, "b-2", first)
    assert second.shards[0].bodies == 5
    taken_over = len(second.shards[0].body_chunks)
    assert 0 < taken_over < len(first.shards[0].body_chunks)
    assert verify(store, CLUSTER).problems == []


def test_a_store_of_several_clusters_asks_which(store: Folder) -> None:
    """Nobody restores the wrong one by leaving out an option."""
    with pytest.raises(BackupNotFoundError):
        only_cluster(store)
    store.put("clusters/a/head", b"")
    assert only_cluster(store) == "a"
    store.put("clusters/b/head", b"")
    with pytest.raises(BackupNotFoundError) as refused:
        only_cluster(store)
    assert "a, b" in refused.value.hint


# ---- the log -------------------------------------------------------------------------------------


def test_replay_gives_the_state_of_every_replica(
    shard: BackedUpShard, store: Folder, tmp_path: Path
) -> None:
    """The same digest over all effects, from either backup, at every index that was archived."""
    filled(shard, store)
    for backup in ("b-1", "b-2"):
        with shard_at(store, CLUSTER, GROUP, None, backup=backup, folder=tmp_path) as then:
            index, _, digest = then.position
            assert (index, digest) == (shard.index, shard.digests[shard.index])
            assert list(account_ids(then)) == ["alice"]
    for number in range(9, 19):
        with shard_at(store, CLUSTER, GROUP, START_MS + number, folder=tmp_path) as then:
            index, _, digest = then.position
            assert digest == shard.digests[index]
        assert subjects(store, number, tmp_path) == list(range(number + 1))


def test_a_time_that_is_not_covered_is_refused(
    shard: BackedUpShard, store: Folder, tmp_path: Path
) -> None:
    """Before the first backup, or later than anything proves."""
    filled(shard, store)
    with pytest.raises(NotArchivedError):
        subjects(store, 8, tmp_path)  # before the first backup's clock
    assert subjects(store, 19, tmp_path) == list(range(20))
    with pytest.raises(NotArchivedError):
        subjects(store, 20, tmp_path)  # nothing proves that no more came until then
    archive = Archive(store, CLUSTER)
    archive.open()
    archive.add({}, {GROUP: Reach(shard.index, START_MS + 20)})
    assert subjects(store, 20, tmp_path) == list(range(20))


def test_a_time_within_an_entry(shard: BackedUpShard, store: Folder, tmp_path: Path) -> None:
    """Commands that travelled in one entry have stamps of their own."""
    first = shard.backup(store, "b-1")
    raw = mail(0)
    shard.do(*(delivery("alice", raw, number) for number in (5, 6, 7)), raw=raw)
    shard.archive(Archive(store, CLUSTER), first.shards[0].index, shard.index, 100)
    for at_ms, count in ((4, 0), (5, 1), (6, 2), (7, 3), (99, 3)):
        assert len(subjects(store, at_ms, tmp_path)) == count


def test_a_gap_ends_what_a_backup_before_it_can_tell(
    shard: BackedUpShard, store: Folder, tmp_path: Path
) -> None:
    """And a backup behind it goes on; never is what was missed passed over in silence."""
    archive = Archive(store, CLUSTER)
    for number in range(3):
        shard.deliver("alice", mail(number), number)
    base = shard.backup(store, "b-1").shards[0].index
    for number in range(3, 9):
        shard.deliver("alice", mail(number), number)
    shard.archive(archive, base, base + 2, 4)
    shard.archive(archive, base + 4, base + 6, 8)  # two entries are missing
    assert [each.index for each in entries_after(store, CLUSTER, GROUP, base)] == [
        base + 1,
        base + 2,
    ]
    assert subjects(store, 3, tmp_path) == [0, 1, 2, 3]
    with pytest.raises(NotArchivedError):
        subjects(store, 6, tmp_path)
    shard.backup(store, "b-2")
    assert subjects(store, 8, tmp_path) == list(range(9))


def test_the_archive_goes_on_where_a_crash_left_it(
    shard: BackedUpShard, store: Folder, tmp_path: Path
) -> None:
    """A segment without its head counts; the same entries twice are applied once."""
    filled(shard, store)
    head = store.get(f"clusters/{CLUSTER}/head")
    archive = Archive(store, CLUSTER)
    archive.open()
    at = archive.reach[GROUP].index
    shard.deliver("alice", mail(20), 20)
    shard.archive(archive, at, at + 1, 20)
    store.put(f"clusters/{CLUSTER}/head", head)
    again = Archive(store, CLUSTER)
    again.open()
    assert again.reach[GROUP].index == at + 1
    shard.archive(again, at, at + 1, 21)
    assert subjects(store, 20, tmp_path) == list(range(21))


def test_a_damaged_log_is_not_replayed(shard: BackedUpShard, store: Folder, tmp_path: Path) -> None:
    """Not even its good part: what lies behind the damage is not known."""
    filled(shard, store)
    name = [name for name, _ in store.list(f"clusters/{CLUSTER}/log/")][5]
    path = tmp_path / "store" / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    with pytest.raises(ClusterError, match="damaged"):
        subjects(store, 18, tmp_path)

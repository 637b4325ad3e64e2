"""`mailraft backup` where no cluster is needed: list, verify, prune; and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from backed_up_shard import CLUSTER, GROUP, START_MS, BackedUpShard
from mailraft.cluster.backup.archive import Archive, Reach
from mailraft.cluster.backup.manifest import backups
from mailraft.cluster.backup.restore import settings_at
from mailraft.cluster.backup.store import Folder
from mailraft.cluster.cli import app
from mailraft.cluster.cli.restore import time_ms


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two backups and a segment."""
    store = Folder(tmp_path / "store", create=True)
    shard = BackedUpShard(tmp_path / "engine")
    shard.create("alice")
    first = shard.backup(store, "b-1")
    shard.deliver("alice", b"Subject: 1\r\n\r\n")
    shard.archive(Archive(store, CLUSTER), shard.index - 1, shard.index, 0)
    shard.backup(store, "b-2", first)
    Archive(store, CLUSTER).add({}, {GROUP: Reach(shard.index, START_MS)})
    shard.close()
    return tmp_path / "store"


def run(*arguments: str) -> Result:
    """One command."""
    return CliRunner().invoke(app, arguments)


def test_list_tells_backups_and_how_far_the_log_goes(folder: Path) -> None:
    """As a table and as JSON."""
    done = run("backup", "list", "--store", str(folder))
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["BACKUP", "b-1", "b-2", "archived"]
    assert lines[-1] == "archived until 2027-01-15T08:00:00Z"
    told = json.loads(run("backup", "list", "--store", str(folder), "-o", "json").stdout)
    assert [each["parent"] for each in told["backups"]] == ["", "b-1"]
    assert told["archived_until_ms"] == START_MS


def test_verify_exits_with_1_for_damage(folder: Path) -> None:
    """What is wrong stands on standard error, one line each."""
    done = run("backup", "verify", "--store", str(folder))
    assert (done.exit_code, done.stdout[:24]) == (0, "OK backups=2 shards=2 ro")
    chunk = next(path for path in (folder / "chunks").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1])
    done = run("backup", "verify", "--store", str(folder))
    assert (done.exit_code, done.stdout.split()[0]) == (1, "DAMAGED")
    assert f"chunks/{chunk.parent.name}/{chunk.name} is damaged" in done.stderr
    told = json.loads(run("backup", "verify", "--store", str(folder), "-o", "json").stdout)
    assert told["problems"]
    assert run("backup", "verify", "b-3", "--store", str(folder)).exit_code != 0


def test_prune_tells_before_it_does(folder: Path) -> None:
    """--dry-run changes nothing."""
    before = sorted(folder.rglob("*"))
    done = run("backup", "prune", "--keep", "1", "--dry-run", "--store", str(folder))
    assert done.stdout.startswith("would be: removed backups=1 ")
    assert [path for path in sorted(folder.rglob("*")) if path.name != ".lock"] == before
    done = run("backup", "prune", "--keep", "1", "--store", str(folder))
    assert done.stdout.startswith("removed backups=1 ")
    assert run("backup", "verify", "--store", str(folder)).exit_code == 0


def test_a_wrong_store_or_time_is_a_usage_error(tmp_path: Path) -> None:
    """Exit status 2, and a hint."""
    done = run("backup", "list", "--store", str(tmp_path / "nowhere"))
    assert (done.exit_code, "NO_BACKUP_STORE" in done.stderr) == (2, True)
    done = run("restore", "account", "alice", "--at", "yesterday", "--store", str(tmp_path))
    assert (done.exit_code, "2026-11-24T12:00:00Z" in done.stderr) == (2, True)


def test_a_time_without_a_zone_is_utc() -> None:
    """As `backup list` prints it."""
    assert time_ms("2027-01-15T08:00:00Z") == START_MS
    assert time_ms("2027-01-15T08:00:00") == START_MS
    assert time_ms("2027-01-15T09:00:00.001+01:00") == START_MS + 1


def test_the_settings_of_a_cluster_come_from_the_backup_that_serves(folder: Path) -> None:
    """The newest before that time, or the one that is named; of a later release what is known."""
    store = Folder(folder)
    base = backups(store, CLUSTER)[-1]
    wanted = {"replicasPerShard": 5, "undeleteWindowMs": "1000", "etag": "s7", "ofLater": True}
    for name, began_ms, settings in (("b-3", 3_000, wanted), ("b-4", 4_000, {})):
        later = replace(base, id=name, began_ms=began_ms, settings=settings)
        store.put(later.name, later.encode())
    told = settings_at(store, CLUSTER, at_ms=3_500)
    assert told is not None
    assert (told.replicas_per_shard, told.undelete_window_ms, told.etag) == (5, 1_000, "")
    assert settings_at(store, CLUSTER, backup="b-3") == told
    assert settings_at(store, CLUSTER, backup="b-4") is None
    assert settings_at(store, CLUSTER, at_ms=10) is None

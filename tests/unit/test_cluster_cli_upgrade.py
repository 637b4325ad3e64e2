"""mailraft upgrade and downgrade, with a cluster that says what the test wants."""

from __future__ import annotations

import json
from typing import Self

import pytest
from typer.testing import CliRunner, Result

from mailraft.cluster.cli import app
from mailraft.cluster.control.overview import overview
from mailraft.cluster.control.upgrades import level_to_enable
from mailraft.cluster.errors import ExitCode
from mailraft.v1 import admin_pb2
from mailraft.wire import errors
from seen_cluster import seen, silent

SERVER = ("--server", "127.0.0.1:1", "--insecure")


class FakeCluster:
    """Stands in for Operator: a cluster at level 1, that decides as the real one does."""

    def __init__(self, *levels: int) -> None:
        self.seen = seen()
        self.bring(*levels)
        self.seen.map.ClearField("feature_level")
        self.led_by_old = False

    def bring(self, *levels: int) -> None:
        for number, level in enumerate(levels, 1):
            version = f"0.{level + 1}.0"
            self.seen.reports[number].feature_level = level
            self.seen.reports[number].version = version
            self.seen.map.nodes[number - 1].version = version

    def __call__(self, *_: object, **__: object) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def status(self) -> admin_pb2.GetClusterStatusResponse:
        told = overview(self.seen)
        if self.led_by_old:
            told.ClearField("feature_level")
            for node in told.nodes:
                node.ClearField("feature_level")
        return told

    async def finalize(self, feature_level: int = 0, *, validate: bool = False) -> int:
        if self.led_by_old:
            raise errors.UnimplementedError("FinalizeUpgrade is not there yet")
        level = level_to_enable(self.seen, feature_level)
        if not validate:
            self.seen.map.feature_level = level
        return level


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """What every command talks to: n3 is not upgraded yet."""
    made = FakeCluster(2, 2, 1)
    for module in ("operator", "picture"):
        monkeypatch.setattr(f"mailraft.cluster.{module}.Operator", made)
    return made


def run(*words: str) -> Result:
    """Run one command."""
    return CliRunner().invoke(app, [*words, *SERVER])


def first_line(*words: str) -> str:
    """Of one that does well."""
    told = run(*words)
    assert told.exit_code == ExitCode.OK, told.output
    return told.stdout.splitlines()[0]


def test_an_upgrade_from_its_middle_to_its_end(fake: FakeCluster) -> None:
    """The status says what comes next; finalize is refused until that is done, then done once."""
    before = "feature_level=1 versions: 0.3.0 on 2, 0.2.0 on 1; next: bring n3 to 0.3.0 or newer"
    assert first_line("upgrade", "status") == before
    told = run("upgrade", "finalize", "--yes")
    assert told.exit_code == ExitCode.FAILED
    assert "too old: n3 (0.2.0, level 1) (FEATURE_NOT_ENABLED)" in told.stderr
    fake.bring(2, 2, 2)
    assert first_line("upgrade", "status").endswith(
        "next: mailraft upgrade finalize: enables feature level 2"
    )
    assert first_line("upgrade", "finalize", "--dry-run") == "would be: feature level 1→2"
    assert fake.seen.map.feature_level == 0
    told = run("upgrade", "finalize")
    assert (told.exit_code, fake.seen.map.feature_level) == (ExitCode.USAGE, 0)
    assert "add --yes" in told.stderr
    assert first_line("upgrade", "finalize", "--yes") == "feature level 1→2"
    assert first_line("upgrade", "finalize") == "feature level 2→2"
    assert first_line("upgrade", "status").endswith("; nothing to do")


def test_a_leader_that_is_too_old_is_told_of(fake: FakeCluster) -> None:
    """It knows of no levels: neither tells them nor finalizes."""
    fake.led_by_old = True
    assert "next: go on with the nodes" in first_line("upgrade", "status")
    told = run("upgrade", "finalize", "--yes")
    assert told.exit_code == ExitCode.FAILED
    assert "led by a version that has no feature levels" in told.stderr


def test_one_version_comes_before_the_end(fake: FakeCluster) -> None:
    """Two that understand the same are still an upgrade that is under way."""
    fake.bring(2, 2, 2)
    fake.seen.map.nodes[2].version = "0.3.1"
    assert first_line("upgrade", "status").endswith("next: bring all nodes to one version")


def test_a_silent_node_is_next(fake: FakeCluster) -> None:
    """It has to be asked before a level is enabled."""
    fake.bring(2, 2, 2)
    fake.seen = silent(fake.seen, 3)
    assert "next: n3 cannot be asked" in first_line("upgrade", "status")


def test_the_way_back_is_open_until_finalize(fake: FakeCluster) -> None:
    """Not while a shard lacks a replica, since a restart takes another; never afterwards."""
    assert first_line("downgrade", "validate") == (
        "possible, node by node, to 0.2.0 or newer: feature level 1"
    )
    well, fake.seen = fake.seen, silent(fake.seen, 2)
    told = run("downgrade", "validate")
    assert told.exit_code == ExitCode.FAILED
    assert "not possible: n2 is silent; 3 shards lack live replicas" in told.stdout
    fake.seen = well
    well.map.feature_level = 2
    told = run("downgrade", "validate", "-o", "json")
    assert told.exit_code == ExitCode.FAILED
    [reason] = json.loads(told.stdout)["reasons"]
    assert "no version before 0.3.0 understands it" in reason

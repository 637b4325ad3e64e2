"""Commands that operate a cluster, with a cluster that says what the test wants."""

from __future__ import annotations

import json
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import pytest
from typer.testing import CliRunner, Result

from mailraft.cluster import mapfile
from mailraft.cluster.cli import app
from mailraft.cluster.control.overview import overview
from mailraft.cluster.errors import ExitCode
from mailraft.cluster.meta.settings import DEFAULTS
from mailraft.v1 import admin_pb2, cluster_pb2, job_pb2
from mailraft.wire import errors
from seen_cluster import seen, silent

SERVER = ("--server", "127.0.0.1:1", "--insecure")
RUNNING, SUCCEEDED = job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_SUCCEEDED


DRAIN = job_pb2.JobSpec(drain=job_pb2.DrainSpec(node_id=3))
REBALANCE = job_pb2.JobSpec(rebalance=job_pb2.RebalanceSpec())


def job(
    spec: job_pb2.JobSpec, number: int = 1, state: job_pb2.JobState.ValueType = RUNNING
) -> job_pb2.Job:
    """Two seconds of it, once it is finished."""
    told = job_pb2.Job(
        id=f"j{number}", spec=spec, state=state, created_time_ms=1_000, activity="moves replicas"
    )
    told.progress.steps_done, told.progress.steps_total = 1, 3
    if state != RUNNING:
        told.finished_time_ms = 3_000
    return told


class FakeCluster:
    """Stands in for Operator; remembers what it was told to change."""

    def __init__(self) -> None:
        self.changed: list[tuple[str, Any]] = []
        self.seen = seen()
        self.all_jobs: list[job_pb2.Job] = []
        self.ends = SUCCEEDED
        self.conflict = False

    def __call__(self, *_: object, **__: object) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def status(self) -> admin_pb2.GetClusterStatusResponse:
        return overview(self.seen)

    async def newest_map(self) -> cluster_pb2.ClusterMap:
        return self.seen.map

    async def add_node(self, node: cluster_pb2.Node, *, validate: bool = False) -> cluster_pb2.Node:
        self._note("add", node.name, validate=validate)
        told = cluster_pb2.Node()
        told.CopyFrom(node)
        told.id = 4
        if not validate and len(self.seen.map.nodes) < told.id:
            self.seen.map.nodes.append(told)
        return told

    async def drain(self, node: int, *, validate: bool = False) -> job_pb2.Job:
        if self.conflict:
            raise errors.JobConflictError("job j7 does the same")
        self._note("drain", node, validate=validate)
        return job(DRAIN)

    async def remove(self, node: int, *, validate: bool = False) -> cluster_pb2.Node:
        self._note("remove", node, validate=validate)
        decommission = job_pb2.DecommissionSpec(node_id=node)
        self.all_jobs.insert(0, job(job_pb2.JobSpec(decommission=decommission)))
        return cluster_pb2.Node(id=node)

    async def rebalance(
        self, *, concurrent: int = 0, validate: bool = False
    ) -> admin_pb2.RebalanceResponse:
        self._note("rebalance", concurrent, validate=validate)
        moves = [job_pb2.MoveSpec(shard=1, from_node_id=1, to_node_id=4)]
        return admin_pb2.RebalanceResponse(job=job(REBALANCE), moves=moves)

    async def settings(self) -> admin_pb2.Settings:
        told = admin_pb2.Settings()
        told.CopyFrom(DEFAULTS)
        told.etag = "s1"
        return told

    async def change_settings(
        self, wanted: admin_pb2.Settings, fields: list[str], *, validate: bool = False
    ) -> admin_pb2.Settings:
        self._note("settings", {each: getattr(wanted, each) for each in fields}, validate=validate)
        told = await self.settings()
        for each in fields:
            setattr(told, each, getattr(wanted, each))
        return told

    async def job(self, job_id: str) -> job_pb2.Job:
        return next(each for each in self.all_jobs if each.id == job_id)

    async def jobs(self, *, open_only: bool = False, parent: str = "") -> list[job_pb2.Job]:
        return [
            each
            for each in self.all_jobs
            if each.parent_job_id == parent and (not open_only or each.state == RUNNING)
        ]

    async def cancel(self, job_id: str) -> job_pb2.Job:
        self._note("cancel", job_id, validate=False)
        return await self.job(job_id)

    async def watch(self, job_id: str, *, deadline_s: float) -> AsyncIterator[job_pb2.Job]:
        assert deadline_s > 0
        yield job(DRAIN, int(job_id[1:]))
        yield job(DRAIN, int(job_id[1:]), self.ends)

    def _note(self, what: str, value: Any, *, validate: bool) -> None:
        if not validate:
            self.changed.append((what, value))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """What every command talks to."""
    made = FakeCluster()
    for module in ("operator", "picture"):
        monkeypatch.setattr(f"mailraft.cluster.{module}.Operator", made)
    return made


def run(*words: str) -> Result:
    """Run one command."""
    return CliRunner().invoke(app, [*words, *SERVER])


def lines(*words: str) -> list[str]:
    """Of one that does well."""
    told = run(*words)
    assert told.exit_code == ExitCode.OK, told.output
    return told.stdout.splitlines()


def test_a_drain_is_waited_for(fake: FakeCluster) -> None:
    """One line answers; how it goes is on standard error."""
    told = run("node", "drain", "n3")
    assert told.stdout == "n3 leaders 0→0 in 2.0 s\n"
    assert told.stderr.splitlines()[0] == "drain n3: 1/3 moves replicas"
    assert fake.changed == [("drain", 3)]


def test_a_drain_that_goes_on_already_is_joined(fake: FakeCluster) -> None:
    """The same command again waits for the job that there is."""
    fake.conflict, fake.all_jobs = True, [job(REBALANCE, 8), job(DRAIN, 7)]
    assert lines("node", "drain", "n3", "--no-wait") == ["n3 drains: job j7"]
    fake.all_jobs = []
    told = run("node", "drain", "n3")
    assert (told.exit_code, told.stdout) == (ExitCode.FAILED, "")
    assert "(JOB_CONFLICT): see what goes on: mailraft job list --open" in told.stderr


def test_a_job_that_ends_otherwise(fake: FakeCluster) -> None:
    """Is an error, with where to look."""
    fake.ends = job_pb2.JOB_STATE_CANCELLED
    told = run("node", "drain", "n3")
    assert (told.exit_code, told.stdout) == (ExitCode.FAILED, "")
    last = told.stderr.splitlines()[-1]
    assert last.startswith("error: job j1 (drain n3) was cancelled")
    assert last.endswith("(JOB_CANCELLED): see: mailraft job show j1")


DRY = [
    ("node", "drain", "n3"),
    ("node", "add", "n4", "h4:7400", "--write-config", "n4"),
    ("node", "remove", "n3", "--force", "--yes"),
    ("rebalance", "start"),
    ("rebalance", "pause"),
    ("rebalance", "limit", "4"),
    ("settings", "set", "concurrent_moves=4"),
    ("job", "cancel", "j1"),
]


@pytest.mark.parametrize("words", DRY, ids=" ".join)
def test_a_dry_run_changes_nothing(
    fake: FakeCluster, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the cluster nor here; without it the same command does."""
    monkeypatch.chdir(tmp_path)
    fake.all_jobs = [job(REBALANCE)]
    told = lines(*words, "--dry-run")
    assert told[0].startswith(("would be: ", "plan: "))
    assert fake.changed == []
    assert list(tmp_path.iterdir()) == []
    lines(*words)
    assert fake.changed


def test_a_node_is_added_with_all_that_it_needs(fake: FakeCluster, tmp_path: Path) -> None:
    """Settings and a map that `mailraft node --config` takes, and the next steps."""
    folder = tmp_path / "n4"
    told = lines("node", "add", "n4", "127.0.0.1:7404", "--write-config", str(folder))
    assert told[0] == "n4 is node 4 at 127.0.0.1:7404"
    assert any(f"mailraft node --config {folder / 'node.toml'}" in line for line in told)
    assert told[-1].endswith("mailraft rebalance start")
    values = tomllib.loads((folder / "node.toml").read_text())
    assert (values["node"], values["listen_address"]) == (4, "127.0.0.1:7404")
    assert mapfile.load(folder / "map.json") == fake.seen.map
    checked = CliRunner().invoke(app, ["config", "check", str(folder / "node.toml")])
    assert checked.stdout.startswith("OK node n=4 listens 127.0.0.1:7404"), checked.stderr
    again = run("node", "add", "n4", "127.0.0.1:7404", "--write-config", str(folder))
    assert again.exit_code == ExitCode.USAGE
    assert "is there already" in again.stderr


@pytest.mark.parametrize("options", [(), ("--yes",), ("--force",)])
def test_a_node_is_not_given_up_by_mistake(fake: FakeCluster, options: tuple[str, ...]) -> None:
    """It takes --force, and then --yes where nobody can be asked."""
    told = run("node", "remove", "n3", *options)
    assert (told.exit_code, told.stdout) == (ExitCode.USAGE, "")
    assert "(NOT_CONFIRMED)" in told.stderr
    assert fake.changed == []
    assert lines("node", "remove", "n3", "--force", "--yes") == [
        "n3 replicas 2→0 in 2.0 s; it has left"
    ]


def test_a_plan(fake: FakeCluster) -> None:
    """Moves, bytes as the replicas there are let expect, and what it does for the skew."""
    told = run("rebalance", "plan", "-o", "json")
    planned = json.loads(told.stdout)
    assert planned["moves"] == [{"shard": 1, "from": 1, "to": 4}]
    assert planned["bytes"] == (3 << 30) // 6
    assert lines("rebalance", "plan")[0] == "plan: 1 moves, about 512.0 MiB, skew 1.00→1.00"
    assert fake.changed == []


def test_settings(fake: FakeCluster) -> None:
    """Times have units both ways; JSON has milliseconds."""
    assert lines("settings", "get", "replace_after") == ["10m"]
    told = run("settings", "get", "-o", "json")
    assert json.loads(told.stdout)["replace_after_ms"] == 600_000
    assert lines("settings", "set", "replace_after=90s", "concurrent_moves=4") == [
        "concurrent_moves 2→4, replace_after 10m→90s"
    ]
    assert fake.changed == [("settings", {"replace_after_ms": 90_000, "concurrent_moves": 4})]
    levels = ("default_consistency=local", "default_ack=each_zone", "allow_accepted=yes")
    assert lines("settings", "set", *levels) == [
        "default_consistency session→local, default_ack quorum→each_zone, allow_accepted no→yes"
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("replace_after=30", "a time with its unit is needed"),
        ("replace_after=", "a time with its unit is needed"),
        ("concurrent_moves=-1", "a number is needed"),
        ("concurrent_moves", "a number is needed"),
        ("default_ack=most", "one of accepted, quorum, replicas, each_zone, all is needed"),
        ("allow_accepted=1", "yes or no is needed"),
        ("nothing=1", "there is no setting 'nothing'"),
    ],
)
def test_a_bad_setting(fake: FakeCluster, change: str, told: str) -> None:
    """Is found before anything is changed, together with a good one too."""
    result = run("settings", "set", "concurrent_moves=1", change)
    assert result.exit_code == ExitCode.USAGE
    assert told in result.stderr
    assert fake.changed == []


def test_what_is_wrong_decides_the_exit_status(fake: FakeCluster) -> None:
    """The same for all that tell of health; only what is asked for counts."""
    checks = [("cluster", "status"), ("check", "health"), ("alarm", "list"), ("shard", "show", "1")]
    for words in (*checks, ("node", "status", "n3")):
        assert run(*words).exit_code == ExitCode.OK
    fake.seen = silent(seen(), 3)
    for words in checks:
        assert run(*words).exit_code == ExitCode.FAILED
    assert run("node", "status", "n3").exit_code == ExitCode.UNAVAILABLE
    assert run("node", "status", "n2").exit_code == ExitCode.OK
    fake.seen = silent(seen(), 1)
    for words in (("cluster", "status"), ("check", "health"), ("shard", "show", "1")):
        assert run(*words).exit_code == ExitCode.UNAVAILABLE


@pytest.mark.parametrize(
    "words",
    [("node", "status", "n9"), ("shard", "show", "9"), ("shard", "move", "1", "--from", "9")],
)
def test_what_is_not_there(fake: FakeCluster, words: tuple[str, ...]) -> None:
    """Has its own exit status."""
    told = run(*words)
    assert (told.exit_code, told.stdout) == (ExitCode.NOT_FOUND, "")
    assert "(NOT_FOUND)" in told.stderr
    assert fake.changed == []


@pytest.mark.usefixtures("fake")
def test_a_shard_is_named_as_tables_have_it() -> None:
    """Or by its number alone."""
    for name in ("s1", "1"):
        assert lines("shard", "show", name)[0].startswith("s1 ok leader=n1 term=1 ")
    assert lines("shard", "show", "meta")[0].startswith("meta ok leader=n1 ")
    for name in ("s", "x1", "-1", "1" * 10, "s\N{ARABIC-INDIC DIGIT ONE}"):
        assert run("shard", "show", name).exit_code == ExitCode.USAGE


def test_tables_fit_a_terminal(fake: FakeCluster) -> None:
    """Of 80 columns, also when something is wrong."""
    fake.seen = silent(seen(), 3)
    fake.all_jobs = [job(REBALANCE), job(DRAIN, 2)]
    for words in (
        ("cluster", "status"),
        ("node", "list"),
        ("shard", "list"),
        ("shard", "show", "1"),
        ("job", "list"),
        ("alarm", "list"),
        ("settings", "get"),
    ):
        for line in run(*words).stdout.splitlines():
            assert len(line) <= 80, line


def test_a_process_is_no_command_of_the_cluster() -> None:
    """--config belongs to the node that runs here."""
    told = run("node", "--config", "node.toml", "list")
    assert told.exit_code == ExitCode.USAGE

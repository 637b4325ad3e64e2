"""mailraft config check: what a start would trip over is told without one."""

import datetime as dt
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from mailraft.cluster import certs, mapfile, preflight, settings
from mailraft.cluster.cli import app
from mailraft.cluster.errors import ExitCode
from mailraft.cluster.maps import FILE_NAME
from mailraft.cluster.settings import RouterSettings
from mailraft.v1 import cluster_pb2


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MAILRAFT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The settings of node 3, with all that a start needs."""
    nodes = [
        cluster_pb2.Node(id=id_, name=f"n{id_}", address=f"127.0.0.1:740{id_}", weight_milli=1000)
        for id_ in (1, 2, 3)
    ]
    mapfile.save(tmp_path / "map.json", mapfile.make(nodes, 2))
    certs.ensure(tmp_path / "certs", certs.names_of([1, 3]))
    return _written(tmp_path / "node.toml")


NODE = {
    "node": 3,
    "data_dir": "data",
    "listen_address": "127.0.0.1:7403",
    "map_file": "map.json",
    "certs_folder": "certs",
}


def _written(path: Path, **changes: str | int | bool) -> Path:
    settings.dump(path, {**NODE, **changes})  # type: ignore[dict-item]  # wider than it is
    return path


def _check(path: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["config", "check", str(path), *options])


def test_good_settings(node: Path) -> None:
    """One line, exit status 0, and nothing is made or changed."""
    before = sorted(node.parent.rglob("*"))
    told = _check(node)
    assert (told.exit_code, told.stderr) == (ExitCode.OK, "")
    assert told.stdout == f"OK node n=3 listens 127.0.0.1:7403 data {node.parent / 'data'}\n"
    assert sorted(node.parent.rglob("*")) == before


def test_a_router(node: Path) -> None:
    """What has no number and no folder is a router's, unless --kind says else."""
    path = node.with_name("router.toml")
    path.write_text('listen_address = "127.0.0.1:0"\nmap_file = "map.json"\ninsecure = true\n')
    told = _check(path)
    assert told.stdout == f"OK router listens 127.0.0.1:0 map {node.parent / 'map.json'}\n"
    told = _check(path, "--kind", "node")
    assert told.exit_code == ExitCode.USAGE
    assert "bad setting node" in told.stderr


def _damage(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text("damaged")


def _swap_certificates(folder: Path) -> None:
    for suffix in ("pem", "key"):
        (folder / f"certs/node-1.{suffix}").replace(folder / f"certs/node-3.{suffix}")


def _another_authority(folder: Path) -> None:
    certs.ensure(folder / "others", [])
    (folder / "others/ca.pem").replace(folder / "certs/ca.pem")


def _a_file_where_the_data_goes(folder: Path) -> None:
    (folder / "data").write_text("")


def _leave(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("changes", "spoil", "setting", "told"),
    [
        ({"listen_address": "7403"}, _leave, "listen_address", "must be HOST:PORT"),
        ({"listen_address": "127.0.0.1:x"}, _leave, "listen_address", "the port must be a number"),
        ({"listen_address": "192.0.2.7:1"}, _leave, "listen_address", "no address of this machine"),
        ({"metrics_address": "192.0.2.7:1"}, _leave, "metrics_address", "no address of this"),
        (
            {"metrics_address": "127.0.0.1:7403"},
            _leave,
            "metrics_address",
            "same as listen_address",
        ),
        (
            {"insecure": True, "listen_address": "192.0.2.7:1"},
            _leave,
            "insecure",
            "only allowed while listen_address is on loopback",
        ),
        ({"node": 4}, _leave, "node", "has no node 4"),
        ({"map_file": "no.json"}, _leave, "map_file", "cannot read the cluster map"),
        ({}, _damage("map.json"), "map_file", "is not valid"),
        ({"node": 2}, _leave, "certs_folder", "node-2.pem is not there"),
        ({"certs_folder": "no"}, _leave, "certs_folder", "ca.pem is not there"),
        ({}, _damage("certs/node-3.key"), "certs_folder", "is no private key"),
        ({}, _damage("certs/node-3.pem"), "certs_folder", "is no certificate"),
        ({}, _swap_certificates, "certs_folder", "is the certificate of node-1, and peers expect"),
        ({}, _another_authority, "certs_folder", "was not signed by"),
        ({}, _a_file_where_the_data_goes, "data_dir", "is no folder"),
        ({"data_dir": "map.json/data"}, _leave, "data_dir", "is no folder"),
        ({"audit_file": "map.json/audit.jsonl"}, _leave, "audit_file", "is no folder"),
        ({"log_key_file": "absent.key"}, _leave, "log_key_file", "No such file"),
    ],
)
def test_what_is_wrong_is_named(
    node: Path,
    changes: dict[str, str | int | bool],
    spoil: Callable[[Path], object],
    setting: str,
    told: str,
) -> None:
    """One line on standard error with the setting; the exit status is that of a usage error."""
    _written(node, **changes)
    spoil(node.parent)
    result = _check(node)
    assert result.exit_code == ExitCode.USAGE, result.output
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: bad setting {setting}")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("days", [-2, certs.CERTIFICATE_DAYS + 1])
def test_a_certificate_of_another_time(
    node: Path, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not valid yet, or not any more, is told with its days."""

    class Clock(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]
            return dt.datetime.now(tz) + dt.timedelta(days=days)

    class Module:
        datetime, UTC = Clock, dt.UTC

    monkeypatch.setattr(preflight, "dt", Module)
    told = _check(node)
    assert told.exit_code == ExitCode.USAGE
    assert "bad setting certs_folder" in told.stderr
    assert "not now" in told.stderr


def test_a_certificate_that_callers_do_not_accept(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients look for one name in every certificate (wire.credentials)."""
    monkeypatch.setattr(certs, "DEFAULT_HOSTS", ("localhost",))
    (node.parent / "certs/node-3.pem").unlink()
    certs.ensure(node.parent / "certs", certs.names_of([3]))
    assert "does not name 'mailraft'" in _check(node).stderr


def test_a_folder_of_somebody_else(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may not be written is told, also when the data folder is not made yet."""
    monkeypatch.setattr(os, "access", lambda path, _: path != node.parent)
    told = _check(node)
    assert told.exit_code == ExitCode.USAGE
    assert f"bad setting data_dir: {node.parent} is not writable" in told.stderr


def test_what_may_not_be_read(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of another user is one line too."""

    def refuse(folder: Path, name: str) -> None:
        raise PermissionError(13, "Permission denied", str(folder / f"{name}.key"))

    monkeypatch.setattr(certs, "check", refuse)
    told = _check(node)
    assert told.exit_code == ExitCode.USAGE
    assert "bad setting certs_folder: cannot read" in told.stderr
    assert "node-3.key: Permission denied" in told.stderr


def test_values_and_where_they_are_from(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--show tells each setting as the process would have it."""
    monkeypatch.setenv("MAILRAFT_LOG_LEVEL", "debug")
    monkeypatch.setenv("mailraft_stop_grace_s", "7")
    told = _check(node, "--show")
    assert told.exit_code == ExitCode.OK
    lines = [line.split(maxsplit=2) for line in told.stdout.splitlines()]
    assert ["SETTING", "FROM", "VALUE"] in lines
    assert ["node", "file", "3"] in lines
    assert ["map_file", "file", str(node.parent / "map.json")] in lines
    assert ["log_level", "environment", "debug"] in lines
    assert ["stop_grace_s", "environment", "7.0"] in lines
    assert ["log_format", "default", "auto"] in lines
    assert ["insecure", "default", "false"] in lines
    told = _check(node, "--show", "-o", "json")
    answer = json.loads(told.stdout)
    assert answer["status"] == "OK"
    assert answer["settings"]["log_level"] == {"value": "debug", "from": "environment"}


def test_no_secret_is_shown(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are files, of which the folder is shown; a secret setting would be stars."""
    key = (node.parent / "certs/node-3.key").read_text().splitlines()[1]
    assert key not in _check(node, "--show").output

    class WithSecret(RouterSettings):
        token: SecretStr = SecretStr("hush")

    monkeypatch.setenv("MAILRAFT_TOKEN", "hush-hush")
    path = node.with_name("router.toml")
    path.write_text('listen_address = "127.0.0.1:0"\nmap_file = "map.json"\ninsecure = true\n')
    values = settings.effective(settings.load(WithSecret, path), path)
    assert ("token", "environment") in [(each.name, each.origin) for each in values]
    assert "hush" not in repr(values)


def test_what_may_not_be_meant(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start would not mind these, so they are notes and the exit status stays 0."""
    monkeypatch.setenv("MAILRAFT_LISTEN_ADRESS", "127.0.0.1:1")
    monkeypatch.setenv("MAILRAFT_SERVER", "127.0.0.1:7400")
    told = _check(_written(node, listen_address="127.0.0.1:7409"))
    assert told.exit_code == ExitCode.OK
    assert told.stderr.splitlines() == [
        "note: MAILRAFT_LISTEN_ADRESS in the environment is no setting of this process: ignored",
        "note: listen_address has port 7409, and others call this node at 127.0.0.1:7403",
    ]


def test_the_copy_of_the_map_counts(node: Path) -> None:
    """A node that has run goes by its own copy of the map: a later node is only there."""
    newer = mapfile.load(node.with_name("map.json"))
    newer.nodes.add(id=7, name="n7", address="127.0.0.1:7407", weight_milli=1000)
    newer.epoch += 1
    certs.ensure(node.parent / "certs", certs.names_of([7]))
    _written(node, node=7, listen_address="127.0.0.1:7407")
    assert "bad setting node: the cluster map has no node 7" in _check(node).stderr
    (node.parent / "data").mkdir()
    mapfile.save(node.parent / "data" / FILE_NAME, newer)
    assert _check(node).stdout.startswith("OK node n=7 ")
    newer.cluster_id = "another"
    mapfile.save(node.parent / "data" / FILE_NAME, newer)
    assert "bad setting data_dir" in _check(node).stderr


def test_a_map_is_made_once(tmp_path: Path) -> None:
    """It places replicas apart, and is never written over."""
    path = tmp_path / "map.json"
    nodes = [f"--node={id_}=10.0.0.{1 + id_ // 3}:740{id_}@z" for id_ in (1, 2, 3, 4)]
    arguments = ["config", "map", str(path), *nodes, "--shards", "16"]
    told = CliRunner().invoke(app, [*arguments, "-o", "json"])
    made = mapfile.load(path)
    assert json.loads(told.stdout) == {"cluster_id": made.cluster_id, "nodes": 4, "shards": 16}
    assert [(each.id, each.host, each.zone) for each in made.nodes] == [
        (1, "10.0.0.1", "z"),
        (2, "10.0.0.1", "z"),
        (3, "10.0.0.2", "z"),
        (4, "10.0.0.2", "z"),
    ]
    for shard in made.shards:
        assert len({replica.node_id > 2 for replica in shard.replicas}) == 2
    before = path.read_bytes()
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == ExitCode.USAGE
    assert "is there already" in told.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("bad", ["1", "x=h:1", "0=h:1", "1=h", "1=h:1@z --node 1=h:2"])
def test_a_map_of_bad_nodes(tmp_path: Path, bad: str) -> None:
    """One line, and no file."""
    path = tmp_path / "map.json"
    nodes = [part for each in bad.split(" --node ") for part in ("--node", each)]
    told = CliRunner().invoke(app, ["config", "map", str(path), *nodes])
    assert told.exit_code == ExitCode.USAGE
    assert told.stderr.count("\n") == 1
    assert not path.exists()


def test_a_process_that_runs_is_not_in_the_way(node: Path) -> None:
    """Settings can be checked before a restart: the port may be taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        _written(node, listen_address=f"127.0.0.1:{taken.getsockname()[1]}")
        assert _check(node).exit_code == ExitCode.OK

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mailraft.cluster import certs, logs, mapfile, ports, runfile
from mailraft.cluster.cli import app, output
from mailraft.cluster.cli.connect import find
from mailraft.cluster.errors import CertificateError, ExitCode
from mailraft.cluster.runfile import RunFile, RunningProcess
from mailraft.v1 import cluster_pb2
from mailraft.wire.access import Role
from mailraft.wire.observed import pseudonym


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster runs here, and no setting comes from outside."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MAILRAFT_")]:
        monkeypatch.delenv(name)


def _run(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


COMMANDS = [
    ("up",),
    ("node",),
    ("router",),
    ("cluster", "status"),
    ("locate",),
    ("account", "create"),
    ("account", "show"),
    ("mail", "deliver"),
    ("mail", "list"),
    ("mail", "fetch"),
    ("mail", "import"),
    ("mail", "export"),
    ("certs", "init"),
    ("certs", "list"),
    ("config", "check"),
    ("config", "map"),
    ("alarm", "list"),
    ("job", "cancel"),
    ("job", "list"),
    ("job", "show"),
    ("node", "add"),
    ("node", "decommission"),
    ("node", "drain"),
    ("node", "list"),
    ("node", "remove"),
    ("node", "status"),
    ("node", "undrain"),
    ("rebalance", "limit"),
    ("rebalance", "pause"),
    ("rebalance", "plan"),
    ("rebalance", "start"),
    ("settings", "get"),
    ("settings", "set"),
    ("shard", "list"),
    ("shard", "move"),
    ("shard", "show"),
    ("shard", "transfer-leader"),
    ("check", "health"),
    ("check", "hash"),
    ("check", "blobs"),
    ("version",),
]


@pytest.mark.parametrize("command", [(), ("cluster",), ("mail",), ("certs",), *COMMANDS])
def test_help(command: tuple[str, ...]) -> None:
    """Every command explains itself."""
    told = _run(*command, "--help")
    assert told.exit_code == ExitCode.OK
    assert "Usage:" in told.output
    assert "with-parent" not in told.output


def test_version() -> None:
    """As text for people and as JSON for programs."""
    assert _run("version").output.startswith("mailraft ")
    assert json.loads(_run("version", "-o", "json").output)["version"]


NEEDS_A_CLUSTER = [
    ("cluster", "status"),
    ("locate", "alice"),
    ("alarm", "list"),
    ("check", "health"),
    ("job", "show", "j1"),
    ("node", "drain", "n3"),
    ("rebalance", "plan"),
    ("settings", "set", "concurrent_moves=1"),
    ("shard", "list"),
    ("account", "create", "alice"),
    ("account", "show", "alice"),
    ("mail", "list", "alice"),
    ("mail", "fetch", "alice", "M1"),
]


@pytest.mark.parametrize("command", NEEDS_A_CLUSTER)
def test_no_cluster(command: tuple[str, ...]) -> None:
    """One line says that none runs here and what to do, with the status for unavailable."""
    told = _run(*command)
    assert told.exit_code == ExitCode.UNAVAILABLE
    assert told.stdout == ""
    assert told.stderr.startswith("error: no cluster runs in .mailraft (NOT_READY): start one with")
    assert told.stderr.count("\n") == 1


def test_an_error_as_json() -> None:
    """With -o json an error is JSON too, on standard error."""
    told = _run("mail", "list", "alice", "-o", "json")
    assert told.exit_code == ExitCode.UNAVAILABLE
    assert json.loads(told.stderr)["error"]["reason"] == "NOT_READY"
    assert told.stdout == ""


@pytest.mark.parametrize("command", NEEDS_A_CLUSTER[1:2])
def test_nobody_answers(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that is down is told within the deadline, with the status for unavailable."""
    monkeypatch.setattr("mailraft.cluster.cli.connect.DEADLINE_S", 1.0)
    (port,) = ports.choose(1)
    told = _run(*command, "--server", f"127.0.0.1:{port}", "--insecure")
    assert told.exit_code == ExitCode.UNAVAILABLE, told.output
    assert told.stderr.startswith("error: ")
    assert told.stderr.count("\n") == 1


def test_no_certificates() -> None:
    """The file that is missing is named, and how to make it."""
    told = _run("mail", "list", "alice", "--server", "127.0.0.1:1")
    assert told.exit_code == ExitCode.USAGE
    assert "ca.pem is not there (BAD_CERTIFICATE)" in told.stderr
    assert "mailraft certs init" in told.stderr


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--server", "nowhere"), "bad --server 'nowhere'"),
        (("--server", "10.0.0.1:7400", "--insecure"), "loopback only"),
    ],
)
def test_a_bad_server(options: tuple[str, ...], told: str) -> None:
    """A wrong address is a usage error, found before anything is sent."""
    result = _run("mail", "list", "alice", *options)
    assert result.exit_code == ExitCode.USAGE
    assert told in result.stderr


@pytest.mark.parametrize(
    "command",
    [("mail", "list"), ("mail", "list", "a", "--limit", "0"), ("nothing",), ("up", "--x")],
)
def test_usage(command: tuple[str, ...]) -> None:
    """Wrong arguments have the status for usage."""
    assert _run(*command).exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("arguments", "stdin", "told"),
    [
        (("--to", "alice"), b"", "the message is empty"),
        (("nothing.eml", "--to", "alice"), b"", "cannot read nothing.eml: No such file"),
        ((), b"Subject: x\n\n", "nobody to deliver to"),
    ],
)
def test_nothing_to_deliver(arguments: tuple[str, ...], stdin: bytes, told: str) -> None:
    """What cannot be delivered is told before a cluster is looked for."""
    result = _run("mail", "deliver", *arguments, stdin=stdin)
    assert result.exit_code == ExitCode.USAGE
    assert told in result.stderr


@pytest.mark.parametrize("kind", ["node", "router"])
def test_a_process_without_settings(kind: str) -> None:
    """The first setting that is missing is named."""
    told = _run(kind)
    assert told.exit_code == ExitCode.USAGE
    assert told.stderr.startswith("error: bad setting ")


def test_a_node_without_its_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not start, and says which file is missing."""
    monkeypatch.setattr(logs, "configure", lambda *_, **__: None)  # this process keeps its own
    node = cluster_pb2.Node(id=1, name="n1", address="127.0.0.1:1", weight_milli=1000)
    mapfile.save(tmp_path / "map.json", mapfile.make([node], 1))
    (tmp_path / "node.toml").write_text(
        'node = 1\ndata_dir = "data"\nlisten_address = "127.0.0.1:1"\n'
        'map_file = "map.json"\ncerts_folder = "certs"\n'
    )
    told = _run("node", "--config", "node.toml")
    assert told.exit_code == ExitCode.USAGE
    assert "certs/ca.pem is not there" in told.stderr


def test_certificates_are_made_and_listed(tmp_path: Path) -> None:
    """The command init makes them once; list shows each with the days that are left."""
    assert "made in" in _run("certs", "init", "--nodes", "1").output
    assert "already" in _run("certs", "init", "--nodes", "1").output
    assert (tmp_path / ".mailraft/certs/node-1.key").exists()
    listed = json.loads(_run("certs", "list", "-o", "json").output)
    names = ["ca", "admin", "auditor", "client", "node-1", "router"]
    assert [each["name"] for each in listed] == names
    assert all(each["days_left"] > 300 for each in listed)
    table = _run("certs", "list").output.splitlines()
    assert table[0].split() == ["NAME", "ROLE", "DAYS", "SHA256", "ACCOUNTS", "HOSTS"]


def test_certificates_are_issued_and_rotated(tmp_path: Path) -> None:
    """By name, and all of them; a dry run makes nothing; each step says what is next."""
    folder = tmp_path / ".mailraft/certs"
    _run("certs", "init", "--nodes", "1")
    assert "would be made" in _run("certs", "issue", "imap", "--dry-run").output
    assert not (folder / "imap.pem").exists()
    assert "made in" in _run("certs", "issue", "imap", "--role", "service").output
    _run("certs", "issue", "imap", "--accounts", "team-*", "--accounts", "ada")
    listed = {each["name"]: each for each in json.loads(_run("certs", "list", "-o", "json").output)}
    assert listed["imap"]["accounts"] == ["team-*", "ada"]
    refused = _run("certs", "issue", "imap", "--role", "operator", "--accounts", "team-*")
    assert refused.exit_code == ExitCode.USAGE
    _run("certs", "issue", "imap", "--accounts", "team-*", "--accounts", "ada")
    listed = {each["name"]: each for each in json.loads(_run("certs", "list", "-o", "json").output)}
    assert listed["imap"]["accounts"] == ["team-*", "ada"]
    refused = _run("certs", "issue", "imap", "--role", "operator", "--accounts", "team-*")
    assert refused.exit_code == ExitCode.USAGE
    before = (folder / "imap.pem").read_bytes()
    told = json.loads(_run("certs", "rotate", "--dry-run", "-o", "json").output)
    assert told["made"] == ["admin", "auditor", "client", "imap", "node-1", "router"]
    assert (folder / "imap.pem").read_bytes() == before
    _run("certs", "rotate")
    assert (folder / "imap.pem").read_bytes() != before
    assert "--authority sign" in _run("certs", "rotate", "--authority", "trust").output
    refused = _run("certs", "rotate", "--authority", "forget")
    assert refused.exit_code == ExitCode.USAGE
    assert "--authority sign" in refused.stderr


def test_what_stands_for_an_account_in_logs(tmp_path: Path) -> None:
    """By the key that processes have; without one, or with a short one, it says so."""
    key = tmp_path / "log.key"
    assert "No such file" in _run("account", "log-name", "alice", "--key", str(key)).stderr
    key.write_text("short\n")
    assert "less than 16 bytes" in _run("account", "log-name", "alice", "--key", str(key)).stderr
    key.write_text("sixteen bytes or more\n")
    told = _run("account", "log-name", "alice", "--key", str(key)).output.strip()
    assert told == pseudonym("alice", b"sixteen bytes or more")
    assert told != pseudonym("alice", b"another key of this size")


def test_the_audit_log_is_shown(tmp_path: Path) -> None:
    """Of all processes by time; half a line at the end is left out."""
    assert "name them" in _run("audit", "tail").stderr
    lines = [
        {"time": f"2026-01-01T00:00:0{second}+00:00", "outcome": outcome, "caller": "operator/a"}
        for second, outcome in enumerate(("allowed", "refused", "allowed"))
    ]
    for name, mine in (("n1", lines[::2]), ("router", lines[1:2])):
        (tmp_path / ".mailraft" / name).mkdir(parents=True)
        text = "".join(json.dumps(line) + "\n" for line in mine)
        (tmp_path / ".mailraft" / name / "audit.jsonl").write_text(text + '{"time": "20')
    told = json.loads(_run("audit", "tail", "-o", "json").output)
    assert [(each["server"], each["outcome"]) for each in told] == [
        ("n1", "allowed"),
        ("router", "refused"),
        ("n1", "allowed"),
    ]
    assert json.loads(_run("audit", "tail", "--refused", "-o", "json").output) == told[1:2]
    assert len(_run("audit", "tail", "-n", "1").output.splitlines()) == 2
    file = tmp_path / "node-7.audit.jsonl"
    file.write_text(json.dumps(lines[0]) + "\n")
    assert " node-7 " in _run("audit", "tail", str(file)).output


def test_the_local_cluster_is_found(tmp_path: Path) -> None:
    """Without options a command talks to the router that run.json names."""
    router = RunningProcess("router", 0, "127.0.0.1:7400", 1)
    runfile.write(tmp_path, RunFile("c", 1, "", router, ()))
    (tmp_path / ".mailraft").mkdir()
    runfile.write(tmp_path / ".mailraft", RunFile("c", 1, "", router, ()))
    assert find(None, None, False, "client").target == "127.0.0.1:7400"
    assert find(None, None, False, "client").certs is None
    assert find("127.0.0.1:9", None, True, "client").target == "127.0.0.1:9"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"cluster_id": 1}'])
def test_a_damaged_run_file(tmp_path: Path, text: str) -> None:
    """Is as good as none."""
    (tmp_path / runfile.RUN_FILE).write_text(text)
    assert runfile.read(tmp_path) is None


def test_mail_does_not_steer_the_terminal() -> None:
    """Control characters of strangers are shown as replacements."""
    assert output.printable("a\x1b[2Jb\r\n\u202e") == "a�[2Jb���"


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers stand to the right, text to the left, and no line ends in blanks."""
    output.emit_table(("NAME", "N"), [("a", 5), ("bcdef", 123)])
    assert capsys.readouterr().out == "NAME     N\na        5\nbcdef  123\n"


def test_errors_that_are_bugs_are_not_hidden() -> None:
    """Only expected failures become one line."""
    with pytest.raises(ZeroDivisionError), output.guarded(output.Output.TABLE):
        raise ZeroDivisionError


def test_one_certificate_of_a_folder_is_chosen_by_its_path(tmp_path: Path) -> None:
    """Without a path to one, it is that by the name of the role."""
    certs.ensure(tmp_path, certs.names_of([]))
    certs.issue(tmp_path, "anna", Role.OPERATOR)
    assert find("127.0.0.1:1", tmp_path, False, "admin").name == "admin"
    chosen = find("127.0.0.1:1", tmp_path / "anna.pem", False, "admin")
    assert (chosen.certs, chosen.name) == (tmp_path, "anna")
    with pytest.raises(CertificateError, match=r"bob\.pem is not there"):
        find("127.0.0.1:1", tmp_path / "bob.pem", False, "admin")

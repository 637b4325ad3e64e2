"""mailraft debug bundle: what is in it, and what never is."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mailraft.cluster.cli import app
from mailraft.cluster.redaction import Redactor
from mailraft.wire.slow_log import EVENT

REDACTOR = Redactor({"10.0.0.1": "host-of-n1", "mx1.example.org": "host-of-n2"}, key=b"k" * 32)
SLOW = {"event": EVENT, "method": "MessageService/GetMessage", "took_ms": 12.5, "account": "a1b2"}


def redacted(line: object) -> Any:
    """A log line, or an audit line's value."""
    [told] = REDACTOR.lines([json.dumps(line)])
    return json.loads(told)


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("no route to 192.168.7.9:7400", "192.168.7.9"),
        ("peer ipv6:[fe80::1%25eth0]:4711", "fe80"),
        ("peer 2001:db8:0:1::17 left", "2001:db8"),
        ("mail for ada.lovelace@example.org is refused", "ada.lovelace"),
        ("dialling 10.0.0.1:7400", "10.0.0.1"),
        ("mx1.example.org is silent", "mx1.example.org"),
    ],
)
def test_addresses_become_stand_ins(text: str, gone: str) -> None:
    """The same for the same, and others for others; the rest of the line stays."""
    told = REDACTOR.text(text)
    assert gone not in told
    assert told == REDACTOR.text(text)
    assert set(told.split()) & set(text.split())
    assert REDACTOR.text("1.2.3.4") != REDACTOR.text("1.2.3.5")
    assert Redactor({}).text("1.2.3.4") != Redactor({}).text("1.2.3.4")  # in each bundle others


def test_figures_and_names_of_code_stay() -> None:
    """A version, a time, a method, a keyed hash."""
    line = {**SLOW, "timestamp": "2026-11-24T12:00:00.123456Z", "version": "0.3.0", "index": 1234}
    assert redacted(line) == line


def test_an_exception_tells_where_and_not_what() -> None:
    """Its text may quote mail."""
    frame = {"filename": "x.py", "lineno": 7, "name": "apply", "line": "raise E(secretword)"}
    error = {"exc_type": "ValueError", "exc_value": "secretword", "frames": [frame]}
    told = redacted({"event": "failed", "exception": [error]})
    assert "secretword" not in json.dumps(told)
    assert told["exception"][0]["exc_type"] == "ValueError"
    assert told["exception"][0]["frames"] == [{"filename": "x.py", "lineno": 7, "name": "apply"}]
    assert redacted({"exception": "Traceback: secretword"})["exception"] == "left out"


def test_what_is_no_log_line_is_counted() -> None:
    """Who knows what is in it."""
    told = list(REDACTOR.lines(["Traceback (most recent call last):", "", '{"event": "x"}']))
    assert json.loads(told[-1])["left_out"] == 1
    assert "Traceback" not in "".join(told)


def test_an_audit_line_keeps_the_role_of_who_called() -> None:
    """Not the name, the address, or why it was refused."""
    line = {
        "time": "2026-11-24T12:00:00Z",
        "outcome": "refused",
        "method": "mailraft.v1.AdminService/RemoveNode",
        "caller": "service/webmail-of-ada",
        "peer": "ipv4:192.168.7.9:4711",
        "reason": "webmail-of-ada may not",
    }
    [told] = map(json.loads, REDACTOR.audit([json.dumps(line)]))
    assert told["caller"].startswith("service/")
    assert told["method"] == line["method"]
    assert "ada" not in json.dumps(told)
    assert "192.168" not in json.dumps(told)


def site(folder: Path) -> tuple[str, ...]:
    """Settings, log and audit log of one node that does not run; the options that name them."""
    (folder / "certs").mkdir()
    config = folder / "node-1.toml"
    config.write_text(
        'node = 1\ndata_dir = "/srv/of-ada/node-1"\nlisten_address = "10.0.0.1:7400"\n'
        'map_file = "map.json"\ncerts_folder = "certs"\naudit_file = "node-1.audit.jsonl"\n'
    )
    log = folder / "node-1.log"
    log.write_text(json.dumps({"event": "serves"}) + "\n" + json.dumps(SLOW) + "\nnot json\n")
    (folder / "node-1.audit.jsonl").write_text('{"time": "t", "caller": "operator/ada"}\n')
    return ("--config", str(config), "--log", str(log), "--server", "127.0.0.1:1", "--insecure")


def unpacked(path: Path) -> dict[str, str]:
    """Contents by names, without the folder that all are in."""
    with tarfile.open(path) as archive:
        entries = {each.name: archive.extractfile(each) for each in archive.getmembers()}
        return {
            name.partition("/")[2]: file.read().decode() for name, file in entries.items() if file
        }


def test_it_serves_while_the_cluster_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be had is named; what is on disk is there, by process."""
    monkeypatch.setattr("mailraft.cluster.cli.debug.ASK_S_MAX", 0.5)
    options, path = site(tmp_path), tmp_path / "x.tar.gz"
    tried = CliRunner().invoke(app, ["debug", "bundle", str(path), *options, "--dry-run"])
    assert tried.exit_code == 0, tried.output
    assert "would be" in tried.stdout
    assert not path.exists()
    told = CliRunner().invoke(app, ["debug", "bundle", str(path), *options])
    assert told.exit_code == 0, told.output
    assert "redacted" in told.stdout
    assert "without status.json" in told.stdout
    files = unpacked(path)
    assert {"versions.json", "configuration/node-1.json", "logs/node-1.log"} <= files.keys()
    assert json.loads(files["slow-log/node-1.log"]) == SLOW
    assert json.loads(files["missing.json"]).keys() >= {"status.json", "map.json"}
    assert "ada" not in "".join(files.values())
    assert path.stat().st_mode & 0o077 == 0
    again = CliRunner().invoke(app, ["debug", "bundle", str(path), *options])
    assert again.exit_code == 2, "an archive that is there is not replaced"


def test_unredacted_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And holds the lines as they are."""
    monkeypatch.setattr("mailraft.cluster.cli.debug.ASK_S_MAX", 0.5)
    path = tmp_path / "x.tar.gz"
    options = (*site(tmp_path), "--no-redact")
    told = CliRunner().invoke(app, ["debug", "bundle", str(path), *options])
    assert "NOT redacted" in told.stdout
    files = unpacked(path)
    assert "not json" in files["logs/node-1.log"]
    assert "/srv/of-ada/node-1" in files["configuration/node-1.json"]

"""The audit log: what a line says, that a flood of refusals is cut short, and that no action is."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path
from typing import Any

import pytest

from mailraft.wire.access import Decision, Principal, Role
from mailraft.wire.audit import REFUSALS_PER_S, AuditLog

CALLER = Principal(Role.OPERATOR, "admin")
METHOD = "/mailraft.v1.AdminService/MoveShard"
ALLOWED = Decision(METHOD, CALLER, "ipv4:127.0.0.1:5000")
REFUSED = Decision(METHOD, None, "ipv4:127.0.0.1:5000", "no certificate was shown")


class Clock:
    """Goes when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_line_says_who_did_what_from_where(tmp_path: Path) -> None:
    """And of a refusal why; the file is its owner's, and what was in it stays."""
    path = tmp_path / "audit.jsonl"
    AuditLog(path).record(ALLOWED)
    AuditLog(path).record(REFUSED)
    allowed, refused = _lines(path)
    assert allowed.pop("time") <= refused.pop("time")
    assert allowed == {
        "outcome": "allowed",
        "method": METHOD[1:],
        "caller": "operator/admin",
        "peer": "ipv4:127.0.0.1:5000",
    }
    assert refused == {
        "outcome": "refused",
        "method": METHOD[1:],
        "caller": "",
        "peer": "ipv4:127.0.0.1:5000",
        "reason": "no certificate was shown",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_cannot_forge_a_line(tmp_path: Path) -> None:
    """Whatever is in a certificate's name, it stays one line."""
    path = tmp_path / "audit.jsonl"
    AuditLog(path).record(Decision(METHOD, Principal(Role.SERVICE, 'x"}\n{"a'), "peer", "why"))
    (line,) = _lines(path)
    assert line["caller"] == 'service/x"}\n{"a'


def test_a_flood_is_counted_and_actions_are_not_left_out(tmp_path: Path) -> None:
    """At most so many refusals a second; the next line tells how many there were besides."""
    path, clock = tmp_path / "audit.jsonl", Clock()
    audit = AuditLog(path, now_s=clock)
    for _ in range(REFUSALS_PER_S + 7):
        audit.record(REFUSED)
    assert len(_lines(path)) == REFUSALS_PER_S
    for _ in range(2 * REFUSALS_PER_S):
        audit.record(ALLOWED)
    lines = _lines(path)
    assert len(lines) == 3 * REFUSALS_PER_S
    assert [each.get("left_out", 0) for each in lines[REFUSALS_PER_S:]] == [7] + [0] * 199
    clock.now_s += 0.5
    for _ in range(REFUSALS_PER_S):
        audit.record(REFUSED)
    assert len(_lines(path)) == 3.5 * REFUSALS_PER_S
    clock.now_s += 3600.0  # what was not used is not saved up
    for _ in range(2 * REFUSALS_PER_S):
        audit.record(REFUSED)
    assert len(_lines(path)) == 4.5 * REFUSALS_PER_S


def test_a_file_that_was_moved_aside_is_begun_anew(tmp_path: Path) -> None:
    """So logrotate needs to tell nobody."""
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(path)
    audit.record(ALLOWED)
    path.rename(tmp_path / "audit.jsonl.1")
    audit.record(REFUSED)
    assert [each["outcome"] for each in _lines(path)] == ["refused"]


def test_a_disk_that_takes_nothing_fails_no_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is in the log of the process."""
    AuditLog(tmp_path / "absent" / "audit.jsonl").record(ALLOWED)
    assert "takes no line: No such file or directory" in caplog.text


def test_without_a_file_it_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """As fields of a line."""
    with caplog.at_level(logging.WARNING):
        AuditLog(None).record(REFUSED)
    (record,) = caplog.records
    assert record.getMessage() == "audit"
    assert record.__dict__["reason"] == "no certificate was shown"

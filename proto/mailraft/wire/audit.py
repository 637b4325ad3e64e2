"""The audit log: every refusal and every action of an operator, one JSON object a line.

Append-only: a file is only ever opened for appending, and moved aside by whoever keeps logs (it is
opened anew when it is gone). A flood of refusals must not fill the disk: beyond REFUSALS_PER_S they
are counted, and the next line tells how many were left out. Actions are never left out.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from mailraft.wire.access import Decision

REFUSALS_PER_S = 100

log = logging.getLogger(__name__)


class AuditLog:
    """Where a process records decisions; path None: among its log lines.

    now_s: a monotonic clock.
    """

    def __init__(self, path: Path | None, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._path, self._now_s = path, now_s
        self._left = float(REFUSALS_PER_S)
        self._filled_s = now_s()
        self.left_out = 0  # refusals since the last line

    def record(self, decision: Decision) -> None:
        """Append it. A disk that does not take it is logged: the call does not fail for that."""
        if decision.refused and not self._room():
            self.left_out += 1
            return
        line = {
            "time": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
            "outcome": "refused" if decision.refused else "allowed",
            "method": decision.method.lstrip("/"),
            "caller": str(decision.caller or ""),
            "peer": decision.peer,
            **({"reason": decision.refused} if decision.refused else {}),
            **({"left_out": self.left_out} if self.left_out else {}),
        }
        self.left_out = 0
        if self._path is None:
            log.warning("audit", extra=line)
            return
        try:
            self._append(json.dumps(line) + "\n")
        except OSError as error:
            log.error("the audit log takes no line: %s", error.strerror)  # noqa: TRY400 - no bug

    def _append(self, line: str) -> None:
        assert self._path is not None
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        file = os.open(self._path, flags, 0o600)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def _room(self) -> bool:
        now_s = self._now_s()
        self._left = min(
            float(REFUSALS_PER_S), self._left + (now_s - self._filled_s) * REFUSALS_PER_S
        )
        self._filled_s = now_s
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

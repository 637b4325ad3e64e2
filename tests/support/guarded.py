"""Processes of a cluster under unpickling_guard: started by LocalCluster, or one by one."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from mailraft.cluster import ports
from mailraft.cluster.child import ENV_PREFIX, Child
from unpickling_guard import ARMED, UNPICKLED

GUARD = Path(__file__).with_name("unpickling_guard.py")
CLI = "mailraft.cluster.cli"
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 20.0
POLL_S = 0.02
_SERVES = re.compile(r'"address": "(?P<address>[^"]+)", "event": "serves"')


def command(records: Path, module: str, *arguments: str) -> tuple[str, ...]:
    """What starts a module with the guard in place."""
    return (sys.executable, "-P", str(GUARD), str(records), module, *arguments)


@dataclass(frozen=True, slots=True)
class Traps:
    """Where it shows if something was unpickled: in the guard's records, or as the file that every
    hostile pickle makes.
    """

    records: Path
    marker: Path

    @classmethod
    def below(cls, folder: Path) -> Traps:
        """New ones, in a folder that is there."""
        traps = cls(folder / "records", folder / "marker")
        traps.records.mkdir()
        return traps

    def sprung(self) -> str:
        """What was unpickled, where; empty: nothing was."""
        stacks = [path.read_text("utf-8") for path in self.records.glob(f"{UNPICKLED}*")]
        made = [f"{self.marker} was made"] if self.marker.exists() else []
        return "\n".join([*made, *stacks])

    def armed(self, pid: int) -> bool:
        """Whether the guard stood in this process."""
        return (self.records / f"{ARMED}{pid}").exists()


class GuardedChild(Child):
    """As LocalCluster starts it, under the guard, whose records are in the cluster's folder."""

    def __init__(self, name: str, arguments: Sequence[str], log_path: Path) -> None:
        super().__init__(name, arguments, log_path)
        records = log_path.parents[1] / "records"
        self._command = (*command(records, CLI, *arguments), "--with-parent")
        config = tomllib.loads(Path(arguments[-1]).read_text("utf-8"))
        self.metrics_address = str(config["metrics_address"])


@dataclass(frozen=True, slots=True)
class Ended:
    """How a guarded process came out."""

    pid: int
    status: int
    served: bool
    log: str


class Starter:
    """Starts guarded nodes and routers, one after the other, without their imports each time.

    They listen at any port, whatever their settings say, and end when we do.
    """

    def __init__(self, traps: Traps) -> None:
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)
        }
        environment[f"{ENV_PREFIX}LISTEN_ADDRESS"] = f"{ports.LOOPBACK}:0"
        self._process = subprocess.Popen(
            command(traps.records, CLI, "--serve"),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_DEADLINE_S)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()

    def start(self, kind: str, config: Path, log_path: Path) -> Alone:
        """Start `mailraft node` or `mailraft router`. The one before must have been stopped."""
        assert self._process.stdin is not None
        arguments = (kind, "--config", str(config), "--with-parent")
        order = json.dumps([arguments, str(log_path)])
        self._process.stdin.write(order.encode() + b"\n")
        pid = self.read(START_DEADLINE_S)
        assert pid is not None, "the starter does not start"
        return Alone(self, pid, log_path)

    def read(self, deadline_s: float) -> int | None:
        """The next number that it prints; None: it prints none in time."""
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], deadline_s)
        return int(stdout.readline()) if ready else None


class Alone:
    """One guarded node or router, without a cluster around it."""

    def __init__(self, starter: Starter, pid: int, log_path: Path) -> None:
        self._starter, self._pid, self._log_path = starter, pid, log_path
        self._status: int | None = None

    @property
    def log(self) -> str:
        """What it has said until now."""
        return self._log_path.read_text("utf-8", "replace")

    def wait_serves(self) -> str:
        """The address that it serves at; empty if it ended instead."""
        until_s = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < until_s:
            ended = self._has_ended(POLL_S)
            serves = _SERVES.search(self.log)
            if serves is not None:
                return serves["address"]
            if ended:
                return ""
        raise AssertionError(f"it neither serves nor ends: {self.log}")

    def stop(self) -> Ended:
        """Ask it to stop if it runs, and tell how it ended; it is killed if it does not."""
        if not self._has_ended(0):
            os.kill(self._pid, signal.SIGTERM)
        if not self._has_ended(STOP_DEADLINE_S):
            os.kill(self._pid, signal.SIGKILL)
            assert self._has_ended(STOP_DEADLINE_S)
        assert self._status is not None
        return Ended(self._pid, self._status, _SERVES.search(self.log) is not None, self.log)

    def _has_ended(self, deadline_s: float) -> bool:
        if self._status is None:
            self._status = self._starter.read(deadline_s)
        return self._status is not None

"""Nodes under strace, whose power can be cut."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.faults.disk_trace import CALLS, Dropped, PowerCut

from mailraft.cluster.child import Child

CLI = "mailraft.cluster.cli"
UNSYNCED = Path(__file__).with_name("unsynced.py")
# strace of a process that was killed writes down the rest.
TRACE_ENDS_S = 20.0


def why_no_trace() -> str:
    """Why processes cannot be traced here; empty: they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-D", "-f", "--seccomp-bpf", "-e", "trace=fsync", "-o", "/dev/null", "true"],
        capture_output=True,
        timeout=20,
        check=False,
    )
    return tried.stderr.decode("utf-8", "replace").strip()


class TracedChild(Child):
    """As LocalCluster starts it. unsynced: it syncs nothing, from its next start on."""

    def __init__(self, name: str, arguments: Sequence[str], log_path: Path) -> None:
        super().__init__(name, arguments, log_path)
        self.unsynced = False
        self._plain = self._command
        self._arguments = arguments
        self._starts = 0
        self._transcript = log_path
        self._disk: PowerCut | None = None
        self._folder = log_path.parents[1] / name / "data"

    def start(self) -> None:
        if self.name == "router":
            super().start()
            return
        self._starts += 1
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._disk = PowerCut(self._folder)
        self._transcript = self.log_path.with_name(f"{self.name}.{self._starts}.strace")
        # -D: strace beside it, so that the process we kill is the node. -s 0: no bytes.
        trace = ("strace", "-D", "-f", "-y", "-s", "0", "--seccomp-bpf", "-e", f"trace={CALLS}")
        node = self._plain
        if self.unsynced:
            node = (sys.executable, "-P", str(UNSYNCED), CLI, *self._arguments, "--with-parent")
        self._command = (*trace, "-o", str(self._transcript), *node)
        super().start()

    def cut_power(self) -> Dropped:
        """Of a node that was killed: its folder as the disk has it."""
        assert self._disk is not None
        last = re.compile(rf"^{self.pid} +\+\+\+ killed by SIGKILL", re.MULTILINE)
        until_s = time.monotonic() + TRACE_ENDS_S
        while not last.search(text := self._transcript.read_text("utf-8", "backslashreplace")):
            assert time.monotonic() < until_s, f"{self._transcript} has no end"
            time.sleep(0.05)
        self._disk.follow(text.splitlines())
        return self._disk.cut()

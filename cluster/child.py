"""One process of a local cluster, seen from its parent, and the parent seen from it.

A child's standard input is a pipe that its parent holds and never writes to. It ends when the
parent does, in whatever way, and then the child stops too: nothing is left running.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from mailraft.cluster.errors import NotReadyError

# A log that has grown past this is set aside when its process starts.
LOG_MAX_BYTES = 16 * 1024 * 1024
TAIL_LINES = 8
TAIL_BYTES = 4_096
# How long a child whose parent is gone may take to stop by itself.
ORPHAN_GRACE_S = 10.0
# The environment of a child is the user's without our own settings: its file says everything.
ENV_PREFIX = "MAILRAFT_"


class Child:
    """A `mailraft` command that runs until it is told to stop. Its output goes to a log file."""

    def __init__(self, name: str, arguments: Sequence[str], log_path: Path) -> None:
        self.name, self.log_path = name, log_path
        # -P: a module in the user's working directory must not shadow one of ours.
        command = (sys.executable, "-P", "-m", "mailraft.cluster.cli")
        self._command = (*command, *arguments, "--with-parent")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """0 unless it was started."""
        return self._process.pid if self._process is not None else 0

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll() if self._process is not None else None

    def start(self) -> None:
        """Start the process, or start it again. It is not ready when this returns."""
        assert not self.running, f"{self.name} runs already"
        self._release()
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_MAX_BYTES:
            self.log_path.replace(self.log_path.with_name(self.log_path.name + ".1"))
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)
        }
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C reaches the parent alone, which then stops its children in order.
                start_new_session=True,
            )

    def kill_soon(self) -> None:
        """SIGKILL without waiting for the end; `kill` does that."""
        if self._process is not None:
            self._process.kill()

    def kill(self) -> None:
        """SIGKILL, as a crash would end it; returns when it is gone. Only ever our own process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._release()

    def terminate(self) -> None:
        """Ask it to stop."""
        if self._process is not None and self.running:
            self._process.terminate()

    async def stopped(self, deadline_s: float) -> bool:
        """Wait until it has ended, at most deadline_s; then it is killed and False returned."""
        if self._process is None:
            return True
        try:
            await asyncio.to_thread(self._process.wait, deadline_s)
        except subprocess.TimeoutExpired:
            return False
        finally:
            self.kill()
        return True

    def check_running(self) -> None:
        """Raise NotReadyError with the end of its log if it has ended."""
        if not self.running:
            raise NotReadyError(
                f"{self.name} {describe_exit(self.exit_status)}: {self.log_tail()}",
                f"its whole log is {self.log_path}",
            )

    def log_tail(self) -> str:
        """The last lines of the log."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(lines[-TAIL_LINES:]) or "(empty log)"

    def _release(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            # The pipe to a process that is gone may be broken: that is what it tells.
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


def describe_exit(status: int | None) -> str:
    """For a human."""
    if status is None:
        return "has not ended"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with status {status}"


def stop_with_parent() -> None:
    """In a child: once its parent is gone, stop as on SIGTERM, and if that takes long, at once."""

    def wait_for_end() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_GRACE_S)
        os._exit(1)

    threading.Thread(target=wait_for_end, name="parent", daemon=True).start()

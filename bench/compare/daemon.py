"""A server of another project as a child process: started, watched, ended by its own pid."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from mailraft.cluster import ports

STOP_DEADLINE_S = 20.0
READY_DEADLINE_S = 60.0
READY_POLL_S = 0.05


class Daemon:
    """One process with a log. user: whom it runs as if this is root; stop: how it is asked to."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        user: str = "",
        stop: signal.Signals = signal.SIGTERM,
    ) -> None:
        self._command, self._log, self._stop = command, log, stop
        self._user = user if os.geteuid() == 0 else ""
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Not ready when this returns. It ends when this process does, in whatever way."""
        # Not by preexec_fn: it forks this process, which gRPC and its threads take badly.
        prefix = ["setpriv", "--pdeathsig", self._stop.name.removeprefix("SIG")]
        if self._user:
            prefix += ["--reuid", self._user, "--regid", self._user, "--init-groups"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*prefix, "--", *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._log.parent,
                start_new_session=True,
            )

    def kill_soon(self) -> None:
        """SIGKILL without waiting until it is gone; `kill` it before it is started again."""
        if self._process is not None:
            self._process.kill()

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    async def stop(self) -> None:
        """Ask, then kill."""
        if self._process is None:
            return
        self._process.send_signal(self._stop)
        try:
            await asyncio.to_thread(self._process.wait, STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def check_running(self) -> None:
        """Raises RuntimeError with the end of its log if it has ended."""
        if self._process is not None and self._process.poll() is not None:
            tail = self._log.read_text("utf-8", "replace").splitlines()[-12:]
            raise RuntimeError(f"{self._command[0]} has ended:\n" + "\n".join(tail))


async def ready(daemons: Sequence[Daemon], check: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the check says so; it may raise OSError until then."""
    until = time.monotonic() + READY_DEADLINE_S
    while True:
        for daemon in daemons:
            daemon.check_running()
        try:
            if await check():
                return
        except OSError:
            pass  # nobody listens yet
        if time.monotonic() > until:
            raise RuntimeError(f"not ready after {READY_DEADLINE_S:.0f} s")
        await asyncio.sleep(READY_POLL_S)


async def finished(command: Sequence[str], log: Path, *, user: str = "") -> None:
    """Run a command to its end; RuntimeError when it fails."""
    step = Daemon(command, log, user=user)
    step.start()
    assert step._process is not None
    status = await asyncio.to_thread(step._process.wait, READY_DEADLINE_S)
    if status:
        step.check_running()


def make_folder(path: Path) -> Path:
    """That servers which run as somebody else can enter."""
    path.mkdir(mode=0o711)
    path.chmod(0o711)  # whatever the umask
    return path


def own(folder: Path, user: str) -> None:
    """Give it to a user, if this is root."""
    if os.geteuid() == 0:
        shutil.chown(folder, user, user)


def free_ports(count: int) -> list[int]:
    return ports.choose(count)

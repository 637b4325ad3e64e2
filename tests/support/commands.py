"""The `mailraft` command as a process of its own, against a local cluster."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mailraft.cluster.local import LocalCluster

DEADLINE_S = 300.0
COMMAND = (sys.executable, "-P", "-m", "mailraft.cluster.cli")


def where(cluster: LocalCluster) -> tuple[str, ...]:
    """Options that name a cluster."""
    return ("--server", cluster.router_address, "--certs", str(cluster.certs_folder))


async def run(*arguments: str, expect: int = 0, folder: Path | None = None, typed: str = "") -> str:
    """What it prints, run in a folder; of a failure that is expected, its error too. Fails on
    another exit status than `expect`.
    """
    done = await _done(*arguments, expect=expect, folder=folder, typed=typed)
    return (done.stdout + done.stderr if expect else done.stdout).decode()


async def told(*arguments: str, expect: int = 0) -> Any:
    """The same as JSON."""
    return json.loads((await _done(*arguments, "-o", "json", expect=expect)).stdout)


async def _done(
    *arguments: str, expect: int, folder: Path | None = None, typed: str = ""
) -> subprocess.CompletedProcess[bytes]:
    done = await asyncio.to_thread(
        subprocess.run,
        (*COMMAND, *arguments),
        check=False,
        capture_output=True,
        timeout=DEADLINE_S,
        cwd=folder,
        input=typed.encode(),
    )
    assert done.returncode == expect, (done.stdout + done.stderr).decode()
    return done


class Background:
    """One that goes on until it is killed; what it prints is in `log`."""

    def __init__(self, log: Path, *arguments: str) -> None:
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                (*COMMAND, *arguments), stdout=file, stderr=subprocess.STDOUT
            )
        self.log = log

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        """As a crash would end it."""
        self._process.kill()
        self._process.wait()

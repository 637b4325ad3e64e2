"""run.json in the folder of a local cluster: who runs, at which address. Gone once it stopped."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

RUN_FILE = "run.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class RunningProcess:
    name: str
    node: int  # 0: the router
    address: str
    pid: int
    metrics: str = ""  # HOST:PORT of /metrics


@dataclass(frozen=True, slots=True)
class RunFile:
    """What `mailraft up` tells other commands."""

    cluster_id: str
    pid: int
    certs: str  # relative to the folder; empty: plain text
    router: RunningProcess
    nodes: tuple[RunningProcess, ...]

    def certs_folder(self, folder: Path) -> Path | None:
        return folder / self.certs if self.certs else None


def write(folder: Path, run: RunFile) -> None:
    """Replace the file at once."""
    fresh = folder / f".{RUN_FILE}.{os.getpid()}"
    fresh.write_text(json.dumps({"version": VERSION, **asdict(run)}, indent=1) + "\n", "utf-8")
    fresh.replace(folder / RUN_FILE)


def read(folder: Path) -> RunFile | None:
    """What runs there as far as the file knows; None without a file that can be used."""
    try:
        content = json.loads((folder / RUN_FILE).read_text("utf-8"))
        return RunFile(
            cluster_id=str(content["cluster_id"]),
            pid=int(content["pid"]),
            certs=str(content["certs"]),
            router=RunningProcess(**content["router"]),
            nodes=tuple(RunningProcess(**node) for node in content["nodes"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove(folder: Path) -> None:
    (folder / RUN_FILE).unlink(missing_ok=True)

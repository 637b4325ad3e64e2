"""The last release in an environment of its own: what an operator has before an upgrade.

Its commit comes from the changelog, its files from git, and its own `make venv` installs what it
locks. All lies under build/releases/, made once.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from releases import CHANGELOG, last_released

ROOT = Path(__file__).parents[2]
INSTALL_DEADLINE_S = 600.0


@dataclass(frozen=True, slots=True)
class Installed:
    """python: runs the release's `mailraft`."""

    version: str
    python: Path


def last_release() -> Installed:
    """Installs it where that was not done yet."""
    release = last_released(CHANGELOG.read_text("utf-8"))
    assert release is not None, "CHANGELOG.md records no released commit"
    assert release.commit is not None
    folder = ROOT / "build" / "releases" / f"{release.version}-{release.commit[:12]}"
    python = folder / ".venv" / "bin" / "python"
    done = folder / ".installed-for-upgrade"
    if not done.exists():
        _unpack(release.commit, folder)
        _run("make", "-C", str(folder), "venv", f"PYTHON={sys.executable}")
        done.touch()
    found = _run(str(python), "-c", "import importlib.metadata as m; print(m.version('mailraft'))")
    assert found == release.version, f"{python} runs {found}"
    return Installed(release.version, python)


def _unpack(commit: str, folder: Path) -> None:
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=True
    )
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")


def _run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=INSTALL_DEADLINE_S
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()

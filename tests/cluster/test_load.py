"""make load, in small: master and workers, each kind of request, and the count at the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
KINDS = ("deliver", "list", "fetch", "flag", "search", "watch")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_users_of_all_kinds_load_a_cluster(tmp_path: Path) -> None:
    """No request fails, and the page tells of each kind, of retries, and that all mail is there."""
    page = tmp_path / "load.md"
    asked = ["--requests", "400", "--users", "8", "--workers", "1", "--report", str(page)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", *asked],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    text = page.read_text("utf-8")
    assert all(f"| {kind} |" in text for kind in KINDS)
    assert "Failed after all retries: 0." in text
    assert "each is there once" in text
    assert "Retries, by who repeated a call" in text

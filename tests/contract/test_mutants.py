"""Each invariant's test is worth something: without the code that keeps the invariant it fails."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(240)  # 35 mutants: 25 s alone, and each runs a test
def test_no_mutant_survives() -> None:
    """In a process of its own, since the code itself is changed."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.contract.mutation"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr

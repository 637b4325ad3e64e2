"""The README's examples run as printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mailraft.cluster.local import LocalCluster

README = Path(__file__).parents[2] / "README.md"
PRINTED_ADDRESS, PRINTED_CERTS = "127.0.0.1:7400", ".mailraft/certs"

EXAMPLES = re.findall(
    r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


def test_the_client_example_is_short() -> None:
    """The first example is about ten lines: what a newcomer reads before deciding to stay."""
    lines = [line for line in EXAMPLES[0].splitlines() if line.strip()]
    assert len(lines) <= 11


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs_as_printed(number: int, cluster: LocalCluster) -> None:
    """Only the address and the folder of the running cluster are put in for the printed ones."""
    code = EXAMPLES[number]
    assert PRINTED_ADDRESS in code
    assert PRINTED_CERTS in code
    code = code.replace(PRINTED_ADDRESS, cluster.router_address)
    code = code.replace(PRINTED_CERTS, str(cluster.certs_folder))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("M"), done.stdout  # a message id

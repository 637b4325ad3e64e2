"""The last release, installed; and the summary of `make upgrade`."""

from __future__ import annotations

import os

import pytest
from tests.faults.rows import ROWS, table
from tests.upgrade.release import Installed, last_release


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nodes start from compiled files: else a restart takes most of its time to compile."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None) is not None:
        os.environ["PYTHONPYCACHEPREFIX"] = str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session")
def before() -> Installed:
    """What is upgraded from. Installing it, once, takes a few minutes."""
    return last_release()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of all that ran under load."""
    if ROWS:
        terminalreporter.section("upgrades")
        for line in table():
            terminalreporter.line(line)

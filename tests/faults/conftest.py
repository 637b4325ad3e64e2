"""The summary of `make faults`, and the clusters that faults are injected into."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.faults.armed import ArmedChild
from tests.faults.network import ProxiedCluster
from tests.faults.rows import ROWS, table

from mailraft.cluster.local import LocalCluster, LocalOptions

OPTIONS = LocalOptions(shards=4)


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nodes start from compiled files, as they do wherever Python may write them: else most of the
    time until a node serves again is that of compiling.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None) is not None:
        os.environ["PYTHONPYCACHEPREFIX"] = str(tmp_path_factory.mktemp("compiled"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of all that ran."""
    if ROWS:
        terminalreporter.section("faults")
        for line in table():
            terminalreporter.line(line)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Three nodes and a router, ready."""
    async with LocalCluster(tmp_path / "cluster", OPTIONS) as running:
        await running.wait_ready()
        yield running


@pytest.fixture
async def proxied(tmp_path: Path) -> AsyncIterator[ProxiedCluster]:
    """The same, with a network between the nodes that can be cut."""
    async with ProxiedCluster(tmp_path / "cluster", OPTIONS) as running:
        await running.wait_ready()
        yield running


@pytest.fixture
async def armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalCluster]:
    """The same, with nodes that can die at failpoints, and two shards with short logs."""
    monkeypatch.setattr("mailraft.cluster.local.Child", ArmedChild)
    async with LocalCluster(tmp_path / "cluster", LocalOptions(shards=2)) as running:
        await running.wait_ready()
        yield running

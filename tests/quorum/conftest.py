"""Clusters of real processes with one shard, so that who leads it and who follows is known; and the
summary of `make quorum`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.faults.network import ProxiedCluster
from tests.quorum.cells import connected
from tests.quorum.rows import ROWS, table

from mailraft.client import AsyncClient
from mailraft.cluster.local import LocalCluster, LocalOptions

OPTIONS = LocalOptions(shards=1)


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nodes start from compiled files: else a restart takes most of its time to compile."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None) is not None:
        os.environ["PYTHONPYCACHEPREFIX"] = str(tmp_path_factory.mktemp("compiled"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of all that ran under load."""
    if ROWS:
        terminalreporter.section("reads under faults: answered (- refused)")
        for line in table():
            terminalreporter.line(line)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Three nodes and a router, ready."""
    async with LocalCluster(tmp_path / "cluster", OPTIONS) as running:
        await running.wait_ready()
        yield running


@pytest.fixture
async def mail(cluster: LocalCluster) -> AsyncIterator[AsyncClient]:
    """A client of `cluster`, with an account that has a message; ACCEPTED is allowed."""
    async with connected(cluster) as client:
        yield client


@pytest.fixture
async def proxied(tmp_path: Path) -> AsyncIterator[ProxiedCluster]:
    """Three nodes and a router, ready, with a network between the nodes that can be cut."""
    async with ProxiedCluster(tmp_path / "cluster", OPTIONS) as running:
        await running.wait_ready()
        yield running

"""Fixtures for tests with real processes: a cluster in a folder of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mailraft.client import AsyncClient
from mailraft.cluster.local import LocalCluster, LocalOptions

# Small machines run these tests too.
SHARDS = 4
DEADLINE_S = 30.0


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Three nodes and a router, ready, with certificates."""
    async with LocalCluster(tmp_path / "cluster", LocalOptions(shards=SHARDS)) as running:
        await running.wait_ready()
        yield running


@pytest.fixture
async def client(cluster: LocalCluster) -> AsyncIterator[AsyncClient]:
    """A client of `cluster`, direct to the leaders."""
    async with cluster.client(deadline_s=DEADLINE_S) as connected:
        yield connected

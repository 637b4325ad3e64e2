"""A cluster of real processes with one shard, so that who leads it and who follows is known."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mailraft.cluster.local import LocalCluster, LocalOptions


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Three nodes and a router, ready."""
    async with LocalCluster(tmp_path / "cluster", LocalOptions(shards=1)) as running:
        await running.wait_ready()
        yield running

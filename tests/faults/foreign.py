"""Row 18, of `make faults` and of `make test`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mailraft.cluster.errors import NotReadyError
from mailraft.cluster.local import LocalCluster, LocalOptions

OPTIONS = LocalOptions(nodes=1, shards=1)


async def foreign_folder_refused(folder: Path) -> str:
    """Start a node on the data of another cluster's node of the same number.

    It ends, and the data stays as it is: its own cluster starts on it again. Answers what the node
    logged.
    """
    for name in ("a", "b"):
        async with LocalCluster(folder / name, OPTIONS) as cluster:
            await cluster.wait_ready()
            data = cluster.data_folder(1)
        shutil.move(data, folder / f"data-{name}")
    shutil.copytree(folder / "data-a", folder / "b" / "n1" / "data")
    async with LocalCluster(folder / "b", OPTIONS) as cluster:
        with pytest.raises(NotReadyError, match="n1 ended with status"):
            await cluster.wait_ready()
        told = (cluster.logs_folder / "n1.log").read_text("utf-8").splitlines()
    shutil.move(folder / "b" / "n1" / "data", folder / "a" / "n1" / "data")
    async with LocalCluster(folder / "a", OPTIONS) as cluster:
        await cluster.wait_ready()
    reasons = [line for line in told if "cluster" in line.lower()]
    assert reasons, told
    return reasons[-1][:100]

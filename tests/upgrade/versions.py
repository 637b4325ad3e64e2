"""A cluster of processes of two versions: each process runs the one that it is told to."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from tests.faults import armed

from mailraft.cluster import mapfile
from mailraft.cluster.child import Child
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.cluster.operator import Operator
from mailraft.node.interfaces import META_GROUP
from mailraft.v1 import job_pb2

TREE = Path(sys.executable)
JOB_DEADLINE_S = 30.0
READY_DEADLINE_S = 30.0
LEADERS_DEADLINE_S = 15.0


class VersionedChild(Child):
    """Runs by `python` from its next start on. entries_max: its log is that short."""

    entries_max = 0

    def __init__(self, name: str, arguments: Sequence[str], log_path: Path, python: Path) -> None:
        super().__init__(name, arguments, log_path)
        self.python = python
        self._arguments = (*arguments, "--with-parent")

    def start(self) -> None:
        # -I: nothing of this tree's environment reaches the release.
        alone = "-P" if self.python == TREE else "-I"
        how = ["-m", armed.CLI]
        if self.entries_max:
            how = [armed.__file__, "", "", str(self.entries_max), armed.CLI]
        self._command = (str(self.python), alone, *how, *self._arguments)
        super().start()


class VersionedCluster(LocalCluster):
    """Begins with all processes of one version, on a map as the last release makes it.

    entries_max: nodes keep logs that are this short; 0: as long as they want.
    """

    entries_max = 0

    def __init__(self, folder: Path, options: LocalOptions, python: Path) -> None:
        super().__init__(folder, options)
        self._python = python

    def child(self, node: int) -> VersionedChild:
        """A node's process; 0: the router's."""
        child = self._nodes[node] if node else self._router
        assert isinstance(child, VersionedChild)
        return child

    async def bring(self, node: int, python: Path) -> None:
        """Restart a node, or the router (0), with another version, as an operator does it."""
        child = self.child(node)
        child.terminate()
        assert await child.stopped(10.0), f"{child.name} did not stop in time"
        child.python = python
        self.start_again(child)
        await self.wait_ready(READY_DEADLINE_S)

    def running(self, python: Path) -> list[int]:
        """Nodes that run this version."""
        return [node for node in self.nodes if self.child(node).python == python]

    def _settle_map(self) -> int:
        port = super()._settle_map()
        self.map.ClearField("feature_level")
        mapfile.save(self.folder / "map.json", self.map)
        return port

    def _make_node(self, node: int) -> Child:
        child = self._versioned(super()._make_node(node))
        child.entries_max = self.entries_max
        return child

    def _make_router(self) -> Child:
        return self._versioned(super()._make_router())

    def _versioned(self, child: Child) -> VersionedChild:
        arguments = child._command[4:-1]
        return VersionedChild(child.name, arguments, child.log_path, self._python)


async def until(condition: Callable[[], Awaitable[bool]], deadline_s: float) -> None:
    """Wait for it."""
    async with asyncio.timeout(deadline_s):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def lead_from(cluster: VersionedCluster, operator: Operator, nodes: Iterable[int]) -> None:
    """Have every group, the meta group too, led by one of these nodes: the others are drained."""
    wanted = set(nodes)
    for node in cluster.nodes:
        if node in wanted:
            await operator.undrain(node)
    for node in set(cluster.nodes) - wanted:
        job = await operator.finished((await operator.drain(node)).id, deadline_s=JOB_DEADLINE_S)
        assert job.state == job_pb2.JOB_STATE_SUCCEEDED, job

    async def led() -> bool:
        return await _leaders(cluster) <= wanted

    await until(led, LEADERS_DEADLINE_S)


async def lead_from_all(cluster: VersionedCluster, operator: Operator) -> None:
    """End the drains."""
    for node in cluster.nodes:
        await operator.undrain(node)


async def _leaders(cluster: VersionedCluster) -> set[int]:
    """Nodes that lead anything, as the nodes themselves tell."""
    told = (await cluster._watch().maps(cluster.nodes)).values()
    groups = [group for each in told if each is not None for group in (each.meta, *each.shards)]
    newest = {group.id: group.leader for group in sorted(groups, key=lambda it: it.leader.term)}
    assert META_GROUP in newest
    return {leader.node_id for leader in newest.values()}

"""A cluster of real processes that an operator works on by the book."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import commands
from mailraft.cluster import ports, recovery
from mailraft.cluster.child import Child
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.cluster.operator import Operator
from mailraft.node.interfaces import node_of
from mailraft.v1 import cluster_pb2
from runbook import Rehearsal

STOP_S = 10.0
LOST_S = 40.0  # until leaders that hear nobody fall back, and are not asked for any more


class Site:
    """The machines of a rehearsal: a local cluster, and nodes that were added to it by hand."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        self.cluster, self.folder, self.desk = cluster, folder, folder / "desk"
        self.desk.mkdir()
        assert cluster.certs_folder is not None
        (self.desk / "certs").symlink_to(cluster.certs_folder)
        self._added: dict[int, Child] = {}
        self.taken: list[int] = []

    def rehearsal(self, **names: str) -> Rehearsal:
        """names: more of what a page says, to what it is here."""
        environment = {"MAILRAFT_SERVER": self.cluster.router_address, "MAILRAFT_CERTS": "certs"}
        return Rehearsal(self.desk, environment, {**self._names(), **names}, self._control)

    def _names(self) -> dict[str, str]:
        found = {"10.0.0.9:7400": self.cluster.router_address, "/srv/backup": str(self.store)}
        [*fresh] = ports.choose(2)
        for number, port in zip((4, 5), fresh, strict=True):
            found[f"10.0.0.{number}:7400"] = f"127.0.0.1:{port}"
        for node in self.cluster.nodes:
            found[f"/var/lib/mailraft/node-{node}"] = str(self.cluster.data_folder(node))
        return found

    @property
    def store(self) -> Path:
        """Where backups go."""
        return self.folder / "store"

    async def _control(self, doing: str, node: int) -> None:
        if node not in self.cluster.nodes:
            assert doing == "start"
            self._begin(node)
            return
        if doing in ("stop", "restart"):
            self.cluster.terminate(node)
            assert await self.cluster.stopped(node)
        if doing in ("start", "restart"):
            self.cluster.start(node)

    def _begin(self, node: int) -> None:
        """A node that was added: its settings lie on the desk, in a folder of its own."""
        [config] = [
            each
            for each in self.desk.glob("*/node.toml")
            if f"node = {node}\n" in each.read_text("utf-8")
        ]
        log = self.folder / f"added-{node}.log"
        child = self._added[node] = Child(f"n{node}", ("node", "--config", str(config)), log)
        child.start()

    async def mailraft(self, *arguments: str, expect: int = 0) -> str:
        """A command that is not on the page."""
        where = ("--server", self.cluster.router_address, "--certs", str(self.desk / "certs"))
        return await commands.run(*arguments, *where, expect=expect)

    async def map(self) -> cluster_pb2.ClusterMap:
        """The newest."""
        async with self._operator() as operator:
            return await operator.newest_map()

    async def settled(self) -> None:
        """Wait until every replica of each shard has all that was acknowledged."""
        await self.mailraft("check", "hash")

    async def until_lost(self, node: int) -> None:
        """Wait until a node that is left hears no leader of anything any more."""
        async with self._operator() as operator, asyncio.timeout(LOST_S):
            while True:
                async with recovery.opened(operator, self.cluster.credentials()) as asked:
                    planned = await asked.look()
                if len(planned.lost) == len(self.cluster.map.shards) + 1:
                    survivors = [each.survivor for each in planned.lost if each.survivor]
                    assert {node_of(each.replica_id) for each in survivors} == {node}
                    return
                await asyncio.sleep(0.5)

    def _operator(self) -> Operator:
        return Operator(self.cluster.router_address, self.cluster.credentials())

    async def close(self) -> None:
        """Stop what was added."""
        for child in self._added.values():
            child.terminate()
        await asyncio.gather(*(child.stopped(STOP_S) for child in self._added.values()))


@asynccontextmanager
async def site_of(folder: Path, options: LocalOptions) -> AsyncIterator[Site]:
    """Ready, with nothing in it."""
    async with LocalCluster(folder / "cluster", options) as cluster:
        await cluster.wait_ready()
        site = Site(cluster, folder)
        try:
            yield site
        finally:
            await site.close()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """Three nodes and a router, with two shards."""
    async with site_of(tmp_path, LocalOptions(nodes=3, shards=2)) as made:
        yield made

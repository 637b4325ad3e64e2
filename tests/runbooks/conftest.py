"""A cluster of real processes that an operator works on by the book."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType

import pytest

import commands
from mailraft.client import AsyncClient
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
        shutil.copytree(cluster.certs_folder, self.desk / "certs")
        self._added: dict[int, Child] = {}
        self.taken: list[int] = []

    def rehearsal(self, names: Mapping[str, str] = MappingProxyType({})) -> Rehearsal:
        """names: more of what a page says, to what it is here."""
        environment = {"MAILRAFT_SERVER": self.cluster.router_address, "MAILRAFT_CERTS": "certs"}
        return Rehearsal(self.desk, environment, {**self._names(), **names}, self._control)

    def _names(self) -> dict[str, str]:
        found = {
            "10.0.0.9:7400": self.cluster.router_address,
            "/srv/backup": str(self.store),
            "/etc/mailraft/certs": str(self.cluster.certs_folder),
            "-o mailraft -g mailraft ": "",  # there is no such user here
        }
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

    async def _control(self, doing: str, unit: str) -> None:
        if unit == "mailraft-router":
            assert doing == "restart"
            await self.cluster.restart_router()
            return
        node = int(unit.removeprefix("mailraft-node@"))
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

    async def mailraft(self, *arguments: str, expect: int = 0, typed: str = "") -> str:
        """A command that is not on the page: what it prints, errors too."""
        where = ("--server", self.cluster.router_address, "--certs", str(self.desk / "certs"))
        return await commands.run(*arguments, *where, expect=expect, typed=typed)

    async def map(self) -> cluster_pb2.ClusterMap:
        """The newest."""
        async with self._operator() as operator:
            return await operator.newest_map()

    def client(self) -> AsyncClient:
        """With the certificates that the operator has."""
        address, folder = self.cluster.router_address, self.desk / "certs"
        return AsyncClient(address, certs=folder, deadline_s=30)

    def hand_out(self) -> None:
        """What is on the operator's machine comes to every host."""
        assert self.cluster.certs_folder is not None
        for file in (self.desk / "certs").glob("*"):
            shutil.copy(file, self.cluster.certs_folder)

    async def until_silent(self, node: int) -> None:
        """Wait until the controller knows that a node does not answer."""
        await self.until_alarm(f"node-silent/{node}")

    async def until_alarm(self, wanted: str) -> None:
        """Wait for an alarm."""
        async with self._operator() as operator, asyncio.timeout(LOST_S):
            while True:
                alarms = (await operator.status()).alarms
                if any(each.id.startswith(wanted) for each in alarms):
                    return
                await asyncio.sleep(0.5)

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

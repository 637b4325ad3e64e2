"""An operator's day with real processes and TLS: each command, what it prints, its exit status."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mailraft.cluster import certs, ports
from mailraft.cluster.local import LocalCluster

COMMAND = (sys.executable, "-m", "mailraft.cluster.cli")
DEADLINE_S = 60.0
PAGE = (Path(__file__).parents[2] / "docs/json.md").read_text("utf-8")
DOCUMENTED = {
    name: json.loads(text)
    for name, text in re.findall(
        r"^## mailraft ([a-z ]+)$.*?^```json$(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL
    )
}


class Shell:
    """Runs commands on one cluster."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._server = ("--server", cluster.router_address, "--certs", str(cluster.certs_folder))

    async def run(self, *words: str) -> tuple[int | None, str]:
        """Exit status and standard output."""
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *words, *self._server, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
        return process.returncode, output.decode()

    async def line(self, *words: str) -> str:
        """The first, of a command that does well."""
        status, told = await self.run(*words)
        assert status == 0, (words, told)
        return told.partition("\n")[0]

    async def json(self, *words: str) -> Any:
        """What it tells; it has the fields that docs/json.md has."""
        _, told = await self.run(*words, "-o", "json")
        answer = json.loads(told)
        command = " ".join(words[:2])
        if command in DOCUMENTED:
            compare(DOCUMENTED[command], answer, command)
        return answer


def compare(documented: Any, told: Any, where: str) -> None:
    """Fields and types, as far as neither list is empty."""
    if documented is None or told is None:
        return
    assert type(told) is type(documented), where
    if isinstance(told, dict):
        assert list(told) == list(documented), where
        for name, value in told.items():
            compare(documented[name], value, f"{where}.{name}")
    elif isinstance(told, list) and told and documented:
        compare(documented[0], told[0], f"{where}[0]")


@asynccontextmanager
async def node_process(config: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """One that an operator starts by hand."""
    process = await asyncio.create_subprocess_exec(*COMMAND, "node", "--config", str(config))
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), DEADLINE_S)


@pytest.mark.timeout(240)
async def test_an_operators_day(cluster: LocalCluster, tmp_path: Path) -> None:
    """A node joins as `node add` says, takes its share, is drained, and leaves; nothing is lost of
    what status, jobs and settings tell meanwhile.
    """
    shell = Shell(cluster)
    healthy = r"OK epoch=\d+ nodes={0}/{0} shards=4 under_replicated=0 no_leader=0"
    assert re.fullmatch(healthy.format(3), await shell.line("cluster", "status"))
    folder = tmp_path / "n4"
    [port] = ports.choose(1)
    address = f"127.0.0.1:{port}"
    add = ("node", "add", "n4", address)
    assert await shell.line(*add, "--write-config", str(folder)) == f"n4 is node 4 at {address}"
    assert await shell.line(*add) == f"n4 is node 4 at {address}", "safe to repeat"
    assert cluster.certs_folder is not None
    certs.ensure(cluster.certs_folder, certs.names_of([4]))
    shutil.copytree(cluster.certs_folder, folder / "certs")
    async with node_process(folder / "node.toml") as process:
        async with asyncio.timeout(DEADLINE_S):
            while (await shell.run("node", "status", "n4"))[0] != 0:  # noqa: ASYNC110  # is asked
                await asyncio.sleep(0.5)
        planned = await shell.json("rebalance", "plan")
        assert len(planned["moves"]) == 3
        told = await shell.line("rebalance", "start")
        assert re.fullmatch(r"3 shards moved in \d+\.\d s, skew 1\.33→1\.00", told), told
        told = await shell.line("node", "drain", "n1")
        assert re.fullmatch(r"n1 leaders \d→0 in \d+\.\d s", told), told
        nodes = {each["name"]: each for each in await shell.json("node", "list")}
        assert (nodes["n1"]["state"], nodes["n1"]["leads"]) == ("drained", 0)
        assert [each["replicas"] for each in nodes.values()] == [3, 3, 3, 3]
        assert await shell.line("node", "undrain", "n1") == "n1 active"
        await _look_at_all(shell)
        told = await shell.line("node", "decommission", "n4")
        assert re.fullmatch(r"n4 replicas 3→0 in \d+\.\d s; it has left", told), told
        assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 0
    assert re.fullmatch(healthy.format(3), await shell.line("check", "health"))


async def _look_at_all(shell: Shell) -> None:
    """What only tells has the fields that are documented, and figures that agree."""
    for words in (("cluster", "status"), ("check", "health"), ("alarm", "list"), ("shard", "list")):
        await shell.json(*words)
    jobs = await shell.json("job", "list")
    assert {each["state"] for each in jobs} == {"succeeded"}
    [rebalance] = [each for each in jobs if each["what"] == "rebalance"]
    assert len((await shell.json("job", "show", rebalance["job"]))["jobs"]) == 3
    shard = (await shell.json("node", "status", "n4"))["shards"][-1]["shard"]
    found = await shell.json("shard", "show", str(shard))
    assert found["state"] == "ok"
    heir = next(each for each in found["replicas"] if each["node"] != found["leader"])
    told = await shell.line("shard", "transfer-leader", str(shard), "--to", heir["name"])
    assert re.fullmatch(rf"s{shard} leader n\d→{heir['name']} in \d+\.\d s", told), told
    assert await shell.line("rebalance", "limit", "3") == "moves at once 2→3"
    assert (await shell.json("settings", "get"))["concurrent_moves"] == 3


@pytest.mark.timeout(120)
async def test_what_is_wrong_is_told(cluster: LocalCluster) -> None:
    """A dead node costs the OK; without a majority status says so too, by asking each node."""
    shell = Shell(cluster)
    await shell.line("cluster", "status")
    cluster.kill(3)
    told = await _status(shell, "DEGRADED")
    assert [each["alarm"] for each in told["alarms"]][-1] == "node-silent/3"
    assert (await shell.run("alarm", "list"))[0] == 1
    cluster.kill(2)
    told = await _status(shell, "UNAVAILABLE")
    assert {each["alarm"] for each in told["alarms"]} >= {"no-leader", "node-silent/2"}
    assert (await shell.run("check", "health"))[0] == 3


async def _status(shell: Shell, word: str) -> Any:
    """Ask until it is this."""
    async with asyncio.timeout(DEADLINE_S):
        while (told := await shell.json("cluster", "status"))["status"] != word:  # noqa: ASYNC110
            await asyncio.sleep(0.5)
    return told

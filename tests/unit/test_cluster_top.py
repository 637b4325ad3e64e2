"""mailraft top, with a cluster that says what the test wants."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from rich.console import Console
from typer.testing import CliRunner

from mailraft.cluster.cli import app, top_view
from mailraft.cluster.cli.top_view import Moment, drawn
from mailraft.cluster.control.overview import overview
from mailraft.cluster.picture import Picture
from mailraft.cluster.probes import Probes
from mailraft.cluster.scrape import Between, Scrape, parse, scrape
from mailraft.v1 import job_pb2
from mailraft.wire.credentials import Insecure
from seen_cluster import seen, silent

JOB = job_pb2.Job(
    id="j1",
    spec=job_pb2.JobSpec(drain=job_pb2.DrainSpec(node_id=3)),
    state=job_pb2.JOB_STATE_RUNNING,
    activity="moves\x1b[31m replicas",
)
BEFORE = """\
mailraft_rpc_seconds_count{method="M",level="none"} 100
mailraft_rpc_seconds_bucket{method="M",level="none",le="0.01"} 100
mailraft_rpc_seconds_bucket{method="M",level="none",le="+Inf"} 100
"""
AFTER = BEFORE.replace(" 100", " 150")


def moment(*, down: int = 0) -> Moment:
    """Of three nodes, one of them silent if it is told which."""
    told = silent(seen(), down) if down else seen()
    load = Between(Scrape(1.0, parse(BEFORE)), Scrape(3.0, parse(AFTER)))
    return Moment(Picture(overview(told)), (JOB,), {"n1": load, "n2": Between(Scrape(), Scrape())})


def screen(shown: Moment, columns: int = 80) -> str:
    """What stands there, without colours."""
    console = Console(width=columns, file=io.StringIO())
    console.print(drawn(shown))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_all_well() -> None:
    """Nodes with their load, shards, jobs; no alarms. It fits a terminal of 80 columns."""
    shown = screen(moment())
    assert shown.startswith(" OK   epoch=")
    (n1,) = [line for line in shown.splitlines() if line.startswith("│ n1")]
    assert n1.split()[-7:-1] == ["25", "0", "10", "10", "0", "0"]
    assert "drain n3" in shown
    assert "\x1b" not in shown
    assert "alarms" not in shown
    assert "…" not in shown


def test_a_silent_node() -> None:
    """Shows in the first line, at the node, at its shards and as an alarm."""
    shown = screen(moment(down=3))
    assert shown.startswith(" DEGRADED ")
    assert "SILENT" in shown
    assert "under-replicated" in shown
    assert "node-silent/3" in shown


def test_as_json() -> None:
    """All of it; what is not known is null."""
    told = json.loads(json.dumps(top_view.described(moment())))
    page = (Path(__file__).parents[2] / "docs/json.md").read_text("utf-8")
    found = re.search(r"^## mailraft top$.*?^```json$(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found is not None
    documented = json.loads(found[1])
    assert told.keys() == documented.keys()
    assert told["nodes"][0]["load"].keys() == documented["router"].keys()
    assert told["status"] == "OK"
    load = told["nodes"][0]["load"]
    assert (load["calls_per_s"], load["p99_ms"]) == (25.0, 10.0)
    assert told["nodes"][1]["load"] is None
    assert told["jobs"][0]["what"] == "drain n3"
    assert {each["shard"] for each in told["shards"]} > {1}


@pytest.fixture
async def metrics_port() -> AsyncIterator[str]:
    """Of this process."""
    probes = Probes(dict)
    await probes.start("127.0.0.1:0", Insecure())
    yield f"127.0.0.1:{probes.port}"
    await probes.stop()


async def test_it_reads_metrics_over_http(metrics_port: str) -> None:
    """And takes a process that is not there for one that tells nothing."""
    told = await scrape(metrics_port)
    cpu_s = REGISTRY.get_sample_value("process_cpu_seconds_total")
    assert cpu_s is not None
    assert 0 < told.total("process_cpu_seconds_total") <= cpu_s
    assert (await scrape("127.0.0.1:1")).samples == {}


async def test_a_page_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is read no further than a limit."""
    monkeypatch.setattr("mailraft.cluster.scrape.PAGE_BYTES_MAX", 1_000_000)

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(b"x 1\n" * 10_000)
                await writer.drain()
        except OSError:
            writer.close()

    server = await asyncio.start_server(flood, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        assert (await scrape(address)).samples == {}
    finally:
        server.close()


def test_wrong_addresses_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line each."""
    monkeypatch.chdir(tmp_path)
    server = ("--server", "127.0.0.1:1", "--insecure")
    told = CliRunner().invoke(app, ["top", "--once", *server, "--metrics", "n1"])
    assert told.exit_code == 2
    assert "bad --metrics 'n1'" in told.stderr
    told = CliRunner().invoke(app, ["top", "--once"])
    assert "no cluster runs in .mailraft" in told.stderr

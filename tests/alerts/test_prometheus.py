"""A real Prometheus (Debian's package) scrapes a real cluster: `make alerts`.

The dashboard's queries run there; and with a node gone, a slow disk, and a leader that flaps, the
right alert fires.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.faults.armed import ArmedChild

import dashboard
from mailraft.cluster import ports
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.cluster.operator import Operator
from mailraft.wire import errors

RULES = Path(__file__).parents[2] / "deploy/observability/alerts.yml"
ACCOUNTS = [f"user{number}" for number in range(6)]
QUIET_S = 40.0
FIRES_WITHIN_S = 120.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="Debian's package prometheus"),
]


class Prometheus:
    """As it is asked over HTTP."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, **parameters: str) -> Any:
        """What the API answers. Raises OSError for a query that it refuses."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def firing(self) -> set[tuple[str, str]]:
        """Alerts that fire: name, and its instance or else its shard."""
        alerts = [each for each in self.ask("alerts")["alerts"] if each["state"] == "firing"]
        labels = [each["labels"] for each in alerts]
        return {
            (each["alertname"], each.get("instance") or each.get("shard", "")) for each in labels
        }

    async def fires(self, *wanted: tuple[str, str]) -> None:
        """Wait until these fire."""
        fired: set[tuple[str, str]] = set()
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRES_WITHIN_S):
                while not set(wanted) <= fired:
                    await asyncio.sleep(1.0)
                    fired = await asyncio.to_thread(self.firing)
        assert set(wanted) <= fired
        print(f"fires: {sorted(fired)}")


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalCluster]:
    """Three nodes, whose disks can be made slow, and a router; mail comes in all the time."""
    monkeypatch.setattr("mailraft.cluster.local.Child", ArmedChild)
    async with LocalCluster(tmp_path / "cluster", LocalOptions(nodes=3, shards=2)) as running:
        await running.wait_ready()
        async with running.client() as mail:
            for account in ACCOUNTS:
                await mail.create_account(account)

            async def deliver() -> None:
                while True:
                    for account in ACCOUNTS:
                        with suppress(errors.MailraftError):
                            await mail.deliver(b"Subject: load\r\n\r\n", to=[account])
                        await asyncio.sleep(0.01)

            load = asyncio.create_task(deliver())
            yield running
            load.cancel()
            await asyncio.wait([load])


@contextmanager
def prometheus(cluster: LocalCluster, folder: Path) -> Iterator[Prometheus]:
    """One that scrapes every process of the cluster."""
    folder.mkdir()
    targets = [cluster.metrics_address(name) for name in ("n1", "n2", "n3", "router")]
    config = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "mailraft", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config), "utf-8")  # JSON is YAML too
    address = f"{ports.LOOPBACK}:{ports.choose(1)[0]}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield Prometheus(address)
    finally:
        process.terminate()
        process.wait(20)


async def test_alerts_and_dashboard(cluster: LocalCluster, tmp_path: Path) -> None:
    """Quiet while all is well; then each cause fires its alert."""
    at = cluster.metrics_address
    with prometheus(cluster, tmp_path / "prometheus") as told:
        await asyncio.sleep(QUIET_S)
        assert await asyncio.to_thread(told.firing) == set()
        empty = [
            query for query in dashboard.queries() if not told.ask("query", query=query)["result"]
        ]
        print(f"{len(dashboard.queries())} queries of the dashboard, without a series: {empty}")
        assert len(empty) < len(dashboard.queries()) / 4

        await flap(cluster, 1)
        await told.fires(("MailraftLeaderFlapping", "1"))
        assert await asyncio.to_thread(told.firing) == {("MailraftLeaderFlapping", "1")}

        cluster.kill(3)
        await told.fires(("MailraftProcessDown", at("n3")), ("MailraftFollowerBehind", "1"))
        assert ("MailraftFlushSlow", at("n2")) not in await asyncio.to_thread(told.firing)

        cluster.start(3)
        await cluster.wait_ready()
        slow = cluster._nodes[2]
        assert isinstance(slow, ArmedChild)
        slow.failpoints = "journal.before_sync=sleep:0.3"
        cluster.kill(2)
        cluster.start(2)
        await told.fires(("MailraftFlushSlow", at("n2")))
        fired = await asyncio.to_thread(told.firing)
        assert not fired & {("MailraftFlushSlow", at("n1")), ("MailraftFlushSlow", at("n3"))}


async def flap(cluster: LocalCluster, shard: int) -> None:
    """Leadership of a shard goes to and fro."""
    async with Operator(cluster.router_address, cluster.credentials()) as operator:
        for _ in range(8):
            with suppress(errors.MailraftError):
                await operator.transfer(shard)
            await asyncio.sleep(3.0)

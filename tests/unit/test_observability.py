"""Metrics are what the dashboard, the alerts and their pages take them for."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry, generate_latest

import dashboard
import metrics_page
from mailraft.client import AsyncClient, Consistency, errors, metrics
from mailraft.cluster.scrape import Between, Scrape, parse
from mailraft.router import service
from mailraft.wire.credentials import Insecure
from three_nodes import Nodes, all_up, until

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy/observability"
ALERTS = (DEPLOY / "alerts.yml").read_text("utf-8")
# What a label may be: each has a bound (docs/metrics.md). `le` is of histograms.
LABELS = {"method", "item", "level", "code", "reason"} | {
    "shard",
    "node",
    "outcome",
    "family",
    "le",
}
FOREIGN = {"process_resident_memory_bytes"}


def names_in(text: str) -> set[str]:
    """Every metric that a query names."""
    return set(re.findall(r"\b(?:mailraft|process)_[a-z0-9_]+", text))


def test_queries_name_only_metrics_that_exist() -> None:
    """Of the dashboard and of the alerts."""
    expressions = "\n".join(line for line in ALERTS.splitlines() if "summary:" not in line)
    assert len(names_in(expressions)) > 10
    for text in (*dashboard.queries(), expressions):
        assert names_in(text) - metrics_page.names() - FOREIGN == set(), text


def test_a_wrong_name_is_seen() -> None:
    """What the test above relies on."""
    assert names_in("rate(mailraft_flush_secs_count[1m])") - metrics_page.names()


def test_names_keep_to_the_conventions() -> None:
    """Base units, a unit or `total` last where there is one, labels with a bound."""
    for registry in metrics_page.chapters():
        for name, kind, labels, meaning in metrics_page.table(registry):
            assert not re.search(r"_(ms|millis|kib|mib|percent)\b", name), name
            assert name.strip("`").endswith("_total") == (kind == "counter"), name
            assert set(re.findall(r"\w+", labels)) <= LABELS, name
            assert meaning.endswith("."), name


def test_every_alert_has_its_page() -> None:
    """Under its own name, with what it means and what to do."""
    page = (ROOT / "docs/observability.md").read_text("utf-8")
    alerts = re.findall(r"- alert: (\w+)", ALERTS)
    assert len(alerts) == len(set(alerts)) > 10
    for alert in alerts:
        found = re.search(
            rf"^### {alert}\n\n(.+?)(?=^### |^## |\Z)", page, re.MULTILINE | re.DOTALL
        )
        assert found is not None, f"docs/observability.md lacks {alert}"
        for part in ("**Means**", "**Look at**", "**Do**"):
            assert part in found[1], f"{alert} lacks {part}"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus)")
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool(arguments: tuple[str, ...]) -> None:
    """The rules are well formed, and each fires on its cause."""
    told = subprocess.run(
        ["promtool", *arguments], cwd=DEPLOY, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """All three are up, and one leads."""
    async with all_up(tmp_path) as found:
        yield found


def read(registry: CollectorRegistry) -> Scrape:
    """As Prometheus would."""
    return Scrape(1.0, parse(generate_latest(registry).decode()))


async def test_what_a_node_and_a_router_tell(nodes: Nodes) -> None:
    """Calls by method and level, errors, waits, the shard, the disk; nothing that is not on the
    page.
    """
    routing, calling = CollectorRegistry(), CollectorRegistry()
    router = await service.serve(nodes.map, Insecure(), "127.0.0.1:0", registry=routing)
    deliver = {"method": "MessageService/DeliverMessages"}
    try:
        async with AsyncClient(f"127.0.0.1:{router.port}", insecure=True, direct=False) as mail:
            metrics.register(mail, calling)
            assert read(calling).total("mailraft_client_batch_calls_total") == 0
            await mail.create_account("alice")
            for _ in range(3):
                await mail.deliver(b"Subject: counted\r\n\r\n", to=["alice"])
            await mail.get_account("alice", consistency=Consistency.LINEARIZABLE)
            with pytest.raises(errors.AccountNotFoundError):
                await mail.get_account("nobody")
            await until(nodes.alike)
            refused = "mailraft_rpc_errors_total"
            await until(lambda: read(routing).total(refused, code="NOT_FOUND") == 1)
            at_router, at_client = read(routing), read(calling)
    finally:
        await router.stop(drain_s=0, grace_s=0.1)
    leader = read(nodes.registries[nodes.leader])
    for told in (leader, at_router):
        assert told.total("mailraft_rpc_seconds_count", **deliver, level="default") == 3
    assert at_router.total("mailraft_router_batch_items_total") >= 3
    assert at_client.total("mailraft_client_batch_items_total") >= 3
    assert leader.total("mailraft_rpc_items_total", item="recipient", code="OK") == 3
    waits = leader.by("mailraft_rpc_wait_seconds_total", "reason")
    assert {"queue", "flush", "replication", "apply", "read index"} <= waits.keys()
    assert leader.total("mailraft_shard_leader", shard="1") == 1
    assert leader.by("mailraft_shard_follower_lag_entries", "node").keys() == {
        str(number) for number in (1, 2, 3) if number != nodes.leader
    }
    assert leader.total("mailraft_shard_log_bytes", shard="1") > 0
    assert leader.total("mailraft_disk_free_bytes") > 0
    assert leader.total("mailraft_rpc_streams_open") >= 4  # two from each peer
    for told in (leader, at_router, at_client):
        made = {name for name in told.samples if not name.endswith("_created")}
        assert made <= metrics_page.names()
        for series in told.samples.values():
            assert {label for labels in series for label, _ in labels} <= LABELS


async def test_parts_have_codes_of_their_own(nodes: Nodes) -> None:
    """A call that is answered OK may hold refusals: of a recipient, of a read in a batch."""
    leader = nodes.leader
    async with AsyncClient(nodes.map.nodes[leader - 1].address, insecure=True) as mail:
        await mail.create_account("alice")
        with pytest.raises(errors.AccountNotFoundError):
            await mail.deliver(b"Subject: lost\r\n\r\n", to=["nobody"])
        asked = ("alice", "nobody", "alice")
        reads = [mail.get_account(name, consistency=Consistency.LINEARIZABLE) for name in asked]
        await asyncio.gather(*reads, return_exceptions=True)
    item, registry = "mailraft_rpc_items_total", nodes.registries[leader]
    await until(lambda: read(registry).total(item) == 4)
    told = read(registry)
    assert told.total(item, item="recipient", level="default", code="NOT_FOUND") == 1
    assert told.total(item, item="get_account", level="linearizable", code="OK") == 2
    assert told.total(item, item="get_account", level="linearizable", code="NOT_FOUND") == 1


async def test_a_made_up_call_makes_no_series(nodes: Nodes) -> None:
    """Names that strangers make up are no labels, nor are levels that there are not."""
    address = nodes.map.nodes[0].address
    async with grpc.aio.insecure_channel(address) as channel:
        for path in ("/mailraft.v1.MessageService/MadeUp", "/made.Up/Call"):
            call = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
            with pytest.raises(grpc.aio.AioRpcError):
                await call(b"")
        get = "/mailraft.v1.AccountService/GetAccount"
        call = channel.unary_unary(get, request_serializer=bytes, response_deserializer=bytes)
        for number in (77, 78):
            with pytest.raises(grpc.aio.AioRpcError):
                # GetAccountRequest{account_id: "a", read_options: {consistency: number}}
                await call(b"\x0a\x01a\x12\x02\x08" + bytes((number,)))
    # A call is counted when its handler ends, which is after its caller has the answer.
    registry, name = nodes.registries[1], "mailraft_rpc_seconds_count"
    await until(lambda: read(registry).total(name, level="unknown") == 2)
    told = read(registry)
    assert "MadeUp" not in str(told.samples)
    assert "made.Up" not in str(told.samples)
    assert not {"77", "78"} & told.by(name, "level").keys()


def test_two_readings() -> None:
    """Rates and quantiles are of the time between; a restart is no negative rate."""
    one = 'x_total{a="1"} 5\nx_total{a="2"} 5\nt_bucket{le="0.1"} 0\nt_bucket{le="+Inf"} 0\n'
    two = 'x_total{a="1"} 9\nx_total{a="2"} 11\nt_bucket{le="0.1"} 9\nt_bucket{le="+Inf"} 10\n'
    between = Between(Scrape(10.0, parse(one)), Scrape(12.0, parse(two)))
    assert between.rate("x_total") == 5.0
    assert between.quantile_s("t", 0.5) == 0.1
    assert between.quantile_s("t", 0.99) == 0.1  # past the last end there is none to tell
    assert Between(between.after, Scrape(13.0, between.before.samples)).rate("x_total") == 0
    assert not Between(Scrape(), between.after).known

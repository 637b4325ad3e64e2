"""mailraft check perf: what it says of figures, and that it leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mailraft.cluster import perf
from mailraft.cluster.cli import app
from mailraft.internal.v1 import inspect_service_pb2 as pb
from mailraft.wire import errors
from mailraft.wire.credentials import Insecure
from three_nodes import Nodes, all_up


def test_each_figure_is_judged_by_what_is_expected() -> None:
    """A slow tail is slow, too; a node that does not answer is no good figure."""
    assert perf.of_sync("n1", [1_000] * 100).good
    assert not perf.of_sync("n1", [11_000] * 100).good
    assert not perf.of_sync("n1", [1_000] * 95 + [60_000] * 5).good
    assert perf.of_peer("n1", "n2", pb.PeerMeasured(round_trip_us=[900] * 9)).good
    assert not perf.of_peer("n1", "n2", pb.PeerMeasured(round_trip_us=[9_000] * 9)).good
    silent = perf.of_peer("n1", "n2", pb.PeerMeasured(error="UNAVAILABLE"))
    assert not silent.good
    assert "UNAVAILABLE" in str(silent)
    assert perf.of_deliveries([9_000] * 1_000, 0, 5.0).good
    assert not perf.of_deliveries([9_000] * 400, 0, 5.0).good
    assert not perf.of_deliveries([9_000] * 1_000, 1, 5.0).good
    assert not perf.of_deliveries([], 3, 5.0).good
    assert str(perf.of_sync("n1", [1_000])) == (
        "OK   n1 synced write: p50=1.0 ms p99=1.0 ms (expected: p50 below 10 ms, p99 below 50 ms)"
    )


def test_a_folder_alone_needs_no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit status says whether its disk is fast enough; nothing is left in it."""
    monkeypatch.setattr(perf, "FOLDER_ROUNDS", 3)
    told = CliRunner().invoke(app, ["check", "perf", "--folder", str(tmp_path), "-o", "json"])
    document = json.loads(told.stdout)
    assert told.exit_code == (0 if document["status"] == "OK" else 1)
    assert [each["what"] for each in document["findings"]] == [f"{tmp_path} synced write"]
    monkeypatch.setattr(perf, "SYNC_P50_MS_MAX", 0.0)
    told = CliRunner().invoke(app, ["check", "perf", "--folder", str(tmp_path)])
    assert told.exit_code == 1
    assert "SLOW: 0 of 1 as expected" in told.stdout
    assert not list(tmp_path.iterdir())
    told = CliRunner().invoke(app, ["check", "perf", "--folder", str(tmp_path / "no")])
    assert told.exit_code == 2


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """Three nodes, one leads."""
    async with all_up(tmp_path) as found:
        yield found


@pytest.mark.timeout(90)
async def test_a_cluster_is_looked_at_and_left_as_it_was(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every disk, every pair of nodes, and deliveries to an account that is gone afterwards."""
    monkeypatch.setattr(perf, "ROUNDS", 3)
    found = await perf.check_nodes(nodes.map, Insecure())
    names = {each.what for each in found}
    assert {f"n{number} synced write" for number in (1, 2, 3)} <= names
    assert {f"n{a} to n{b} round trip" for a in (1, 2, 3) for b in (1, 2, 3) if a != b} <= names
    created: list[str] = []
    async with nodes.client() as mail:
        create = mail.create_account

        async def noted(account: str) -> object:
            created.append(account)
            return await create(account)

        monkeypatch.setattr(mail, "create_account", noted)
        [delivered] = await perf.check_deliveries(mail, 0.5)
        assert "failed" not in delivered.figures
        [account] = created
        assert account.startswith(perf.ACCOUNT_PREFIX)
        with pytest.raises(errors.AccountNotFoundError):
            await mail.get_account(account)

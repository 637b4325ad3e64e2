"""The capacity model and the pages of make scale, from made-up measurements that are exact."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from bench.scale import capacity, capacity_report, measure, report
from bench.scale.capacity import GIB, LIGHT, NODE, OFFICE, TIB, Costs, needs
from bench.scale.data import Data
from bench.scale.fit import Model, Point, fit, least_squares
from bench.scale.measure import BASE, KIB, MIB, ClusterSeen, Cost, Seen, Setting

from mailraft.cluster.mapfile import NODES_MAX, SHARDS_MAX

DOCS = Path(__file__).parent.parent.parent / "docs"


def idle(nodes: int, shards: int) -> ClusterSeen:
    """A node takes 1 % and 40 MiB, 0.5 % and 1 MiB a peer, 0.02 % and 0.5 MiB a group."""
    groups, peers = shards * min(nodes, 3) / nodes, nodes - 1
    cpu_percent, memory_mib = 1 + 0.5 * peers + 0.02 * groups, 40 + peers + 0.5 * groups
    return ClusterSeen(nodes, shards, cpu_percent, memory_mib, disk_ratio=0.6)


def cost(setting: Setting, call_ms: float) -> Cost:
    """So much a call, ten calls a second, beside what the nodes take idle."""
    idle_ms = setting.nodes * idle(*setting.cluster).cpu_percent / 100 * 1000 / 10
    return Cost(per_s=10.0, p50_ms=2.0, p99_ms=9.0, nodes_ms=call_ms + idle_ms, client_ms=0.2)


def seen(setting: Setting) -> Seen:
    """A replica takes 0.1 ms a mail, 0.5 ms an entry, 0.3 ms a round, 0.01 ms a KiB, 0.02 ms of
    large mails; reads the like.
    """
    copies, calls = setting.replicas, min(1.0, 2 * setting.nodes / setting.concurrency)
    busy_shards = setting.shards * (1 - (1 - 1 / setting.shards) ** setting.concurrency)
    entries, rounds = (
        busy_shards / setting.concurrency,
        min(1.0, setting.nodes / setting.concurrency),
    )
    kib = setting.size_bytes / KIB
    bytes_ms = kib * (0.01 if setting.size_bytes < MIB else 0.02)
    return Seen(
        setting,
        cost(setting, copies * (0.1 + 0.5 * entries + 0.3 * rounds + bytes_ms)),
        cost(setting, 0.2 + 0.4 * calls + bytes_ms / 2),
        cost(setting, 0.9 + 0.4 * calls),
    )


@pytest.fixture
def data() -> Data:
    """All settings."""
    clusters = [*dict.fromkeys(each.cluster for each in measure.settings()), *measure.IDLE_ONLY]
    mailbox = {name: {1_000: 50.0, 1_000_000: 60.0} for name in report.MAILBOX_SERIES}
    return Data(
        2,
        "3.11",
        0.5,
        [seen(each) for each in measure.settings()],
        [idle(*each) for each in clusters],
        mailbox,
    )


@pytest.fixture
def costs(data: Data) -> Costs:
    """What is fitted to it."""
    return capacity.fitted(data)


# ---- fitting -------------------------------------------------------------------------------------


def points(count: int, *, noise: float = 0.0) -> list[Point]:
    """3 and 2 × the square, off by so much up and down."""
    return [
        Point(str(x), {"one": 1.0, "square": x * x}, (3 + 2 * x * x) * (1 + noise * (-1) ** x))
        for x in range(1, count + 1)
    ]


def test_exact_costs_are_found() -> None:
    """Without noise the coefficients come back, and what was held out is predicted."""
    found = fit(points(12))
    assert found.model.coefficients == pytest.approx({"one": 3.0, "square": 2.0})
    assert len(found.held_out) == 12
    assert found.worst_error == pytest.approx(0.0, abs=1e-9)


def test_the_error_is_that_of_points_the_model_has_not_seen() -> None:
    """One odd point: held out it is predicted badly, though a model with it would bend to it."""
    odd = [*points(11), Point("odd", {"one": 1.0, "square": 4.0}, 110.0)]
    found = fit(odd)
    assert found.held_out["odd"] == pytest.approx(0.9, abs=0.01)
    assert found.worst_error >= 0.9
    assert found.typical_error < found.worst_error


def test_noise_shows_in_the_error() -> None:
    """Measurements that are off by a tenth are predicted about that well."""
    found = fit(points(16, noise=0.1))
    assert 0.05 < found.typical_error < 0.2


def test_no_cost_is_below_zero() -> None:
    """A feature that would have to save something is left out."""
    falling = [Point(str(x), {"one": 1.0, "x": x}, 10.0 - x) for x in range(1, 8)]
    found = least_squares(falling)
    assert found.coefficients["x"] == 0.0
    assert found.coefficients["one"] > 0


def test_features_that_are_the_same_are_refused() -> None:
    """They cannot be told apart."""
    same = [Point(str(x), {"a": x, "b": x}, 2.0 * x) for x in (1.0, 2.0, 4.0)]
    with pytest.raises(ValueError, match="apart"):
        least_squares(same)


# ---- the model -----------------------------------------------------------------------------------


def test_the_settings_vary_one_thing_each() -> None:
    """Each once, each value of each number, and what shares a cluster together."""
    wanted = measure.settings()
    assert len(set(wanted)) == len(wanted)
    assert {each.nodes for each in wanted} == {1, 3, 5}
    assert {each.shards for each in wanted} >= {1, 256}
    assert {each.size_bytes for each in wanted} >= {KIB, 10 * MIB}
    assert {each.concurrency for each in wanted} >= {1, 1_024}
    clusters = [group[0].cluster for group in measure.by_cluster(wanted)]
    assert len(set(clusters)) == len(clusters)
    assert all(each.size_bytes * each.concurrency <= 64 * MIB for each in wanted)


def test_the_model_finds_what_the_measurements_were_made_of(costs: Costs) -> None:
    """Every coefficient, of deliveries, reads and idle nodes."""
    expected = {"mail": 0.1, "entry": 0.5, "round": 0.3, "KiB": 0.01, "streamed KiB": 0.02}
    assert costs.deliver.model.coefficients == pytest.approx(expected)
    expected = {"read": 0.2, "call": 0.4, "KiB": 0.005, "streamed KiB": 0.01}
    assert costs.fetch.model.coefficients == pytest.approx(expected)
    assert costs.page.model.coefficients == pytest.approx({"read": 0.9, "call": 0.4})
    expected = {"node": 1.0, "peer": 0.5, "group": 0.02}
    assert costs.idle_cpu.model.coefficients == pytest.approx(expected)
    expected = {"node": 40.0, "peer": 1.0, "group": 0.5}
    assert costs.idle_memory.model.coefficients == pytest.approx(expected)
    assert capacity.at_most(costs, "group", 25.0) == pytest.approx(1_200)
    assert capacity.at_most(costs, "peer", 25.0) == pytest.approx(48)


def test_needs_are_the_arithmetic_that_the_page_shows(costs: Costs) -> None:
    """1 million office mailboxes, by hand."""
    found = needs(OFFICE, 1_000_000, costs)
    assert found.mails_per_s == pytest.approx(1_000_000 * 40 * 4 / 86_400)
    kept = 1_000_000 * 40 * 730 * 64 * KIB * 0.6
    assert found.disk_bytes == pytest.approx(3 * kept)
    assert found.shards == math.ceil(kept / (128 * GIB))
    assert found.nodes_by_disk == math.ceil(3 * kept / (8 * TIB * 0.7))
    a_mail, a_fetch, a_page = 3 * (0.1 + 0.5 + 0.3 + 0.64), 0.2 + 0.4 + 0.32, 0.9 + 0.4
    each = (found.mails_per_s, found.fetches_per_s, found.pages_per_s)
    cores = sum(rate * ms / 1000 for rate, ms in zip(each, (a_mail, a_fetch, a_page), strict=True))
    assert found.cores == pytest.approx(cores)
    assert found.nodes_by_cpu == math.ceil(cores / 0.5)
    assert found.nodes == max(found.nodes_by_cpu, found.nodes_by_disk, found.nodes_by_network)


def test_what_is_scarcest_decides(costs: Costs) -> None:
    """Small disks, slow nodes, a thin network: each asks for more nodes than the others."""
    small = replace(NODE, disk_bytes=TIB // 16)
    slow = replace(NODE, cores_used=0.0001)
    thin = replace(NODE, network_bytes_per_s=1e5)
    for node, scarce in ((small, "disk"), (slow, "cpu"), (thin, "network")):
        found = needs(LIGHT, 1_000_000, costs, node)
        assert found.nodes == getattr(found, f"nodes_by_{scarce}")
    assert needs(LIGHT, 1, costs).nodes == 3


def test_what_one_cluster_cannot_have_is_split(costs: Costs) -> None:
    """By the number of shards, and of nodes, that a cluster may have."""
    assert needs(LIGHT, 1_000, costs).clusters == 1
    found = needs(OFFICE, 100_000_000, costs)
    assert found.nodes_a_cluster == pytest.approx(49)  # 1 % + 48 others × 0.5 % = 25 %
    assert found.nodes / found.clusters <= found.nodes_a_cluster
    assert found.shards / found.clusters <= SHARDS_MAX
    assert found.nodes / found.clusters <= NODES_MAX


def test_every_node_beats_to_every_other(costs: Costs) -> None:
    """What an idle node takes grows with the cluster; with shared groups alone it would not."""
    light, office = (needs(profile, 10_000_000, costs) for profile in (LIGHT, OFFICE))
    assert office.nodes > light.nodes
    groups = office.groups
    assert office.idle_percent == pytest.approx(1 + 0.5 * (office.nodes - 1) + 0.02 * groups)
    assert office.idle_percent_shared == pytest.approx(1 + 0.5 * 2 * groups + 0.02 * groups)


def test_a_map_grows_with_its_nodes_and_shards() -> None:
    """Some tens of bytes each."""
    small, more_shards = capacity.map_bytes(10, 100), capacity.map_bytes(10, 200)
    assert 20 < (more_shards - small) / 100 < 100
    assert 20 < (capacity.map_bytes(110, 100) - small) / 100 < 150


# ---- the pages -----------------------------------------------------------------------------------


def test_the_data_is_kept(data: Data, tmp_path: Path) -> None:
    """What was measured comes back, to four digits."""
    data.save(tmp_path / "scale.json")
    again = Data.load(tmp_path / "scale.json")
    assert again.settings == data.settings
    assert again.mailbox == data.mailbox
    assert again.of(BASE).deliver.nodes_ms == pytest.approx(data.of(BASE).deliver.nodes_ms, 1e-3)
    again.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "scale.json").read_text()


def test_the_document_and_its_plots(data: Data, tmp_path: Path) -> None:
    """Every setting is in each, and no bar leaves its plot."""
    report.write(data, tmp_path)
    text = (tmp_path / "scale.md").read_text("utf-8")
    for varied in report.VARIED:
        assert all(f"| {varied.name(each)} |" in text for each in varied.settings)
    for plot in ("scale-throughput.svg", "scale-latency.svg", "scale-mailbox.svg"):
        assert f"({plot})" in text
        drawn = ET.parse(tmp_path / plot).getroot()  # noqa: S314  # written above
        width = float(drawn.attrib["width"])
        for bar in (each.attrib for each in drawn.iter() if each.tag.endswith("rect")):
            assert float(bar["width"]) >= 0
            assert float(bar.get("x", 0)) + float(bar["width"]) <= width


def test_the_capacity_page(data: Data, tmp_path: Path) -> None:
    """The model with its error, both numbers of mailboxes, and what the arithmetic gives."""
    capacity_report.write(data, tmp_path)
    text = (tmp_path / "capacity.md").read_text("utf-8")
    assert "0.1 ms × a mail, each replica + 0.5 ms × a log entry, each replica" in text
    assert "| 0% | 0% |" in text
    assert "1 million, office" in text
    assert "100 million, light" in text
    assert "25 % at 48 of them" in " ".join(text.split())
    assert "{" not in text


@pytest.mark.parametrize("page", ["scale.md", "capacity.md", "scale-throughput.svg"])
def test_the_recorded_pages_follow_from_the_recorded_data(page: str, tmp_path: Path) -> None:
    """docs/ has what docs/scale.json says: after a change run `python -m bench.scale report`."""
    recorded = Data.load(DOCS / "scale.json")
    report.write(recorded, tmp_path)
    capacity_report.write(recorded, tmp_path)
    assert (tmp_path / page).read_text("utf-8") == (DOCS / page).read_text("utf-8")


def test_a_model_predicts() -> None:
    """The sum of coefficient times feature, and by what share it is off."""
    model = Model({"a": 2.0, "b": 0.5})
    assert model.predict({"a": 1.0, "b": 4.0}) == 4.0
    assert model.error(Point("p", {"a": 1.0, "b": 4.0}, 5.0)) == pytest.approx(0.2)

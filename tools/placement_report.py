"""Simulates placement at 1,000 nodes and writes docs/placement.md and docs/placement.svg.

Nothing here is measured in time, so each run writes the same bytes, on any machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bars import Chart, svg
from mailraft.cluster.placement import Placement, leader_skew, load, place, skew, target
from mailraft.cluster.topology import Node, Topology

DOCS = Path(__file__).parent.parent / "docs"
ZONES = 10
NODES_PER_HOST = 4
WEIGHTS_MILLI = (1_000, 1_000, 2_000, 4_000)  # of the nodes of each host, which share its cores
REWEIGHED = 4  # its weight is 4,000 at first


@dataclass(frozen=True)
class Size:
    nodes: int
    shards: int
    replication: int


FULL = Size(nodes=1_000, shards=16_384, replication=3)
SIZES = (FULL, Size(nodes=240, shards=4_096, replication=1), Size(240, 4_096, replication=5))

CHANGES = (
    "a node joins",
    "a zone joins",
    "a node leaves",
    "a zone leaves",
    "a node replaces another",
    "a weight falls to a quarter",
    "a weight doubles",
)
COLUMNS = (
    "change",
    "moved",
    "minimum",
    "moved / minimum",
    "of all",
    "placed anew",
    "skew",
    "leader skew",
    "leaders changed",
)


@dataclass(frozen=True)
class Outcome:
    """What a change of the nodes does; figures count replicas."""

    name: str
    minimum: float
    moved: int
    moved_anew: int  # if all were placed by the ring again
    skew: float
    leader_skew: float
    leaders_changed: int

    @property
    def over_minimum(self) -> float:
        return self.moved / self.minimum


@dataclass(frozen=True)
class Simulation:
    """The first placement, and each change from there."""

    size: Size
    skew: float
    leader_skew: float
    outcomes: Sequence[Outcome]


def cluster(count: int) -> list[Node]:
    """Nodes, four to a host, hosts in ten zones."""
    return [_node(number, _host(number) % ZONES) for number in range(1, count + 1)]


def _host(number: int) -> int:
    return (number - 1) // NODES_PER_HOST


def _node(number: int, zone: int) -> Node:
    weight_milli = WEIGHTS_MILLI[(number - 1) % NODES_PER_HOST]
    return Node(number, f"zone-{zone}", f"host-{_host(number)}", weight_milli)


def simulate(size: Size) -> Simulation:
    """All changes, each by itself."""
    nodes = cluster(size.nodes)
    before = place(nodes, range(1, size.shards + 1), size.replication)
    return Simulation(
        size,
        skew(before, nodes, size.replication),
        leader_skew(before, nodes, size.replication),
        [_outcome(name, before, nodes, size.replication) for name in CHANGES],
    )


def _outcome(name: str, before: Placement, nodes: Sequence[Node], replication: int) -> Outcome:
    after_nodes = changed(name, nodes)
    after = target(before, after_nodes, replication)
    return Outcome(
        name,
        _minimum(before, nodes, after_nodes, replication),
        moved(before, after),
        moved(before, place(after_nodes, before, replication)),
        skew(after, after_nodes, replication),
        leader_skew(after, after_nodes, replication),
        sum(before[shard][0] != after[shard][0] for shard in before),
    )


def changed(name: str, nodes: Sequence[Node]) -> list[Node]:
    """The nodes after a change."""
    after = {node.id: node for node in nodes}
    new = len(nodes) + 1
    match name:
        case "a node joins":
            after[new] = replace(_node(new, zone=1), weight_milli=2_000)
        case "a zone joins":
            after |= {each: _node(each, ZONES) for each in range(new, new + len(nodes) // ZONES)}
        case "a node leaves":
            del after[1]
        case "a zone leaves":
            return [node for node in nodes if node.zone != "zone-0"]
        case "a node replaces another":
            after[new] = replace(after.pop(1), id=new)
        case "a weight falls to a quarter":
            after[REWEIGHED] = replace(after[REWEIGHED], weight_milli=1_000)
        case "a weight doubles":
            after[REWEIGHED] = replace(after[REWEIGHED], weight_milli=8_000)
        case _:
            raise ValueError(name)
    return list(after.values())


def _minimum(
    before: Placement, nodes: Iterable[Node], after_nodes: Iterable[Node], replication: int
) -> float:
    """What has to move: all of who goes, up to the share of who comes or has another weight."""
    old = {node.id: node for node in nodes}
    new = {node.id: node for node in after_nodes}
    loads = load(before)
    shares = Topology(new.values(), replication).shares(len(before))
    gone = sum(loads[node] for node in old.keys() - new.keys())
    taken = sum(shares[node] for node in new.keys() - old.keys())
    reweighed = sum(
        abs(shares[node] - loads[node])
        for node in old.keys() & new.keys()
        if old[node] != new[node]
    )
    return max(gone, taken) + reweighed


def moved(before: Placement, after: Placement) -> int:
    """Replicas on nodes that did not hold them before."""
    return sum(len(set(chosen) - set(before[shard])) for shard, chosen in after.items())


def markdown(simulations: Sequence[Simulation]) -> str:
    """docs/placement.md."""
    lines = [_INTRODUCTION]
    for each in simulations:
        size = each.size
        lines += [
            f"## Replication factor {size.replication}",
            "",
            f"{size.shards:,} shards on {size.nodes:,} nodes. {headline(each)}",
            "",
            *table(each),
            "",
        ]
    return "\n".join(lines)


def headline(simulation: Simulation) -> str:
    return (
        f"First placement: skew of replicas {simulation.skew:.3f}, "
        f"of leaders {simulation.leader_skew:.3f}."
    )


def table(simulation: Simulation) -> list[str]:
    replicas = simulation.size.shards * simulation.size.replication
    return [
        f"| {' | '.join(COLUMNS)} |",
        f"|---|{'--:|' * (len(COLUMNS) - 1)}",
        *(
            f"| {each.name} | {each.moved:,} | {each.minimum:,.1f} | {each.over_minimum:.3f} "
            f"| {each.moved / replicas:.2%} | {each.moved_anew:,} | {each.skew:.3f} "
            f"| {each.leader_skew:.3f} | {each.leaders_changed:,} |"
            for each in simulation.outcomes
        ),
    ]


def plot(simulation: Simulation) -> str:
    """docs/placement.svg."""
    size, outcomes = simulation.size, simulation.outcomes
    return svg(
        [
            Chart(
                f"Replicas moved, of {size.shards * size.replication:,} (logarithmic)",
                ("minimum", "moved by mailraft", "ring placed anew"),
                [(each.name, (each.minimum, each.moved, each.moved_anew)) for each in outcomes],
                (1, 10, 100, 1_000, 10_000, 100_000),
                ",.0f",
                logarithmic=True,
            ),
            Chart(
                "Skew afterwards: highest load over fair share",
                ("replicas", "leaders"),
                [
                    ("first placement", (simulation.skew, simulation.leader_skew)),
                    *((each.name, (each.skew, each.leader_skew)) for each in outcomes),
                ],
                (1.0, 1.05, 1.1, 1.15, 1.2),
                ".3f",
            ),
        ]
    )


_INTRODUCTION = f"""\
# Placement at {FULL.nodes:,} nodes

Written by `make placement`; a test compares it with a fresh run. Simulated, since so many nodes do
not fit on a desk: {NODES_PER_HOST} nodes to a host (weights 1, 1, 2 and 4), hosts in {ZONES} zones.
A tenth of the nodes is in the zone that joins or leaves; the node that joins has weight 2, the one
that leaves or is replaced weight 1, the one whose weight changes weight 4. Why it works so:
[decision 0008](decisions/0008-placement.md).

![moved replicas and skew](placement.svg)

- **moved**: replicas that a change copies to another node. **minimum**: what no placement can do
  without: all replicas of a node that leaves, the fair share of one that joins, the difference for
  one whose weight changes. Below 1 a node is left with less than a whole replica of its share.
- **placed anew**: what would move if the ring placed everything again, as without a memory.
- **skew**: the highest load of a node over its fair share by weight. Replicas are whole: a node
  whose share is 8.2 leaders has 8 or 9, so the skew of leaders cannot be 1.
- **leaders changed**: shards with another preferred leader; this moves no data.
"""


def main() -> None:
    simulations = [simulate(size) for size in SIZES]
    (DOCS / "placement.md").write_text(markdown(simulations), "utf-8")
    (DOCS / "placement.svg").write_text(plot(simulations[0]), "utf-8")


if __name__ == "__main__":
    main()

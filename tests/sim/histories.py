"""Random histories: clients, faults and their end, all drawn from one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.sim.clients import Operation, SimClients
from tests.sim.faults import Fault, Havoc, draw_faults
from tests.sim.properties import check_all
from tests.sim.world import Network, World

from mailraft.node.consensus.compaction import CompactionLimits
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.consensus.settings import Settings

ACCOUNTS = (b"alice", b"bob", b"carol", b"dave")
FAULT_TIME_S = 12.0
# The last one so small that followers are caught up by snapshots all the time.
COMPACTION = (
    CompactionLimits(),
    CompactionLimits(entries_max=40, follower_bytes_max=1 << 20),
    CompactionLimits(entries_max=8, bytes_max=1_000, follower_bytes_max=800),
)
CALM_S = 2.0  # before the first fault
HEAL_TIME_S = 15.0
SHRINK_RUNS_MAX = 60
TRANSCRIPT_LINES = 60


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is drawn before a history runs."""

    seed: int
    nodes: int
    spares: int
    groups: int
    clients: int
    network: Network
    flush_s: tuple[float, float]
    clock_skew: float
    faults: tuple[Fault, ...]
    compaction: CompactionLimits
    fault_time_s: float = FAULT_TIME_S


@dataclass(frozen=True, slots=True)
class History:
    """A history that ran to its end and kept every promise."""

    plan: Plan
    world: World
    operations: list[Operation]

    @property
    def acknowledged(self) -> list[Operation]:
        return [operation for operation in self.operations if operation.index]

    @property
    def elections(self) -> int:
        return len(self.world.watch.leaders)


def draw_plan(seed: int) -> Plan:
    """Everything about a history but its course."""
    draw = Random(seed)  # its own stream: the world draws from the same seed
    nodes = draw.choice((1, 2, 3, 3, 3, 3, 4, 4, 5, 5))
    spares = draw.choice((0, 1, 2)) if nodes < 5 else 0
    return Plan(
        seed,
        nodes,
        spares,
        groups=draw.choice((1, 1, 2, 3)),
        clients=draw.choice((4, 6, 10)),
        network=Network(
            drop=draw.choice((0.0, 0.0, 0.02, 0.1)),
            duplicate=draw.choice((0.0, 0.05, 0.2)),
            slow=draw.choice((0.0, 0.01, 0.05)),
        ),
        flush_s=draw.choice(((0.0005, 0.005), (0.001, 0.02), (0.005, 0.08))),
        clock_skew=draw.choice((0.0, 0.02, 0.2)),
        faults=tuple(draw_faults(draw, nodes + spares, CALM_S, FAULT_TIME_S)),
        compaction=draw.choice(COMPACTION),
    )


def run_history(
    seed: int,
    mutants: Mutant = Mutant.NONE,
    *,
    plan: Plan | None = None,
    watch: Callable[[World], None] | None = None,
) -> History:
    """One history of about 12 simulated seconds with faults and the quiet after it.

    Raises PropertyError. Progress: when faults have stopped, every group takes a write within
    HEAL_TIME_S. `watch` gets the world before it runs.
    """
    plan = plan or draw_plan(seed)
    world = World(
        seed,
        nodes=plan.nodes,
        spares=plan.spares,
        groups=plan.groups,
        network=plan.network,
        mutants=mutants,
        flush_s=plan.flush_s,
        clock_skew=plan.clock_skew,
        settings=Settings(compaction=plan.compaction),
    )
    if watch is not None:
        watch(world)
    clients = SimClients(world, count=plan.clients, accounts=ACCOUNTS, stop_s=plan.fault_time_s)
    Havoc(world, list(plan.faults))
    world.run(plan.fault_time_s)
    _heal(world, clients, plan)
    check_all(world, clients.operations)
    return History(plan, world, clients.operations)


def _heal(world: World, clients: SimClients, plan: Plan) -> None:
    last_fault_s = max((fault.at_s + fault.for_s for fault in plan.faults), default=0.0)
    world.run(max(0.0, last_fault_s - world.now) + 0.01)
    world.network = Network()
    world.cut_links(set())
    for number in world.nodes:
        world.start(number)
        world.resume(number)
    clients.stop_s = world.now + HEAL_TIME_S
    for group in world.groups:
        last = clients.begin(group, b"last", b"last-%d" % group)
        read = clients.begin(group, b"last", None)
        world.run_until(
            lambda last=last: bool(last.index),  # type: ignore[misc]
            HEAL_TIME_S,
            f"group {group} takes a write after the faults",
        )
        world.run_until(
            lambda read=read: bool(read.index),  # type: ignore[misc]
            HEAL_TIME_S,
            f"group {group} serves a read after the faults",
        )
    clients.stop_s = world.now
    world.run_until(lambda: _all_equal(world), HEAL_TIME_S, "all replicas reach the same state")


def _all_equal(world: World) -> bool:
    return all(
        len({world.nodes[number].disk.applied(group) for number in world.members(group)}) == 1
        for group in world.groups
    )

"""A node that starts on an empty disk under its old name, and knows no more what it promised."""

from __future__ import annotations

from dataclasses import replace

from tests.sim.disk import SimDisk
from tests.sim.histories import History, Plan, draw_plan, run_history
from tests.sim.world import World

from mailraft.node.interfaces import Configuration, replica_id

RETURN_S = (0.0, 3.0)


class EmptyDisk(SimDisk):
    """In place of one that was lost. What was committed with the help of the lost one stays
    committed, so that is still counted as a holder: whether its loss costs anything is tested.
    """

    def __init__(self, lost: SimDisk, *, node: int) -> None:
        super().__init__(node=node)
        self._lost = lost

    def holds_durably(self, group: int, index: int, term: int) -> bool:
        held = super().holds_durably(group, index, term)
        return held or self._lost.holds_durably(group, index, term)


def lose_disk(world: World, number: int, voters: int, *, damaged: bool = False) -> None:
    """The node dies, and comes back a little later with nothing. damaged: it knows that it had
    something, which it set aside.
    """
    world.crash(number)
    node = world.nodes[number]
    node.disk = EmptyDisk(node.disk, node=number)
    birth = Configuration(1, tuple(replica_id(voter, 1) for voter in range(1, voters + 1)))
    for group in world.groups:
        node.disk.create_group(group, replica_id(number, 1), birth, amnesic=True, lost=damaged)
        world.watch.forgets(group, number)
    world.note(f"n{number} has lost its disk")
    world.after(world.chance.uniform(*RETURN_S), lambda: world.start(number))


def plan_of(seed: int) -> Plan:
    """A history without changes of the configuration, of a group that survives one lost disk."""
    drawn = draw_plan(seed)
    faults = tuple(fault for fault in drawn.faults if fault.kind != "membership")
    nodes = max(3, drawn.nodes)
    return replace(drawn, nodes=nodes, faults=faults)


def run_with_lost_disk(seed: int, *, damaged: bool = False) -> History:
    """One disk is lost in the middle of the faults. Raises PropertyError."""
    plan = plan_of(seed)

    def schedule(world: World) -> None:
        number = world.chance.randint(1, plan.nodes)
        at_s = world.chance.uniform(2.0, plan.fault_time_s - 2.0)
        world.after(at_s, lambda: lose_disk(world, number, plan.nodes, damaged=damaged))

    return run_history(seed, plan=plan, watch=schedule)


def leader_after_all_are_lost(seed: int, *, damaged: bool) -> int | None:
    """Three nodes that had a leader come back with nothing; the one they elect within 10 s."""
    world = World(seed, nodes=3)
    world.run_until(lambda: world.leader(1) is not None, 5.0, "somebody leads")
    for number in world.nodes:
        lose_disk(world, number, 3, damaged=damaged)
    world.run(RETURN_S[1] + 10.0)
    return world.leader(1)


def run_first_start(seed: int) -> History:
    """All nodes begin with empty disks, and cannot tell whether they ever lived."""
    plan = plan_of(seed)

    def schedule(world: World) -> None:
        for number in range(1, plan.nodes + 1):
            lose_disk(world, number, plan.nodes)

    return run_history(seed, plan=plan, watch=schedule)

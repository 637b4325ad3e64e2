"""Random histories: clients, faults and their end, all drawn from one seed."""

from __future__ import annotations

from tests.sim.properties import check_all
from tests.sim.world import READ, Network, Operation, World

from mailraft.node.consensus.mutants import Mutant

ACCOUNTS = (b"alice", b"bob", b"carol")
FAULT_TIME_S = 12.0
HEAL_TIME_S = 15.0


def run_history(seed: int, mutants: Mutant = Mutant.NONE) -> World:
    """One history of about 12 simulated seconds with faults and the quiet after it.

    Raises PropertyError. Progress: when faults have stopped, every group takes a write within HEAL_TIME_S.
    """
    draw = World(seed).chance  # its own stream: the world below draws from the same seed
    world = World(
        seed,
        nodes=draw.choice((1, 2, 3, 3, 3, 3, 4, 5, 5)),
        groups=draw.choice((1, 1, 2, 3)),
        network=Network(
            drop=draw.choice((0.0, 0.0, 0.02, 0.2)),
            duplicate=draw.choice((0.0, 0.05, 0.2)),
            slow=draw.choice((0.0, 0.02, 0.1)),
        ),
        mutants=mutants,
        flush_s=draw.choice(((0.0005, 0.005), (0.001, 0.05), (0.01, 0.3))),
    )
    _clients(world)
    _faults(world)
    world.run(FAULT_TIME_S)
    _heal(world)
    check_all(world)
    return world


def _clients(world: World) -> None:
    counter = [0]

    def again() -> None:
        if world.now > FAULT_TIME_S:
            return
        group = world.chance.choice(list(world.groups))
        account = world.chance.choice(ACCOUNTS)
        counter[0] += 1
        value = READ if world.chance.random() < 0.3 else b"v%d" % counter[0]
        number = None if world.chance.random() < 0.8 else world.chance.choice(sorted(world.nodes))
        world.call(group, account, value, number)
        world.after(world.chance.expovariate(40), again)

    world.after(1.0, again)


def _faults(world: World) -> None:
    def again() -> None:
        if world.now > FAULT_TIME_S:
            return
        _one_fault(world)
        world.after(world.chance.uniform(0.1, 2.0), again)

    world.after(world.chance.uniform(0.5, 2.0), again)


def _one_fault(world: World) -> None:
    numbers = sorted(world.nodes)
    down = [number for number in numbers if world.nodes[number].host is None]
    match world.chance.randrange(8):
        case 0 | 1:
            world.crash(world.chance.choice(numbers))
        case 2:  # all at once: the lights go out
            for number in numbers:
                world.crash(number)
        case 3 | 4:
            for number in down:
                world.start(number)
        case 5:
            side = {number for number in numbers if world.chance.random() < 0.5}
            world.partition(side, set(numbers) - side)
        case 6:
            links = {(a, b) for a in numbers for b in numbers if world.chance.random() < 0.2}
            world.cut_links(links)  # one way, bridges, whatever comes
        case 7:
            world.cut_links(set())
    if down and world.chance.random() < 0.5:
        world.start(world.chance.choice(down))


def _heal(world: World) -> None:
    world.network = Network()
    world.cut_links(set())
    for number in world.nodes:
        world.start(number)
    for group in world.groups:
        last = [world.call(group, b"last", b"first-try")]

        def done(group: int = group, last: list[Operation] = last) -> bool:
            tried_s = world.now - last[0].invoked
            if not last[0].index and tried_s > (0.2 if last[0].refused else 1.0):
                last[0] = world.call(group, b"last", b"try-%d" % len(world.operations))
            return bool(last[0].index)

        world.run_until(done, HEAL_TIME_S, f"group {group} takes a write after the faults")
    world.run_until(lambda: _all_equal(world), HEAL_TIME_S, "all replicas reach the same state")


def _all_equal(world: World) -> bool:
    return all(
        len({node.disk.applied(group) for node in world.nodes.values()}) == 1
        for group in world.groups
    )

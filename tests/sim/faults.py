"""Faults of a history, drawn before it runs, so that a failing one can be tried with fewer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from tests.sim.world import World


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, when it begins and how long it lasts. `leader`: hits who leads group 1 then."""

    at_s: float
    kind: str
    nodes: tuple[int, ...] = ()
    for_s: float = 0.0
    leader: bool = False
    amount: float = 0.0

    def __str__(self) -> str:
        who = "the leader" if self.leader else " ".join(f"n{number}" for number in self.nodes)
        return f"{self.at_s:9.4f} {self.kind} of {who or 'all'} for {self.for_s:.2f} s"


# How often each is drawn.
_KINDS = (
    *("power cut",) * 4,
    *("power cut of all",) * 2,
    *("partition",) * 3,
    *("one-way cut",) * 2,
    *("stop",) * 3,
    *("broken streams",) * 2,
    *("transfer",) * 2,
    *("membership",) * 4,
    "bad network",
    "slow disk",
)


_OF_LEADERS = frozenset({"power cut", "stop", "partition", "broken streams"})


def draw_faults(chance: Random, nodes: int, from_s: float, until_s: float) -> list[Fault]:
    """Faults for this many nodes, one after another, overlapping."""
    faults: list[Fault] = []
    at_s = chance.uniform(from_s, from_s + 1.0)
    numbers = range(1, nodes + 1)
    while at_s < until_s:
        kind = chance.choice(_KINDS)
        some = tuple(number for number in numbers if chance.random() < 0.5)
        one = (chance.choice(list(numbers)),)
        faults.append(
            Fault(
                at_s,
                kind,
                some if kind in {"partition", "one-way cut"} else one,
                chance.choice((0.05, chance.uniform(0.1, 1.0), chance.uniform(0.5, 3.0))),
                leader=kind in _OF_LEADERS and chance.random() < 0.5,
                amount=chance.random(),
            )
        )
        at_s += chance.uniform(0.1, 1.5)
    return faults


class Havoc:
    """Lets faults happen in a world."""

    def __init__(self, world: World, faults: list[Fault]) -> None:
        self.world = world
        self._cuts: dict[int, set[tuple[int, int]]] = {}
        self._calm, self._flush_s = world.network, world.flush_s
        for number, fault in enumerate(faults):
            self._schedule(number, fault)

    def _schedule(self, number: int, fault: Fault) -> None:
        self.world.after(fault.at_s - self.world.now, lambda: self._begin(number, fault))

    def _begin(self, number: int, fault: Fault) -> None:
        world = self.world
        leader = world.leader(1) if fault.leader else None
        nodes = (leader,) if leader is not None else fault.nodes
        match fault.kind:
            case "power cut":
                world.crash(nodes[0], unnoticed=fault.amount < 0.5)
                world.after(fault.for_s, lambda: world.start(nodes[0]))
            case "power cut of all":
                for position, node in enumerate(world.nodes):
                    world.crash(node)
                    back_s = fault.for_s * (1 + position % 3) / 3
                    world.after(back_s, lambda node=node: world.start(node))  # type: ignore[misc]
            case "broken streams":
                world.break_streams(nodes[0])
            case "stop":
                world.stop(nodes[0])
                world.after(fault.for_s, lambda: world.resume(nodes[0]))
            case "transfer":
                for group in world.groups:
                    world.transfer(group, nodes[0])
            case "membership":
                for group in world.groups:
                    world.change_members(group, fault.amount)
            case "bad network":
                world.network = replace(
                    self._calm, drop=0.3 * fault.amount, duplicate=0.3, slow=0.2
                )
                world.after(fault.for_s, self._calm_down)
            case "slow disk":
                world.flush_s = (0.05, 0.1 + fault.amount)
                world.after(fault.for_s, self._calm_down)
            case _:
                self._cut(number, fault, set(nodes))

    def _cut(self, number: int, fault: Fault, side: set[int]) -> None:
        """Nobody on one side hears the other; or, one way, only this side is not heard."""
        world = self.world
        links = {
            (a, b)
            for a in world.nodes
            for b in world.nodes
            if (a in side and b not in side)
            or (fault.kind == "partition" and b in side and a not in side)
        }
        self._cuts[number] = links
        self._relink()

        def heal() -> None:
            del self._cuts[number]
            self._relink()

        world.after(fault.for_s, heal)

    def _relink(self) -> None:
        self.world.cut_links(set().union(*self._cuts.values()))

    def _calm_down(self) -> None:
        self.world.network, self.world.flush_s = self._calm, self._flush_s

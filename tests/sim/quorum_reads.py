"""QUORUM reads in a simulated cluster: the same positions, asked one by one, and the same rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.sim.clients import SimClients
from tests.sim.watch import PropertyError
from tests.sim.world import SimNode, World

from mailraft.node.interfaces import node_of
from mailraft.node.quorum_reads import Position, covers, freshest

Rule = Callable[[Sequence[Position], int], bool]
EVERY_S = 0.02
CATCH_UP_S, POLL_S = 0.2, 0.005
GIVE_UP_S = 0.5


@dataclass(slots=True)
class _Read:
    group: int
    node: SimNode
    life: int
    wanted: int
    began: float
    positions: list[Position]
    index: int = 0  # up to where it saw; 0: it was not served
    complete: bool = False


class QuorumReads:
    """Begins a read every EVERY_S at a node that runs; `check` judges those that were served."""

    def __init__(self, world: World, rule: Rule = covers) -> None:
        self.world, self._rule = world, rule
        self.reads: list[_Read] = []
        world.after(1.0, self._next)

    @property
    def complete(self) -> list[_Read]:
        return [read for read in self.reads if read.complete]

    def check(self) -> None:
        """A complete read shows every append that was acknowledged before it began."""
        clients = self.world.clients
        assert isinstance(clients, SimClients)
        for read in self.complete:
            for operation in clients.operations:
                if (
                    operation.value is not None
                    and operation.group == read.group
                    and operation.completed < read.began
                    and operation.index > read.index
                ):
                    raise PropertyError(f"complete: {read} does not show {operation}")

    # ---- one read --------------------------------------------------------------------------------

    def _next(self) -> None:
        chance = self.world.chance
        self.world.after(EVERY_S, self._next)
        number, group = chance.choice(sorted(self.world.nodes)), chance.choice(self.world.groups)
        node = self.world.nodes[number]
        own = _position(node, group)
        if own is None or not own.voters:
            return
        wanted = chance.randint(1, len(own.voters))
        read = _Read(group, node, node.life, wanted, self.world.now, [own])
        self.reads.append(read)
        for voter in own.voters:
            if node_of(voter) != number:
                self._ask(read, node_of(voter))
        self._gathered(read)

    def _ask(self, read: _Read, number: int) -> None:
        """There and back, on a network of its own: gRPC gives up on what is cut."""
        world = self.world

        def there() -> None:
            told = _position(world.nodes[number], read.group)
            if told is not None and (read.node.number, number) not in world.cut:
                world.after(self._delay_s(), lambda: back(told))

        def back(told: Position) -> None:
            if (number, read.node.number) not in world.cut and len(read.positions) < read.wanted:
                read.positions.append(told)
                self._gathered(read)

        world.after(self._delay_s(), there)

    def _delay_s(self) -> float:
        network = self.world.network
        slow = self.world.chance.random() < network.slow
        return self.world.chance.uniform(network.delay_min_s, network.delay_max_s) + slow * 0.3

    def _gathered(self, read: _Read) -> None:
        if len(read.positions) == read.wanted and self.world.now - read.began < GIVE_UP_S:
            self._serve(read, freshest(read.positions).applied_index, self.world.now + CATCH_UP_S)

    def _serve(self, read: _Read, index: int, until_s: float) -> None:
        node = read.node
        if node.life != read.life or node.stopped or self.world.now > until_s:
            return
        applied_index = node.disk.applied(read.group)[0]
        if applied_index < index:
            self.world.after(POLL_S, lambda: self._serve(read, index, until_s))
            return
        read.index = applied_index
        read.complete = self._rule(read.positions, applied_index)


def _position(node: SimNode, group: int) -> Position | None:
    if node.host is None or node.stopped:
        return None
    return node.host.position(group, node.disk.applied(group)[0])

"""Snapshots between simulated nodes: packs that take their time, and break off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mailraft.node.consensus.messages import Ready, SnapshotArrived, SnapshotSent, SnapshotTaken
from mailraft.node.engine.snapshot import Pack, SnapshotSink, SnapshotSource
from mailraft.node.interfaces import GroupId, LogBase, ReplicaId, node_of

if TYPE_CHECKING:
    from tests.sim.world import SimNode, World

PACK_S = (0.001, 0.05)
RETRY_S = 0.3


@dataclass(slots=True)
class _Sending:
    """One snapshot on its way; void once either end has died."""

    group: GroupId
    sender: ReplicaId
    receiver: ReplicaId
    source: SnapshotSource
    packs: Iterator[Pack]
    base: LogBase
    lives: tuple[int, int]
    generation: int = 0
    sink: SnapshotSink | None = None


@dataclass(slots=True)
class Snapshots:
    """Carries out what hosts want of snapshots."""

    world: World
    installed: int = 0
    received: int = 0
    _receiving: set[tuple[int, int, GroupId]] = field(default_factory=set)  # node, life, group

    def carry_out(self, node: SimNode, ready: Ready) -> None:
        """Begin what `ready` wants, and finish what it has decided."""
        for wanted in ready.snapshots_wanted:
            self._begin(node, wanted.group, wanted.replica)
        for taken in ready.snapshots_taken:
            self._taken(node, taken)

    def _begin(self, node: SimNode, group: GroupId, receiver: ReplicaId) -> None:
        assert node.host is not None
        source = node.disk.snapshot(group)
        configuration = node.host.configuration_at(group, source.applied.index)
        status = node.host.status(group)
        assert configuration is not None
        assert status is not None
        lives = node.life, self.world.nodes[node_of(receiver)].life
        base = LogBase(source.applied.index, source.applied.term, configuration)
        sending = _Sending(group, status.replica, receiver, source, source.packs(), base, lives)
        self.world.note(
            f"n{node.number} sends n{node_of(receiver)} a snapshot of group {group} "
            f"at {base.index}/t{base.term}"
        )
        self._soon(PACK_S, lambda: self._next_pack(sending))

    def _soon(self, range_s: tuple[float, float], do: Callable[[], None]) -> None:
        self.world.after(self.world.chance.uniform(*range_s), do)

    def _ends(self, sending: _Sending) -> tuple[SimNode, SimNode] | None:
        """Both nodes, unless one has died; whoever is left is told."""
        sender, receiver = (
            self.world.nodes[node_of(replica)] for replica in (sending.sender, sending.receiver)
        )
        link = (sender.number, receiver.number)
        alive = receiver.host is not None and receiver.life == sending.lives[1]
        if sender.host is None or sender.life != sending.lives[0]:
            return None  # the receiver will give its half up, or is given another
        if not alive or link in self.world.cut or self.world.chance.random() < 0.05:
            self._sent(sending, (RETRY_S, 2 * RETRY_S))
            return None
        return sender, receiver

    def _next_pack(self, sending: _Sending) -> None:
        ends = self._ends(sending)
        if ends is None:
            return
        _, receiver = ends
        if sending.sink is None:
            # Burnt and synced before the first row is ingested.
            sending.generation = receiver.disk.burn_generation(sending.group)
            receiver.disk.flush()
            sending.sink = receiver.disk.receive(sending.group, sending.generation)
        pack = next(sending.packs, None)
        if pack is not None:
            sending.sink.add(pack)
            self._soon(PACK_S, lambda: self._next_pack(sending))
            return
        assert sending.source.totals is not None
        sending.sink.finish(sending.source.totals, sending.source.applied)
        self.received += 1
        arrived = SnapshotArrived(
            sending.group,
            sending.sender,
            sending.generation,
            sending.base,
            sending.source.applied.digest,
        )
        self.world.give(receiver.number, arrived)
        self._sent(sending, PACK_S)

    def _sent(self, sending: _Sending, range_s: tuple[float, float]) -> None:
        life = sending.lives[0]

        def tell() -> None:
            sender = self.world.nodes[node_of(sending.sender)]
            if sender.life == life:
                self.world.give(sender.number, SnapshotSent(sending.group, sending.receiver))

        self._soon(range_s, tell)

    def _taken(self, node: SimNode, taken: SnapshotTaken) -> None:
        if taken.installed:
            self.installed += 1
            self.world.note(f"n{node.number} installs group {taken.group} at {taken.index}")
        else:
            node.disk.drop_generation(taken.group, taken.generation)
        node.disk.drop_retired()

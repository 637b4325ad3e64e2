"""Where the log begins, and followers that need what lies before it (Raft section 7).

Rows 15 and 16. Both ends of a snapshot's way are here: a leader that finds a follower below its
log, and a replica that is handed what another one had applied. The way between is the caller's.
"""

from __future__ import annotations

from mailraft.node.consensus.compaction import compact_through
from mailraft.node.consensus.messages import SnapshotArrived
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.consensus.replication import ConsensusError, Replication
from mailraft.node.consensus.stock import LEADER, Node
from mailraft.node.interfaces import Configuration, LogBase, ReplicaId


class Catchup(Replication):
    def begin_catchup(self) -> None:
        # Snapshots on their way: to whom, and the index that the follower goes on from.
        self._outgoing_snapshots: dict[Node, int] = {}

    def configuration_at(self, index: int) -> Configuration:
        """The configuration in force at an index that is applied and not below the log's base."""
        return self.journal.configuration_at(index)

    # ---- compaction -----------------------------------------------------------------------------

    def compact_if_due(self, applied_index: int) -> None:
        through = compact_through(
            self.journal.sizes,
            base_index=self.journal.base_index,
            applied_index=applied_index,
            last_index=self.journal.last_index,
            needed_from=self._needed_from(),
            limits=self.settings.compaction,
        )
        if through is not None:
            term = self.journal.term(through)
            if term is None:
                raise ConsensusError(f"entry {through} is applied, but not in the log")
            self.journal.compact(LogBase(through, term, self.configuration_at(through)))
            if self.mutants is Mutant.REWRITE_LOG_IN_PLACE:
                self.journal.rewrite(applied_index + 1)

    def _needed_from(self) -> list[int]:
        if self.role != LEADER:
            return []
        needed = [
            self.match_index[node]
            for node in self.peers_in_order()
            if node in self.connected_nodes and not self.progress_of(node).awaits_snapshot
        ]
        return [*needed, *self._outgoing_snapshots.values()]

    # ---- leader: who needs a snapshot ------------------------------------------------------------

    def take_snapshots_wanted(self, applied_index: int) -> list[ReplicaId]:
        """Followers below the log that none is under way to; each until on_snapshot_sent."""
        if self.role != LEADER:
            self._outgoing_snapshots.clear()
            return []
        wanted = [
            node
            for node in self.peers_in_order()
            if node in self.connected_nodes
            and node not in self._outgoing_snapshots
            and self.progress_of(node).awaits_snapshot
        ]
        for node in wanted:
            self._outgoing_snapshots[node] = applied_index
        return [int(node.id) for node in wanted]

    def on_snapshot_sent(self, replica: ReplicaId) -> None:
        """It arrived or it failed: an append finds out where the follower is now."""
        node = Node(replica)
        if self._outgoing_snapshots.pop(node, None) is not None:
            self.progress_of(node).reset()
            self.want_append = True

    # ---- follower: one arrived -------------------------------------------------------------------

    def take_snapshot(self, arrived: SnapshotArrived) -> bool:
        """True when the generation is to be live: the write for it is in the journal.

        Its state was committed whoever sent it, so the sender's term decides nothing. Row 16: it
        replaces the log only where that does not hold its last entry. Where it does, all of the
        snapshot is in the log already, and the log stays, with what lies behind.
        """
        base = arrived.base
        if base.index <= self.commit_index:
            return False
        held = self.journal.term(base.index) == base.term
        if held and self.mutants is not Mutant.INSTALL_OVER_LOG:
            self.commit_index = base.index
            return False
        self.journal.install(arrived.generation, base, arrived.digest)
        self.commit_index = self.handed_index = base.index
        self.durable_index = min(self.durable_index, base.index)
        self._written.clear()
        for index in [index for index in self.awaited_commits if index <= base.index]:
            del self.awaited_commits[index]  # what became of them cannot be told any more
        return True

    def answer_snapshot(self, arrived: SnapshotArrived) -> None:
        """What was applied up to there is held here, once this turn's writes are on disk."""
        sender = Node(arrived.sender)
        if self.role != LEADER:
            self._proven, self._accepted = arrived.base.index, True
            self._answer(sender)

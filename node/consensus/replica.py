"""What the corrections share: one replica's identity, journal and outgoing envelopes."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.heartbeat import Beats
from mailraft.node.consensus.journal import Journal
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.consensus.settings import Settings
from mailraft.node.consensus.stock import Node, Outbox, Stock, SyncObjConf
from mailraft.node.interfaces import Configuration, GroupId, ReplicaId, node_of


class ReplicaBase(Stock):
    """pysyncobj bound to a journal and an outbox, with nothing corrected yet."""

    def __init__(
        self,
        group: GroupId,
        replica: ReplicaId,
        configuration: Configuration,
        journal: Journal,
        settings: Settings,
        mutants: Mutant,
        beats: Beats | None = None,
    ) -> None:
        self.group, self.replica, self.configuration = group, replica, configuration
        self.journal, self.settings, self.mutants = journal, settings, mutants
        self.beats = beats or Beats()
        self.is_voter = replica in configuration.voters
        self.election_timeout_s = settings.election_timeout_min_s
        self.outbox = Outbox()
        self._envelopes: list[raft_pb2.Envelope] = []
        self.want_append = False
        self.membership_begun = False
        self.disk_hung = self.retiring = False
        self.leading_since_s = float("-inf")
        self.learner_nodes: set[Node] = set()
        super().__init__(
            Node(replica),
            [Node(voter) for voter in configuration.voters if voter != replica],
            SyncObjConf(
                autoTick=False,  # row 18: the host ticks, no thread a group
                appendEntriesUseBatch=False,  # row 19: True waits for the heartbeat period
                journalFile=journal,
                raftMinTimeout=settings.election_timeout_min_s,
                raftMaxTimeout=settings.election_timeout_max_s,
                appendEntriesPeriod=settings.heartbeat_s,
                # Row 8: a leader that hears no quorum for an election timeout leads no more.
                leaderFallbackTimeout=settings.election_timeout_min_s,
                connectionTimeout=settings.election_timeout_max_s,
                commandsWaitLeader=False,
                commandsQueueSize=0,  # bounded by the caller, who hands on one entry a turn
                tcp_keepalive=None,
            ),
            transport=self.outbox,
        )

    @property
    def leader(self) -> ReplicaId:
        """Replica id of the leader this replica follows or is; 0: none known."""
        node = self.leader_node
        return int(node.id) if node is not None else 0

    def is_majority(self, replicas: Set[ReplicaId]) -> bool:
        """Whether these are more than half of the voters (others among them do not count)."""
        voters = self.configuration.voters
        return 2 * sum(voter in replicas for voter in voters) > len(voters)

    @property
    def may_campaign(self) -> bool:
        """A voter, or one that is being removed: until that is committed its log may be needed
        to elect anyone (thesis section 4.2.2). None that may have forgotten, or is about to stop.
        """
        if self.journal.amnesic or self.retiring:
            return False
        if self.mutants is Mutant.LONER_ELECTS_ITSELF:
            return True
        index = self.journal.configuration_index
        if self.is_voter or index <= self.commit_index:
            return self.is_voter
        return self.replica in self.journal.configuration_at(index - 1).voters

    def voters_in_order(self) -> list[Node]:
        """The other voters, ascending: every process walks them alike (row 23)."""
        return sorted(self.other_nodes)

    def heirs(self) -> list[Node]:
        """The other voters that can be reached and have room on their disks; of a node that stops
        those without room too, if no other can be.
        """
        near = [node for node in self.voters_in_order() if node in self.connected_nodes]
        roomy = [node for node in near if node_of(int(node.id)) not in self.beats.full]
        return roomy or (near if self.retiring else [])

    def peers_in_order(self) -> list[Node]:
        """All that get entries: the other voters and learners, ascending."""
        return sorted(self.other_nodes | self.learner_nodes)

    def send(self, to: ReplicaId, **body: Any) -> None:
        """Queue one envelope; `body` is one field of Envelope.body."""
        self._envelopes.append(
            raft_pb2.Envelope(
                group=self.group,
                from_replica=self.replica,
                to_replica=to,
                term=self.term,
                **body,
            )
        )

"""Corrections to pysyncobj's elections: who may vote, how often, and when one is worth holding.

Stock pysyncobj runs the election itself (its tick, its voting rule, its majority); this class
decides which messages reach it and adds the round before it.
"""

from __future__ import annotations

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.consensus.replica import ReplicaBase
from mailraft.node.consensus.stock import CANDIDATE, FOLLOWER, LEADER, Node, surroundings
from mailraft.node.interfaces import ReplicaId

_AT_ONCE = -1.0  # an election deadline that has always passed


class Election(ReplicaBase):
    """Raft section 5.2 and 5.4.1, thesis sections 3.10 (transfer) and 9.6 (PreVote)."""

    def begin_elections(self) -> None:
        self._votes: set[ReplicaId] = set()
        self._votes_term = -1
        self._pre_votes: set[ReplicaId] = set()
        self._pre_vote_won = False
        self._asked_by_leader = False
        self.leader_heard_s = surroundings.now - self.election_timeout_s

    # ---- starting one ---------------------------------------------------------------------------

    def election_due(self) -> bool:
        # Asked of every group in every turn: what is nearly always false comes first.
        return (
            self.election_deadline < surroundings.now
            and self.role != LEADER
            and not self.journal.amnesic
            and self.may_campaign
            and (bool(self.connected_nodes) or not self.other_nodes)
        )

    def put_election_off(self) -> None:
        self.election_deadline = surroundings.now + self.stock_timeout_s()

    def may_start_election(self) -> bool:
        """Row 7: ask who would vote for this replica before the term rises.

        True when the election itself may start: the pre-vote was won, the leader asked for it
        (TimeoutNow), or there is nobody else.
        """
        if self._pre_vote_won or self._asked_by_leader or not self.other_nodes:
            self._pre_vote_won = False
            return True
        if self.mutants & Mutant.NO_PRE_VOTE:
            return True
        self.put_election_off()
        self.leader_node = None
        if self.role == CANDIDATE:
            self.stock_set_role(FOLLOWER)
        self._pre_votes = {self.replica}
        for node in self.voters_in_order():
            self.send(node.id, request_vote=self.vote_request(pre_vote=True))
        return False

    def vote_request(self, *, pre_vote: bool) -> raft_pb2.RequestVote:
        last = self.journal.last_index
        return raft_pb2.RequestVote(
            last_log_index=last,
            last_log_term=self.journal.term(last) or 0,
            pre_vote=pre_vote,
            transfer=self._asked_by_leader and not pre_vote,
        )

    def on_timeout_now(self, sender: Node, term: int) -> None:
        """Thesis section 3.10: the leader hands over; only its own word counts."""
        if term == self.term and self.leader_node == sender and not self.journal.amnesic:
            self.stock_receive(sender, {"type": "timeout_now", "term": term})
            self.election_deadline = _AT_ONCE
            self._asked_by_leader = True

    # ---- answering one --------------------------------------------------------------------------

    def on_request_vote(self, sender: Node, term: int, request: raft_pb2.RequestVote) -> None:
        if self.journal.amnesic:
            return  # it may have given this vote already (row 12)
        if request.pre_vote:
            granted = (
                self._log_is_current(request)
                and not self._leader_is_alive()
                and not self.disk_hung  # a vote could not be kept: better none is counted on
            )
            self.send(sender.id, vote_reply=raft_pb2.VoteReply(granted=granted, pre_vote=True))
            return
        needless = self._leader_is_alive() and not request.transfer and term > self.term
        if needless and not self.mutants & Mutant.NO_PRE_VOTE:
            return  # it won its pre-vote from others, or lost its reason since (thesis 4.2.3)
        if self.voted_for == sender.id and term == self.term and self.role == FOLLOWER:
            # The first answer may have been lost; the same vote again is the same vote.
            self.send(sender.id, vote_reply=raft_pb2.VoteReply(granted=True))
            return
        self.stock_receive(
            sender,
            {
                "type": "request_vote",
                "term": term,
                "last_log_index": request.last_log_index,
                "last_log_term": request.last_log_term,
            },
        )

    def _log_is_current(self, request: raft_pb2.RequestVote) -> bool:
        """Raft section 5.4.1: at least as up to date as this replica's own log."""
        own_last = self.journal.last_index
        own_term = self.journal.term(own_last) or 0
        return (request.last_log_term, request.last_log_index) >= (own_term, own_last)

    def _leader_is_alive(self) -> bool:
        if self.role == LEADER:
            return True
        return surroundings.now - self.leader_heard_s < self.election_timeout_s

    def heard_leader(self) -> None:
        """The leader of this term gave a sign of life: put the next election off."""
        self.leader_heard_s = surroundings.now
        self._pre_votes.clear()
        if not self.transfer_in_progress:
            self.put_election_off()

    def on_leader_beat(self, node: Node) -> None:
        """A heartbeat says who leads this very term; there is one (Raft section 5.2)."""
        if self.role == CANDIDATE:
            self.stock_set_role(FOLLOWER)
        self.leader_node = node
        self.heard_leader()

    # ---- counting -------------------------------------------------------------------------------

    def on_vote_reply(self, sender: Node, term: int, reply: raft_pb2.VoteReply) -> None:
        if not reply.granted or self.role == LEADER or sender not in self.other_nodes:
            return
        if reply.pre_vote:
            if self._pre_votes and term <= self.term:
                self._pre_votes.add(sender.id)
                if self.is_majority(self._pre_votes):
                    self._pre_votes = set()
                    self._pre_vote_won = True
                    self.election_deadline = _AT_ONCE
            return
        if self.role != CANDIDATE or term != self.term:
            return
        if self._votes_term != term:
            self._votes, self._votes_term = set(), term
        self._votes.add(sender.id)
        if not self.mutants & Mutant.COUNT_VOTES_TWICE:
            # Row 6: a set of voters, not a counter; stock hears of it when they are a majority.
            if not self.is_majority(self._votes | {self.replica}):
                return
            self.votes_count = len(self.other_nodes) + 1
        self.stock_receive(sender, {"type": "response_vote", "term": term})

    def tell_term(self, to: ReplicaId) -> None:
        """Row 7: a lower term gets an answer. Without one a leader of a lower term never steps
        down, and a node whose term rose alone never follows again (Raft section 5.1).
        """
        if not self.mutants & Mutant.IGNORE_LOWER_TERMS:
            self.send(to, term_notice=raft_pb2.TermNotice())

    # ---- terms ----------------------------------------------------------------------------------

    def on_higher_term(self, term: int) -> None:
        """Raft section 5.1: whoever sees a higher term adopts it and follows."""
        self.stock_set_term(term, None)
        self.stock_set_role(FOLLOWER)
        self.leader_node = None
        self._asked_by_leader = False

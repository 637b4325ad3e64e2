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

_AT_ONCE = -1.0  # a delay that has always passed


class Election(ReplicaBase):
    """Raft section 5.2 and 5.4.1, thesis sections 3.10 (transfer) and 9.6 (PreVote)."""

    def begin_elections(self) -> None:
        self._votes: set[ReplicaId] = set()
        self._votes_term = -1
        self._pre_votes: set[ReplicaId] = set()
        self._favours: ReplicaId = 0  # whose pre-vote was the last given, or asked for
        self._favours_since_s = float("-inf")
        self._pre_vote_won = False
        self._asked_by_leader = False
        self._heard_s = surroundings.now - self.election_timeout_s  # by a message of this group
        self._lost_s = float("-inf")  # what is heard until then was said before the stream broke
        self.put_election_off()

    # ---- the time for one -----------------------------------------------------------------------

    @property
    def leader_heard_s(self) -> float:
        """When the leader last gave a sign of life; its heartbeats are for all its groups."""
        if self.leader_node is None:
            return self._heard_s
        return max(self._heard_s, self.beats.heard_s(self.group, self.term, self.leader))

    @property
    def election_due_s(self) -> float:
        """The deadline, or later: each beat since it was set puts the election off."""
        heard_s = self.leader_heard_s
        if heard_s > max(self._deadline_set_s, self._lost_s) and not self.transfer_in_progress:
            return max(self.election_deadline, heard_s + self._patience_s)
        return self.election_deadline

    def election_due(self) -> bool:
        return (
            self.role != LEADER
            and self.election_due_s < surroundings.now
            and self.may_campaign
            and (bool(self.connected_nodes) or not self.other_nodes)
        )

    def put_election_off(self) -> None:
        self._patience_s = self.stock_timeout_s()
        self.call_election_in(self._patience_s)

    def call_election_in(self, delay_s: float) -> None:
        """Unless the leader is heard until then."""
        self._deadline_set_s = surroundings.now
        self.election_deadline = surroundings.now + delay_s

    def on_leader_lost(self) -> None:
        """The stream to its node broke: a process that was killed says no more than that.

        One that lives is heard again within a heartbeat, and keeps its followers; so do those
        whose own streams hold, by refusing the pre-vote (thesis section 9.6).
        """
        if self.role != FOLLOWER or self.leader_node is None:
            return
        left_s = self.election_due_s - surroundings.now
        self._lost_s = surroundings.now + self.settings.in_flight_s
        self.call_election_in(min(left_s, self._short_timeout_s()))

    def _short_timeout_s(self) -> float:
        low_s, high_s = self.settings.leader_lost_min_s, self.settings.leader_lost_max_s
        return low_s + (high_s - low_s) * surroundings.random()

    # ---- starting one ---------------------------------------------------------------------------

    def may_start_election(self) -> bool:
        """Row 7: ask who would vote for this replica before the term rises.

        True when the election itself may start: the pre-vote was won, the leader asked for it
        (TimeoutNow), or there is nobody else.
        """
        if self._pre_vote_won or self._asked_by_leader or not self.other_nodes:
            self._pre_vote_won = False
            return True
        if self.mutants is Mutant.NO_PRE_VOTE:
            return True
        self.put_election_off()
        self.leader_node = None
        if self.role == CANDIDATE:
            self.stock_set_role(FOLLOWER)
        self._pre_votes = {self.replica}
        self._favour(self.replica)
        for node in self.voters_in_order():
            self.send(node.id, request_vote=self.vote_request(pre_vote=True))
        return False

    def vote_request(self, *, pre_vote: bool) -> raft_pb2.RequestVote:
        last_term, last_index = self.log_end()
        return raft_pb2.RequestVote(
            last_log_index=last_index,
            last_log_term=last_term,
            pre_vote=pre_vote,
            transfer=self._asked_by_leader and not pre_vote,
        )

    def on_timeout_now(self, sender: Node, term: int) -> None:
        """Thesis section 3.10: the leader hands over; only its own word counts."""
        able = not self.journal.amnesic and not self.retiring
        if term == self.term and self.leader_node == sender and able:
            self.stock_receive(sender, {"type": "timeout_now", "term": term})
            self.call_election_in(_AT_ONCE)
            self._asked_by_leader = True

    # ---- answering one --------------------------------------------------------------------------

    def on_request_vote(self, sender: Node, term: int, request: raft_pb2.RequestVote) -> None:
        if self.journal.amnesic:
            return  # it may have given this vote already (row 12)
        if request.pre_vote:
            granted = (
                self._log_is_current(request)
                and not self._leader_is_alive()
                and not self._favours_another(sender, request)
                and not self.disk_hung  # a vote could not be kept: better none is counted on
            )
            if granted:
                self._favour(sender.id)
                self._let_go_first()
            self.send(sender.id, vote_reply=raft_pb2.VoteReply(granted=granted, pre_vote=True))
            return
        needless = self._leader_is_alive() and not request.transfer and term > self.term
        if needless and self.mutants is not Mutant.NO_PRE_VOTE:
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

    def _favours_another(self, sender: Node, request: raft_pb2.RequestVote) -> bool:
        """Two candidates at once share the votes: of equals, who asked first is to be elected, and
        of two that ask each other, the lower id.

        Only for a moment: one that asks and gets no answer must not be in the other's way.
        """
        return (
            surroundings.now - self._favours_since_s < self.settings.heartbeat_s
            and self._favours not in (0, sender.id)
            and (self._favours != self.replica or self.replica < sender.id)
            and (request.last_log_term, request.last_log_index) == self.log_end()
        )

    def _favour(self, candidate: ReplicaId) -> None:
        self._favours, self._favours_since_s = candidate, surroundings.now

    def _let_go_first(self) -> None:
        """An election of its own would take votes from the one that asked."""
        if not self.transfer_in_progress:
            left_s = self.election_due_s - surroundings.now
            self.call_election_in(max(left_s, self.settings.leader_lost_max_s))

    def _log_is_current(self, request: raft_pb2.RequestVote) -> bool:
        """Raft section 5.4.1: at least as up to date as this replica's own log."""
        return (request.last_log_term, request.last_log_index) >= self.log_end()

    def log_end(self) -> tuple[int, int]:
        """Term and index of the last entry."""
        last = self.journal.last_index
        return self.journal.term(last) or 0, last

    def _leader_is_alive(self) -> bool:
        if self.role == LEADER:
            return True
        heard_s = self.leader_heard_s
        return heard_s > self._lost_s and surroundings.now - heard_s < self.election_timeout_s

    def keep_heard(self) -> None:
        """What was heard stays heard, although the beats that said it will say something else."""
        self._heard_s = self.leader_heard_s

    def heard_leader(self) -> None:
        """The leader of this term gave a sign of life: put the next election off."""
        self._heard_s = surroundings.now
        self._pre_votes.clear()
        if surroundings.now <= self._lost_s:
            self.call_election_in(self._short_timeout_s())
        elif not self.transfer_in_progress:
            self.put_election_off()

    def on_led(self, term: int, leader: ReplicaId) -> bool:
        """A heartbeat says who leads a term: in this very one there is one (Raft section 5.2).

        Whether this replica follows it now; if not, the next beat says it again.
        """
        if self.term > term:
            self.tell_term(leader)
        if self.term != term or self.role == LEADER:
            return False
        if self.role == CANDIDATE:
            self.stock_set_role(FOLLOWER)
        self.leader_node = Node(leader)
        self.heard_leader()
        return True

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
                    self.call_election_in(_AT_ONCE)
            return
        if self.role != CANDIDATE or term != self.term:
            return
        if self._votes_term != term:
            self._votes, self._votes_term = set(), term
        self._votes.add(sender.id)
        if self.mutants is not Mutant.COUNT_VOTES_TWICE:
            # Row 6: a set of voters, not a counter; stock hears of it when they are a majority.
            if not self.is_majority(self._votes | {self.replica}):
                return
            self.votes_count = len(self.other_nodes) + 1
        self.stock_receive(sender, {"type": "response_vote", "term": term})

    def tell_term(self, to: ReplicaId) -> None:
        """Row 7: a lower term gets an answer. Without one a leader of a lower term never steps
        down, and a node whose term rose alone never follows again (Raft section 5.1).
        """
        if self.mutants is not Mutant.IGNORE_LOWER_TERMS:
            self.send(to, term_notice=raft_pb2.TermNotice())

    # ---- terms ----------------------------------------------------------------------------------

    def on_higher_term(self, term: int) -> None:
        """Raft section 5.1: whoever sees a higher term adopts it and follows."""
        self.stock_set_term(term, None)
        self.stock_set_role(FOLLOWER)
        self.leader_node = None
        self._asked_by_leader = False

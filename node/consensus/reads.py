"""ReadIndex: a read that is linearizable and costs no log entry (Raft thesis section 6.4).

The leader remembers its commit index and asks the voters whether its term is still theirs. A newer
leader would need a majority with a higher term, and the two majorities meet: so when a majority
says yes, asked after the read arrived, nothing newer was committed before. No clocks, no leases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.messages import ReadReady, ReadRefused, Token
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.consensus.replica import ReplicaBase
from mailraft.node.consensus.stock import LEADER, Node, surroundings
from mailraft.node.interfaces import ReplicaId

# Requests of one follower that a leader remembers; a follower shares one among all its readers.
REQUESTS_A_FOLLOWER_MAX = 8
ALL_ASKED_EVERY = 16  # rounds


@dataclass(frozen=True, slots=True)
class _Reader:
    """Who waits for an index: a caller here (by token), or a follower (by request)."""

    replica: ReplicaId
    number: int


@dataclass(slots=True)
class _Round:
    """One question to the voters, and the readers that it is asked for."""

    number: int
    term: int
    index: int
    voters: tuple[ReplicaId, ...]
    readers: list[_Reader]
    again_s: float  # when whoever has not answered is asked, or asked again
    confirmed: set[ReplicaId] = field(default_factory=set)


@dataclass(slots=True)
class _Asked:
    """A follower's question to its leader."""

    token: Token
    leader: ReplicaId
    asked_s: float


class Reads(ReplicaBase):
    """Rows 8 and 9: reads ask a quorum."""

    def begin_reads(self) -> None:
        self.read_outcomes: list[ReadReady | ReadRefused] = []
        self._readers: list[_Reader] = []  # arrived since the round under way was asked
        self._round: _Round | None = None
        self._round_number = 0
        self._quickest: list[Node] = []  # the voters that answered the round before, first first
        self._asked: dict[int, _Asked] = {}
        # A late answer to an earlier life of this replica must not be taken for one to this.
        self._request = int(surroundings.random() * (1 << 52))

    @property
    def reads_pending(self) -> bool:
        return bool(self._readers or self._round or self._asked)

    @property
    def read_due_s(self) -> float:
        """When voters that were not asked yet are to be asked."""
        return self._round.again_s if self._round is not None else math.inf

    # ---- asking ----------------------------------------------------------------------------------

    def ask_read_index(self, token: Token) -> None:
        """Answered in read_outcomes, sooner or later, with an index or a refusal."""
        if self.role == LEADER:
            self._readers.append(_Reader(self.replica, token))
        elif self.leader:
            self._request += 1
            self._asked[self._request] = _Asked(token, self.leader, surroundings.now)
            self._send_request(self.leader, self._request)
        else:
            self._refuse(token)

    def _send_request(self, leader: ReplicaId, request: int) -> None:
        self.send(leader, read_index_request=raft_pb2.ReadIndexRequest(request=request))

    def on_read_index_request(self, sender: Node, request: raft_pb2.ReadIndexRequest) -> None:
        if self.role != LEADER:
            self._answer_reader(_Reader(sender.id, request.request), 0)
            return
        reader = _Reader(sender.id, request.request)
        if reader in self._readers or (self._round is not None and reader in self._round.readers):
            return  # asked again because the answer takes long
        held = [known for known in self._readers if known.replica == sender.id]
        if len(held) >= REQUESTS_A_FOLLOWER_MAX:
            self._readers.remove(held[0])
        self._readers.append(reader)

    def on_read_index_reply(self, sender: Node, reply: raft_pb2.ReadIndexReply) -> None:
        asked = self._asked.get(reply.request)
        if asked is None or asked.leader != sender.id:
            return
        del self._asked[reply.request]
        if reply.index:
            self.read_outcomes.append(ReadReady(asked.token, self.group, reply.index))
        else:
            self._refuse(asked.token)

    # ---- the round -------------------------------------------------------------------------------

    def on_confirm_leader(self, sender: Node, message: raft_pb2.ConfirmLeader) -> None:
        """The envelope carried this replica's very term: yes, once that is on disk."""
        if self.journal.amnesic:
            return  # it may have voted for a newer leader
        self.send(sender.id, confirm_reply=raft_pb2.ConfirmReply(round=message.round))

    def on_confirm_reply(self, sender: Node, term: int, reply: raft_pb2.ConfirmReply) -> None:
        current = self._round
        if current is not None and reply.round == current.number and term == current.term:
            if not current.confirmed:
                self._quickest = []
            current.confirmed.add(sender.id)
            self._quickest.append(sender)

    def advance_reads(self) -> None:
        """At the end of a turn: answer what is certain, refuse what cannot be, ask for the rest."""
        if self.role != LEADER:
            self._refuse_readers()
            self._ask_leader_again()
            return
        if self._round is not None:
            self._finish_round(self._round)
        if self._round is None and self._readers and self._commit_is_of_own_term():
            self._round_number += 1
            readers, self._readers = self._readers, []
            self._round = _Round(
                self._round_number,
                self.term,
                self.commit_index,
                self.configuration.voters,
                readers,
                surroundings.now + self.settings.read_patience_s,
            )
            self._ask(self._round, self._first_asked())
            self._finish_round(self._round)  # nobody else to ask, or so the mutant thinks
        elif self._round is not None and surroundings.now >= self._round.again_s:
            self._round.again_s = surroundings.now + self.settings.heartbeat_s
            self._ask(self._round, self.voters_in_order())

    def _commit_is_of_own_term(self) -> bool:
        """Before that, older entries may be committed of which this leader does not know yet."""
        return (
            self.journal.term(self.commit_index) == self.term
            or self.mutants is Mutant.READ_BEFORE_OWN_COMMIT
        )

    def _first_asked(self) -> list[Node]:
        """As many voters as make a majority with this one, those that answered first lately; now
        and then all, since who was slow may be quick by now.
        """
        voters, heard = self.voters_in_order(), self.heard()
        needed = (len(voters) + 1) // 2
        likely = [node for node in (*self._quickest, *voters) if node in heard and node in voters]
        first = list(dict.fromkeys(likely))[:needed]
        return first if len(first) == needed and self._round_number % ALL_ASKED_EVERY else voters

    def _ask(self, current: _Round, voters: list[Node]) -> None:
        for node in voters:
            if node.id not in current.confirmed:
                self.send(node.id, confirm_leader=raft_pb2.ConfirmLeader(round=current.number))

    def _finish_round(self, current: _Round) -> None:
        if current.term != self.term or current.voters != self.configuration.voters:
            # Led, lost and led again within a turn; or other majorities count now.
            self._readers = current.readers + self._readers
            self._round = None
            return
        certain = self.is_majority(current.confirmed | {self.replica})
        if certain or self.mutants is Mutant.READ_WITHOUT_ROUND:
            self._round = None
            for reader in current.readers:
                self._answer_reader(reader, current.index)

    def _answer_reader(self, reader: _Reader, index: int) -> None:
        if reader.replica != self.replica:
            reply = raft_pb2.ReadIndexReply(request=reader.number, index=index)
            self.send(reader.replica, read_index_reply=reply)
            if index:
                self.hurry_commit(Node(reader.replica))
        elif index:
            self.read_outcomes.append(ReadReady(reader.number, self.group, index))
        else:
            self._refuse(reader.number)

    # ---- when it does not work out ---------------------------------------------------------------

    def _refuse(self, token: Token) -> None:
        self.read_outcomes.append(ReadRefused(token, self.group, self.leader))

    def _refuse_readers(self) -> None:
        readers = self._readers
        if self._round is not None:
            readers, self._round = self._round.readers + readers, None
        self._readers = []
        for reader in readers:
            self._answer_reader(reader, 0)

    def _ask_leader_again(self) -> None:
        for request, asked in list(self._asked.items()):
            if asked.leader != self.leader:
                del self._asked[request]
                self._refuse(asked.token)
            elif self._is_overdue(asked.asked_s):
                asked.asked_s = surroundings.now
                self._send_request(asked.leader, request)

    def _is_overdue(self, since_s: float) -> bool:
        return surroundings.now - since_s >= self.settings.heartbeat_s

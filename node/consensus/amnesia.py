"""A voter whose disk may have been lost: it promises nothing until it knows what it may have
promised (row 12). The argument, step by step, is in docs/consensus.md.

It takes entries and snapshots meanwhile, but gives no vote, confirms no leader, never campaigns,
and its acknowledgements are not counted. It asks every other voter. When all have answered, all
under the configuration that it was born with:

- with empty logs, then nothing was ever committed with its help;
- or with a leader of the highest term among them, and fewer than a majority without memory, then
  that leader's log up to its end holds all that was ever committed with its help: once it holds
  that too, it has nothing left to remember.

Either way it votes only in terms above all that it has heard of, since it may have voted in those.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.consensus.replication import Replication
from mailraft.node.consensus.stock import LEADER, Node, surroundings


@dataclass(frozen=True, slots=True)
class _Answer:
    term: int
    reply: raft_pb2.RecallReply


class Amnesia(Replication):
    def begin_amnesia(self) -> None:
        # Never the same in two lives of this replica: an answer to an earlier one proves nothing.
        self._recall_request = int(surroundings.random() * (1 << 52)) + 1
        self._recalled: dict[Node, _Answer] = {}
        self.recall_due_s = float("-inf")
        self._recall_goal: tuple[Node, int, int] | None = None  # leader, its term, end of its log
        self._recalling: dict[Node, int] = {}  # whose question this leader has answered
        self._birth_version = self.configuration.version
        if self.mutants is Mutant.VOTE_AFTER_AMNESIA:
            self.journal.amnesic = False

    @property
    def amnesic(self) -> bool:
        return self.journal.amnesic

    # ---- the one that may have forgotten ---------------------------------------------------------

    def advance_amnesia(self) -> None:
        """In each turn: ask, and see whether the answers are enough."""
        if not self.amnesic:
            return
        if self._knows_all():
            # In this term or below it may have voted: its vote in this one is spent on itself.
            self.stock_set_term(self.term, self.replica)
            self.journal.end_amnesia()
        elif surroundings.now >= self.recall_due_s:
            self.recall_due_s = surroundings.now + self.settings.heartbeat_s
            for node in self.voters_in_order():
                request = raft_pb2.RecallRequest(request=self._recall_request)
                self.send(node.id, recall_request=request)

    def on_recall_reply(self, sender: Node, term: int, reply: raft_pb2.RecallReply) -> None:
        if self.amnesic and reply.request == self._recall_request:
            self._recalled[sender] = _Answer(term, reply)

    def _knows_all(self) -> bool:
        if self.configuration.version != self._birth_version or not self.is_voter:
            return False  # it needs a new incarnation: this argument is for one configuration
        answers = {node: self._recalled.get(node) for node in self.voters_in_order()}
        heard = [answer for answer in answers.values() if answer is not None]
        if len(heard) < len(answers) or any(
            answer.reply.configuration_version != self._birth_version or answer.term > self.term
            for answer in heard
        ):
            return False
        if all(answer.reply.empty for answer in heard):
            return self.journal.is_newborn
        forgetful = 1 + sum(answer.reply.amnesic for answer in heard)
        majority = len(self.configuration.voters) // 2 + 1
        return forgetful < majority and self._holds_leaders_log()

    def _holds_leaders_log(self) -> bool:
        goal = self._recall_goal
        if goal is None or goal[1] != self.term:
            # The first answer counts: what came later is not older than its own question.
            leading = [
                (node, answer.term, answer.reply.last_index)
                for node, answer in self._recalled.items()
                if answer.reply.leading and answer.term == self.term
            ]
            goal = self._recall_goal = leading[0] if leading else None
        if goal is None:
            return False
        leader, term, last_index = goal
        return self.leader_node == leader and self.proven_in_term(term) >= last_index

    # ---- those that it asks ----------------------------------------------------------------------

    def on_recall_request(self, sender: Node, request: raft_pb2.RecallRequest) -> None:
        if self.role == LEADER and self._recalling.get(sender) != request.request:
            # What it acknowledged in an earlier life counts no more (row 12).
            self._recalling[sender] = request.request
            self.forget_acknowledged(sender)
        self.send(
            sender.id,
            recall_reply=raft_pb2.RecallReply(
                request=request.request,
                leading=self.role == LEADER,
                last_index=self.journal.last_index,
                empty=self.journal.is_newborn,
                amnesic=self.amnesic,
                configuration_version=self.configuration.version,
            ),
        )

"""One replica of one group: pysyncobj with the corrections, fed envelopes and told the time."""

from __future__ import annotations

from collections.abc import Callable

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.election import Election
from mailraft.node.consensus.journal import Draft, Journal
from mailraft.node.consensus.messages import Committed, GroupStatus, entries_from_wire
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.consensus.replication import ConsensusError, Replication
from mailraft.node.consensus.settings import Settings
from mailraft.node.consensus.stock import DISCARDED, LEADER, Callback, Node
from mailraft.node.interfaces import Configuration, Entry, GroupId, LogWrite, ReplicaId

_REQUESTS = frozenset({"request_vote", "append_entries", "timeout_now"})
_RAISE_TERM_THEMSELVES = frozenset({"request_vote", "append_entries"})
# Acknowledgements and votes wait until what they rest on is on disk; these do not (docs/consensus.md).
_RESTS_ON_NOTHING_NEW = frozenset({"append_entries", "timeout_now"})


class Group(Election, Replication):
    def __init__(
        self,
        group: GroupId,
        replica: ReplicaId,
        configuration: Configuration,
        journal: Journal,
        settings: Settings,
        mutants: Mutant = Mutant.NONE,
    ) -> None:
        super().__init__(group, replica, configuration, journal, settings, mutants)
        self.handed_index = journal.getRaftCommitIndex()  # row 22: applied is not applied again
        self.last_write = 0  # the host's sequence of this group's last write
        self._taken_index = self.handed_index  # handed on to the caller
        self._applied_index = self.handed_index  # ... and known to be applied
        self.begin_elections()
        self.begin_replication()

    # ---- in -------------------------------------------------------------------------------------

    def receive(self, envelope: raft_pb2.Envelope) -> None:
        """Take one envelope. Raises ConsensusError, or DamagedEntryError for the message alone."""
        sender, term = Node(envelope.from_replica), envelope.term
        if envelope.to_replica != self.replica or sender not in self.other_nodes:
            return  # rows 6 and 12: of another configuration, or for another life of this replica
        kind = envelope.WhichOneof("body")
        is_pre_vote = kind in ("request_vote", "vote_reply") and getattr(envelope, kind).pre_vote
        if term < self.term and not is_pre_vote:
            if kind in _REQUESTS:
                self.send(sender.id, term_notice=raft_pb2.TermNotice())  # row 7
                return
            if not self.mutants & Mutant.COUNT_STALE_ACKS:
                return
        if term > self.term and not is_pre_vote and kind not in _RAISE_TERM_THEMSELVES:
            self.on_higher_term(term)
        match kind:
            case "append_entries":
                self._receive_append(sender, term, envelope.append_entries)
            case "append_reply":
                self.on_append_reply(sender, term, envelope.append_reply)
            case "request_vote":
                self.on_request_vote(sender, term, envelope.request_vote)
            case "vote_reply":
                if is_pre_vote and term > self.term:
                    self.on_higher_term(term)
                self.on_vote_reply(sender, term, envelope.vote_reply)
            case "timeout_now":
                self.on_timeout_now(sender, term)
            case _:
                return  # a kind of a later release, or a TermNotice, whose term was all it said
        self._convert_stock_messages()

    def _receive_append(self, sender: Node, term: int, message: raft_pb2.AppendEntries) -> None:
        if self.role == LEADER and term == self.term:
            raise ConsensusError(f"two leaders in term {term}: {self.replica} and {sender.id}")
        entries = entries_from_wire(message.entries)
        self.on_append(sender, term, message, entries)
        self.heard_leader()

    def propose(self, draft: Draft, on_discarded: Callable[[], None]) -> tuple[int, int] | None:
        """Append one entry: its (index, term), or None when this replica does not lead."""
        if self.role != LEADER:
            return None
        self._applyCommand(draft, _tell_discarded(on_discarded))
        self._checkCommandsToApply()
        return self.journal.last_index, self.term

    def on_applied(self, index: int) -> None:
        self._applied_index = max(self._applied_index, index)

    def on_peer(self, node: Node, *, up: bool) -> None:
        if node not in self.other_nodes:
            return
        if up:
            self.outbox._onNodeConnected(node)
            self.progress_of(node).reset()
            self.want_append = True
        else:
            self.outbox._onNodeDisconnected(node)

    def tick(self) -> None:
        """Let pysyncobj look at the time: election, commit rule, leader's fallback, hand on to apply."""
        self._commit_before_tick = self.commit_index
        if self.election_due():
            self.may_start_election()
        self.doTick(0.0)
        self._convert_stock_messages()

    # ---- out ------------------------------------------------------------------------------------

    def take_writes(self, sequence: int) -> tuple[LogWrite, ...]:
        """This turn's writes, which the caller carries out as part of `sequence`."""
        writes = self.journal.take_writes()
        if writes:
            self.last_write = sequence
            self.written(sequence)
        return writes

    def take_envelopes(self) -> list[tuple[raft_pb2.Envelope, bool]]:
        """Envelopes to send, each with whether it must wait for this group's last write."""
        taken, self._envelopes = self._envelopes, []
        return [(e, e.WhichOneof("body") not in _RESTS_ON_NOTHING_NEW) for e in taken]

    def take_committed(self) -> Committed | None:
        """The next entries to apply, once the ones before them are (row 21)."""
        if self._taken_index > self._applied_index or self._taken_index >= self.handed_index:
            return None
        first = self._taken_index + 1
        entries = self.journal.entries(first, self.handed_index, self.settings.apply_bytes)
        self._taken_index = entries[-1].index
        return Committed(self.group, tuple(entries))

    def status(self) -> GroupStatus:
        return GroupStatus(
            group=self.group,
            replica=self.replica,
            leader=self.leader,
            term=self.term,
            leading=self.role == LEADER,
            commit_index=self.commit_index,
            last_index=self.journal.last_index,
        )

    # ---- stock's loose ends -----------------------------------------------------------------------

    def _convert_stock_messages(self) -> None:
        for node, message in self.outbox.take():
            match message["type"]:
                case "request_vote":
                    self.send(node.id, request_vote=self.vote_request(pre_vote=False))
                case "response_vote":
                    self.heard_leader()  # a vote given puts the own election off
                    self.send(node.id, vote_reply=raft_pb2.VoteReply(granted=True))
                case "timeout_now":
                    self.send(node.id, timeout_now=raft_pb2.TimeoutNow())
                case other:  # apply_command and its kin never leave a node (row 10)
                    raise AssertionError(f"pysyncobj sends {other}")
        if self.role != 0:
            self._asked_by_leader = False

    def _SyncObj__doApplyCommand(self, index: int) -> int:  # noqa: N802  # replaces stock's
        """Stock's loop hands on the index; the entry is applied outside (row 21)."""
        return index

    def _SyncObj__tryLogCompaction(self) -> None:  # noqa: N802  # replaces stock's
        return  # row 15: the state is on disk already


def _tell_discarded(on_discarded: Callable[[], None]) -> Callback:
    def callback(_result: object, reason: int) -> None:
        if reason == DISCARDED:
            on_discarded()

    return callback


__all__ = ["Draft", "Entry", "Group", "Journal"]

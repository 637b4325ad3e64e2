"""One replica of one group: pysyncobj with the corrections, fed envelopes and told the time."""

from __future__ import annotations

import math
from collections.abc import Callable

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.amnesia import Amnesia
from mailraft.node.consensus.catchup import Catchup
from mailraft.node.consensus.election import Election
from mailraft.node.consensus.heartbeat import Beats
from mailraft.node.consensus.journal import Draft, Journal
from mailraft.node.consensus.membership import Membership
from mailraft.node.consensus.messages import (
    ChangeConfiguration,
    Committed,
    GroupStatus,
    SnapshotArrived,
    SnapshotWanted,
    entries_from_wire,
)
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.consensus.reads import Reads
from mailraft.node.consensus.replication import ConsensusError
from mailraft.node.consensus.settings import Settings
from mailraft.node.consensus.stock import DISCARDED, LEADER, Callback, Node, surroundings
from mailraft.node.consensus.transfer import Transfers
from mailraft.node.interfaces import (
    Configuration,
    Entry,
    EntryKind,
    GroupId,
    LogWrite,
    ReplicaId,
    SaveHardState,
)

CONFIGURATION_FORMAT = 1
# From whoever may be a member by a configuration that is not here yet (thesis section 4.1); what
# answers them counts for members only.
_QUESTIONS = frozenset({"request_vote", "append_entries", "timeout_now", "confirm_leader"})
# Of a lower term they are answered with this replica's (row 7); answers of one are dropped.
_REQUESTS = frozenset(
    {
        "request_vote",
        "append_entries",
        "timeout_now",
        "confirm_leader",
        "read_index_request",
        "recall_request",
    }
)
_RAISE_TERM_THEMSELVES = frozenset({"request_vote", "append_entries"})
# Acknowledgements and votes wait until what they rest on is on disk; these do not.
_RESTS_ON_NOTHING_NEW = frozenset(
    {"append_entries", "timeout_now", "confirm_leader", "read_index_request", "read_index_reply"}
)
_RESTS_ON_TERM = frozenset({"confirm_reply"})


class Group(Election, Catchup, Amnesia, Reads, Transfers, Membership):
    def __init__(
        self,
        group: GroupId,
        replica: ReplicaId,
        configuration: Configuration,
        journal: Journal,
        settings: Settings,
        mutants: Mutant = Mutant.NONE,
        beats: Beats | None = None,
    ) -> None:
        super().__init__(group, replica, configuration, journal, settings, mutants, beats)
        self.handed_index = journal.getRaftCommitIndex()  # row 22: applied is not applied again
        self.last_write = 0  # the host's sequence of this group's last write
        self._last_state_write = 0  # ... and of its last term or vote
        self._taken_index = self.handed_index  # handed on to the caller
        self._applied_index = self.handed_index  # ... and known to be applied
        self.begin_elections()
        self.begin_replication()
        self.begin_catchup()
        self.begin_reads()
        self.begin_transfers()
        self.begin_membership()
        self.begin_amnesia()

    # ---- in -------------------------------------------------------------------------------------

    def receive(self, envelope: raft_pb2.Envelope) -> None:
        """Take one envelope. Raises ConsensusError, or DamagedEntryError for the message alone."""
        sender, term = Node(envelope.from_replica), envelope.term
        kind = envelope.WhichOneof("body")
        known = sender in self.other_nodes or sender in self.learner_nodes
        if envelope.to_replica != self.replica or (kind not in _QUESTIONS and not known):
            return  # rows 6 and 12: of another configuration, or for another life of this replica
        is_pre_vote = kind in ("request_vote", "vote_reply") and getattr(envelope, kind).pre_vote
        if term < self.term and not is_pre_vote:
            if kind in _REQUESTS:
                self.tell_term(sender.id)
                return
            if self.mutants is not Mutant.COUNT_STALE_ACKS:
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
            case _:
                self._receive_question(kind, sender, envelope)
        self._convert_stock_messages()

    def _receive_question(
        self, kind: str | None, sender: Node, envelope: raft_pb2.Envelope
    ) -> None:
        """Beyond the Raft paper: thesis sections 3.10 (transfer) and 6.4 (reads)."""
        match kind:
            case "timeout_now":
                self.on_timeout_now(sender, envelope.term)
            case "read_index_request":
                self.on_read_index_request(sender, envelope.read_index_request)
            case "read_index_reply":
                self.on_read_index_reply(sender, envelope.read_index_reply)
            case "confirm_leader":
                self.on_confirm_leader(sender, envelope.confirm_leader)
            case "confirm_reply":
                self.on_confirm_reply(sender, envelope.term, envelope.confirm_reply)
            case "recall_request":
                self.on_recall_request(sender, envelope.recall_request)
            case "recall_reply":
                self.on_recall_reply(sender, envelope.term, envelope.recall_reply)
            case _:
                return  # a kind of a later release, or a TermNotice, whose term was all it said

    def _receive_append(self, sender: Node, term: int, message: raft_pb2.AppendEntries) -> None:
        if self.role == LEADER and term == self.term:
            raise ConsensusError(f"two leaders in term {term}: {self.replica} and {sender.id}")
        entries = entries_from_wire(message.entries)
        self.on_append(sender, term, message, entries)
        self.adopt_configuration()
        self.heard_leader()

    def propose(self, draft: Draft, on_discarded: Callable[[], None]) -> tuple[int, int] | None:
        """Append one entry: its (index, term), or None when this replica does not lead."""
        if self.role != LEADER:
            return None
        self._applyCommand(draft, _tell_discarded(on_discarded))
        self._checkCommandsToApply()
        return self.journal.last_index, self.term

    def change_configuration(self, wanted: ChangeConfiguration) -> tuple[int, int] | str:
        """Append a change: its (index, term), or why not."""
        refused = self.why_not(wanted)
        if refused:
            return refused
        record = raft_pb2.Configuration(
            format=CONFIGURATION_FORMAT,
            version=wanted.expected_version + 1,
            voters=sorted(wanted.voters),
            learners=sorted(wanted.learners),
        )
        place = self.propose(
            Draft(EntryKind.CONFIGURATION, record.SerializeToString()), lambda: None
        )
        self.adopt_configuration()
        return place or "this replica does not lead"

    def take_members_changed(self) -> bool:
        changed, self.members_changed = self.members_changed, False
        return changed

    def forget_progress(self, node: Node) -> None:
        super().forget_progress(node)
        self.progress.pop(node, None)

    def on_applied(self, index: int) -> None:
        self._applied_index = max(self._applied_index, index)

    def on_peer(self, node: Node, *, up: bool) -> None:
        if up:
            self.outbox._onNodeConnected(node)
            self.progress_of(node).reset()
            self.want_append = True
        else:
            self.outbox._onNodeDisconnected(node)

    def tick(self) -> None:
        """Let pysyncobj look at the time: election, commit rule, fallback, hand on to apply."""
        self._commit_before_tick = self.commit_index
        if self.role == LEADER:
            self.count_followers()
        elif self.election_due():
            self.may_start_election()
        elif not self.may_campaign:
            self.put_election_off()  # stock does not ask
        else:
            self.election_deadline = self.election_due_s
        self.doTick(0.0)
        self._convert_stock_messages()
        self.begin_leading()
        self.leave_if_removed()
        self.advance_transfer()
        self.advance_reads()
        self.compact_if_due(self._applied_index)
        self.advance_amnesia()

    def due_s(self) -> float:
        """When this replica wants a turn although nothing reaches it before."""
        if self.reads_pending or self.transfer_pending:
            return surroundings.now
        if self.amnesic:
            return self.recall_due_s
        if self.role != LEADER:
            return self.election_due_s
        if not self.all_caught_up():
            return surroundings.now
        return min(self.fallback_s, self.prefer_due_s)

    def soon_s(self) -> float:
        """When this replica wants a turn that must not wait for the host's next tick."""
        return min(self.notice_due_s, self.read_due_s) if self.role == LEADER else math.inf

    # ---- out ------------------------------------------------------------------------------------

    def take_writes(self, sequence: int) -> tuple[LogWrite, ...]:
        """This turn's writes, which the caller carries out as part of `sequence`."""
        writes = self.journal.take_writes()
        if writes:
            self.last_write = sequence
            self.written(sequence)
            if any(isinstance(write, SaveHardState) for write in writes):
                self._last_state_write = sequence
        return writes

    def take_envelopes(self) -> list[tuple[raft_pb2.Envelope, int]]:
        """Envelopes to send, each with the write sequence that has to be on disk first."""
        taken, self._envelopes = self._envelopes, []
        return [(envelope, self._rests_on(envelope)) for envelope in taken]

    def _rests_on(self, envelope: raft_pb2.Envelope) -> int:
        kind = envelope.WhichOneof("body")
        if kind in _RESTS_ON_NOTHING_NEW or self.mutants is Mutant.REVEAL_BEFORE_FLUSH:
            return 0
        return self._last_state_write if kind in _RESTS_ON_TERM else self.last_write

    @property
    def has_committed_more(self) -> bool:
        """Whether there is more to hand on, once what was handed on is applied."""
        return self._taken_index < self.handed_index

    def take_committed(self) -> Committed | None:
        """The next entries to apply, once the ones before them are (row 21)."""
        if self._taken_index > self._applied_index or self._taken_index >= self.handed_index:
            return None
        first = self._taken_index + 1
        entries = self.journal.entries(first, self.handed_index, self.settings.apply_bytes)
        self._taken_index = entries[-1].index
        return Committed(self.group, tuple(entries))

    def on_snapshot(self, arrived: SnapshotArrived) -> bool:
        """Whether its generation goes live with this turn's writes."""
        installed = self.take_snapshot(arrived)
        if installed:
            self._taken_index = self._applied_index = arrived.base.index
            self.adopt_configuration()
        self.answer_snapshot(arrived)
        return installed

    def snapshots_wanted(self) -> list[SnapshotWanted]:
        wanted = self.take_snapshots_wanted(self._applied_index)
        return [SnapshotWanted(self.group, replica) for replica in wanted]

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

    # ---- stock's loose ends ----------------------------------------------------------------------

    def _convert_stock_messages(self) -> None:
        for node, message in sorted(self.outbox.take(), key=lambda sent: int(sent[0].id)):
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

"""Corrections to pysyncobj's replication: what is removed, what is proven, what is committed.

On a follower a message is normalised before stock pysyncobj handles it, so that its rule ("delete
everything after prevLogIdx, add the rest") does exactly what Raft section 5.3 says. On a leader
acknowledgements are checked before stock sees them, and the send loop is ours.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.messages import entry_to_wire
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.consensus.replica import ReplicaBase
from mailraft.node.consensus.stock import LEADER, Node, surroundings
from mailraft.node.interfaces import Entry, ReplicaId, node_of


class ConsensusError(Exception):
    """A promise of Raft does not hold here: the replica must stop, not go on."""


@dataclass(slots=True)
class Progress:
    """What a leader knows of one follower's sends (row 13)."""

    probing: bool = True  # one message at a time until one is acknowledged
    waiting_since: float | None = None  # oldest send without an answer
    in_flight: deque[tuple[int, int]] = field(default_factory=deque)  # (last index, bytes)
    in_flight_bytes: int = 0
    commit_sent: int = 0
    commit_known: int = 0
    commit_due_s: float | None = None  # when the commit index goes out though no entry does
    sent_behind: int = 0  # what the last append named as the entry before
    awaits_snapshot: bool = False  # what it needs next is not in the log any more (row 15)

    def reset(self) -> None:
        self.probing, self.waiting_since, self.awaits_snapshot = True, None, False
        self.in_flight.clear()
        self.in_flight_bytes = 0

    def sent(self, last_index: int, size_bytes: int) -> None:
        self.in_flight.append((last_index, size_bytes))
        self.in_flight_bytes += size_bytes
        if self.waiting_since is None:
            self.waiting_since = surroundings.now

    def acknowledged(self, index: int) -> None:
        self.probing = False
        while self.in_flight and self.in_flight[0][0] <= index:
            self.in_flight_bytes -= self.in_flight.popleft()[1]
        self.waiting_since = surroundings.now if self.in_flight else None


class Replication(ReplicaBase):
    """Raft sections 5.3 and 5.4.2."""

    def begin_replication(self) -> None:
        self.progress: dict[Node, Progress] = {}
        # Of this replica's own log, what is on disk; and what will be when a sequence is durable.
        self.durable_index = self.journal.last_index
        self._written: deque[tuple[int, int]] = deque()  # (write sequence, last index)
        self._proven = 0
        self._accepted = False
        self._proven_in: tuple[int, int] = (0, 0)  # term, and the index that its leader has proven
        self.uncounted: set[Node] = set()  # they may have forgotten what they said (amnesia.py)
        self._commit_before_tick = self.commit_index
        self._led_term = -1

    # ---- follower -------------------------------------------------------------------------------

    def on_append(
        self, sender: Node, term: int, message: raft_pb2.AppendEntries, entries: Sequence[Entry]
    ) -> None:
        previous, previous_term = message.prev_log_index, message.prev_log_term
        for expected, entry in enumerate(entries, previous + 1):
            if entry.index != expected:
                raise ConsensusError(f"append with a gap at {expected}: got {entry.index}")
        if previous < self.journal.base_index:
            # Below the base all is committed, so it matches (Raft 5.4, leader completeness).
            entries = [e for e in entries if e.index > self.journal.base_index]
            previous = self.journal.base_index
            previous_term = self.journal.term(previous) or 0
        fresh = list(entries)
        matches = self.journal.term(previous) == previous_term
        if matches and self.mutants is not Mutant.TRUNCATE_ON_EVERY_APPEND:
            previous, previous_term, fresh = self._skip_what_is_held(previous, fresh)
        self._proven = entries[-1].index if entries else message.prev_log_index
        self._proven = max(self._proven, self.journal.base_index)
        self.stock_receive(
            sender,
            {
                "type": "append_entries",
                "term": term,
                "commit_index": min(message.commit_index, self._proven if matches else 0),
                "prevLogIdx": previous,
                "prevLogTerm": previous_term,
                "entries": [(entry, entry.index, entry.term) for entry in fresh],
            },
        )
        if self.journal.take_truncated():
            self._on_truncated()
        if self._accepted:
            self._proven_in = (term, max(self.proven_in_term(term), self._proven))
        self._answer(sender)

    def proven_in_term(self, term: int) -> int:
        """Up to where the leader of a term has proven this log to be its own."""
        return self._proven_in[1] if self._proven_in[0] == term else 0

    def _skip_what_is_held(
        self, previous: int, entries: list[Entry]
    ) -> tuple[int, int, list[Entry]]:
        """Row 2: only the first entry whose term differs may remove anything.

        Returns where the message really begins for this log, so that stock's "delete what follows
        prevLogIdx" deletes from the first conflict, or nothing.
        """
        for position, entry in enumerate(entries):
            held_term = self.journal.term(entry.index)
            if held_term != entry.term:
                if entry.index <= self.commit_index:
                    raise ConsensusError(
                        f"entry {entry.index} is committed in term {held_term}, "
                        f"and sent in {entry.term}"
                    )
                return previous, self.journal.term(previous) or 0, entries[position:]
            previous = entry.index
        # Nothing new: aim behind the end of the log, where there is nothing to remove.
        end = self.journal.last_index
        return end, self.journal.term(end) or 0, []

    def _SyncObj__sendNextNodeIdx(  # noqa: N802  # replaces stock's answer to an append
        self,
        _node: Node,
        reset: bool = False,
        nextNodeIdx: int | None = None,  # noqa: N803  # pysyncobj's name
        success: bool = False,
    ) -> None:
        """Stock answers in the middle of its handler; the answer goes out behind it."""
        self._accepted = success

    def _answer(self, node: Node) -> None:
        """Say what the message proves, not where the log happens to end (row 2)."""
        reply = raft_pb2.AppendReply(
            success=self._accepted,
            commit_index=self.commit_index,
            amnesic=self.journal.amnesic,
        )
        if self._accepted:
            reply.match_index = self._proven
        else:
            # Committed entries never conflict, so from there on the leader finds common ground.
            reply.retry_index = self.commit_index + 1
        self.send(node.id, append_reply=reply)

    # ---- leader: acknowledgements ---------------------------------------------------------------

    def on_append_reply(self, sender: Node, term: int, reply: raft_pb2.AppendReply) -> None:
        if self.role != LEADER or (
            term != self.term and self.mutants is not Mutant.COUNT_STALE_ACKS
        ):
            return  # row 4: an acknowledgement counts in the term that it answers
        progress = self.progress_of(sender)
        (self.uncounted.add if reply.amnesic else self.uncounted.discard)(sender)
        self.last_response[sender] = surroundings.now
        before = self.next_index[sender]
        if not reply.success:
            progress.reset()
            # Asked whether it holds the start of this log, it said no.
            base = self.journal.base_index
            progress.awaits_snapshot = progress.sent_behind == base and reply.retry_index <= base
            self.next_index[sender] = max(
                self._first_unproven(sender), min(reply.retry_index, before)
            )
            self.want_append = True
            return
        if reply.match_index > self.journal.last_index:
            raise ConsensusError(f"{sender.id} acknowledges {reply.match_index}, beyond the end")
        self.stock_receive(
            sender,
            {
                "type": "next_node_idx",
                "next_node_idx": reply.match_index + 1,
                "reset": False,
                "success": True,
            },
        )
        if self.mutants is not Mutant.NEXT_INDEX_BACKWARDS:
            self.next_index[sender] = max(before, reply.match_index + 1)  # row 3
        progress.acknowledged(reply.match_index)
        progress.commit_known = max(progress.commit_known, reply.commit_index)
        self.want_append = True

    def forget_acknowledged(self, node: Node) -> None:
        """It has begun anew, with nothing."""
        self.uncounted.add(node)
        self.match_index[node] = 0
        self.next_index[node] = self.journal.last_index + 1
        self.progress_of(node).reset()
        self.want_append = True

    def _first_unproven(self, node: Node) -> int:
        """Match indexes start at 0, where a log starts at its base."""
        return max(self.match_index[node], self.journal.base_index) + 1

    def progress_of(self, node: Node) -> Progress:
        found = self.progress.get(node)
        if found is None:
            found = self.progress[node] = Progress()
        return found

    # ---- leader: followers that are alive --------------------------------------------------------

    def count_followers(self) -> None:
        """An answered heartbeat is an answer of all groups that it was for."""
        for node, heard_s in self.last_response.items():
            self.last_response[node] = max(heard_s, self.beats.followed_s(node_of(node.id)))

    def voters_heard(self) -> frozenset[ReplicaId]:
        """The other voters that are heard."""
        return frozenset(int(node.id) for node in self.heard() & self.other_nodes)

    def heard(self) -> frozenset[Node]:
        """Whose streams are up and who answered within an election timeout."""
        self.count_followers()
        since_s = surroundings.now - self.settings.election_timeout_min_s
        lately = {node for node, heard_s in self.last_response.items() if heard_s >= since_s}
        return frozenset(lately & self.connected_nodes)

    @property
    def fallback_s(self) -> float:
        """When this leader steps down (row 8) if none of its followers is heard until then."""
        needed = (len(self.other_nodes) + 1) // 2
        if not needed:
            return float("inf")
        self.count_followers()
        answers = sorted((self.last_response[node] for node in self.other_nodes), reverse=True)
        return answers[needed - 1] + self.settings.election_timeout_min_s

    # ---- leader: commit -------------------------------------------------------------------------

    def written(self, sequence: int) -> None:
        """This turn's appends go to disk as part of `sequence`."""
        self._written.append((sequence, self.journal.last_index))

    def _on_truncated(self) -> None:
        """The log got shorter: nothing above its end is on disk any more."""
        end = self.journal.last_index
        self.durable_index = min(self.durable_index, end)
        self._written = deque((sequence, min(index, end)) for sequence, index in self._written)

    def on_durable(self, sequence: int) -> None:
        while self._written and self._written[0][0] <= sequence:
            self.durable_index = max(self.durable_index, self._written.popleft()[1])

    def majority_index(self) -> int:
        """Row 5: the majority-th largest of {own durable index, match indexes} (Raft 5.3)."""
        count_learners = self.mutants is Mutant.COUNT_LEARNERS
        counted = self.peers_in_order() if count_learners else self.other_nodes
        indexes = [0 if n in self.uncounted else self.match_index[n] for n in counted]
        if self.is_voter:  # a leader that is being removed does not count itself
            indexes.append(self.durable_index)
        if not indexes:
            return 0  # without voters nothing is ever committed
        indexes.sort()
        return indexes[(len(indexes) - 1) // 2]

    def _SyncObj__applyLogEntries(self) -> bool:  # noqa: N802  # wraps stock's
        """Runs between stock's commit rule and its apply loop: puts the commit index right.

        Stock counts the leader's own log before it is on disk; its verdict is kept only as far as
        durable copies carry it.
        """
        if self.role == LEADER and self.mutants is not Mutant.COMMIT_BEFORE_OWN_FLUSH:
            held = self.majority_index()
            if held > self._commit_before_tick and self.journal.term(held) == self.term:
                self.commit_index = held  # Raft section 5.4.2: only an entry of the own term
            else:
                self.commit_index = self._commit_before_tick
        more: bool = super()._SyncObj__applyLogEntries()
        return more

    # ---- leader: sending ------------------------------------------------------------------------

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802  # replaces stock's send loop
        """Stock asks for a send after each command; one a turn is made of them (row 19)."""
        self.append_deadline = surroundings.now + self.settings.heartbeat_s
        self.want_append = True

    def send_appends(self) -> None:
        """At the end of a turn: what each connected follower lacks, within its window."""
        self.want_append = False
        if self.role != LEADER:
            return
        for node in self.peers_in_order():
            if node in self.connected_nodes:
                self._send_to(node, self.progress_of(node))

    def begin_leading(self) -> None:
        """Raft figure 2, volatile state on leaders. Stock does it for voters."""
        if self.role == LEADER and self._led_term != self.term:
            self._led_term, self.progress = self.term, {}
            self.leading_since_s = surroundings.now
            for node in self.learner_nodes:
                self.next_index[node] = self.journal.last_index + 1
                self.match_index[node] = 0
                self.last_response[node] = surroundings.now

    def _send_to(self, node: Node, progress: Progress) -> None:
        if progress.awaits_snapshot:
            return
        if self.next_index[node] <= self.journal.base_index:
            progress.reset()  # the log was compacted meanwhile: ask whether its start is held
            self.next_index[node] = self.journal.base_index + 1
        if progress.waiting_since is not None:
            if surroundings.now - progress.waiting_since > self.settings.election_timeout_min_s:
                progress.reset()  # an answer is overdue: something was lost, begin again
                self.next_index[node] = self._first_unproven(node)
            elif progress.probing:
                return
        last = self.journal.last_index
        while (
            self.next_index[node] <= last
            and progress.in_flight_bytes < self.settings.send_window_bytes
        ):
            entries = self.journal.entries(self.next_index[node], last, self.settings.message_bytes)
            self._send_append(node, progress, entries)
            self.next_index[node] = entries[-1].index + 1
            if progress.probing:
                return
        if progress.waiting_since is None and (progress.probing or self._owes_commit(progress)):
            self._send_append(node, progress, [])

    def _owes_commit(self, progress: Progress) -> bool:
        """Whether it is time to tell the commit index alone: an entry may have carried it."""
        if min(progress.commit_sent, progress.commit_known) >= self.commit_index:
            progress.commit_due_s = None
        elif progress.commit_due_s is None:
            progress.commit_due_s = surroundings.now + self.settings.commit_notice_s
        return progress.commit_due_s is not None and surroundings.now >= progress.commit_due_s

    def hurry_commit(self, node: Node) -> None:
        """Somebody waits at this follower for what is committed now."""
        self.progress_of(node).commit_due_s = surroundings.now
        self.want_append = True

    @property
    def notice_due_s(self) -> float:
        """When the first follower is to be told a commit index alone."""
        owed = [self.progress_of(node) for node in self.connected_nodes]
        due_s = [each.commit_due_s for each in owed if each.waiting_since is None]
        return min((each for each in due_s if each is not None), default=math.inf)

    def _send_append(self, node: Node, progress: Progress, entries: Sequence[Entry]) -> None:
        previous = self.next_index[node] - 1
        previous_term = self.journal.term(previous)
        if previous_term is None:
            raise ConsensusError(f"{node.id} needs entry {previous}, which is compacted")
        self.send(
            node.id,
            append_entries=raft_pb2.AppendEntries(
                prev_log_index=previous,
                prev_log_term=previous_term,
                commit_index=self.commit_index,
                entries=[entry_to_wire(entry) for entry in entries],
            ),
        )
        last = entries[-1].index if entries else previous
        progress.sent(last, sum(entry.size_bytes for entry in entries))
        progress.commit_sent, progress.sent_behind = self.commit_index, previous
        progress.commit_due_s = None

    def all_caught_up(self) -> bool:
        """Every connected follower holds the whole log and knows that it is committed."""
        return all(
            self.match_index[node] == self.journal.last_index
            and self.progress_of(node).commit_known == self.commit_index
            for node in self.peers_in_order()
            if node in self.connected_nodes
        )

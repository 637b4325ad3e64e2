"""What stock pysyncobj does, uncorrected: why each correction is there.

`Bare` is pysyncobj's own SyncObj on a journal in memory; nothing of ours stands in between. When
one of these fails after an upgrade, the fault was mended upstream, and a correction can go.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from mailraft.node.consensus.journal import Draft, Journal
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.consensus.replica import ReplicaBase
from mailraft.node.consensus.settings import Settings
from mailraft.node.consensus.stock import (
    CANDIDATE,
    FOLLOWER,
    LEADER,
    Node,
    SyncObjConf,
    surroundings,
)
from mailraft.node.interfaces import (
    Configuration,
    Entry,
    EntryKind,
    HardState,
    LogBase,
    StoredLog,
    TruncateLog,
)


class NoLog:
    """A LogReader of an empty log: everything is in the journal's tail."""

    def entries(self, first: int, last: int, max_bytes: int) -> Sequence[Entry]:
        return ()

    def term(self, index: int) -> int | None:
        return None


class Bare(ReplicaBase):
    """Stock pysyncobj, replica 1 of `voters`."""

    def __init__(self, voters: int) -> None:
        surroundings.enter(0.0, Random(1))
        configuration = Configuration(1, tuple(range(1, voters + 1)))
        stored = StoredLog(1, LogBase(1, 0, configuration), HardState(), 1, 0, 1)
        super().__init__(1, 1, configuration, Journal(1, stored, NoLog()), Settings(), Mutant.NONE)
        for node in self.peers_in_order():
            self.outbox._onNodeConnected(node)

    def _SyncObj__doApplyCommand(self, index: int) -> int:  # stock would unpickle here
        return index

    def _SyncObj__sendAppendEntries(self) -> None:  # stock measures entries, which are not here
        for node in self.other_nodes:
            self.next_index[node] = self.journal.last_index + 1

    def at(self, now_s: float) -> None:
        surroundings.enter(now_s, Random(1))
        self.doTick(0.0)

    def hears(self, sender: int, kind: str, **message: object) -> None:
        self.stock_receive(Node(sender), {"type": kind, **message})

    def become_leader(self) -> None:
        self.at(10.0)
        for voter in range(2, len(self.configuration.voters) + 1):
            self.hears(voter, "response_vote", term=self.term)
        assert self.role == LEADER


def entry(index: int, term: int) -> tuple[Entry, int, int]:
    """As stock has entries in its messages."""
    return (Entry(index, term, EntryKind.COMMAND, b"x"), index, term)


def test_row_2_an_append_removes_entries_that_match() -> None:
    """A message that arrives again deletes what follows prevLogIdx, matching or not."""
    bare = Bare(3)
    append = {
        "term": 1,
        "commit_index": 1,
        "prevLogIdx": 1,
        "prevLogTerm": 0,
        "entries": [entry(2, 1)],
    }
    bare.hears(2, "append_entries", **append)
    bare.hears(
        2,
        "append_entries",
        **{**append, "prevLogIdx": 2, "prevLogTerm": 1, "entries": [entry(3, 1)]},
    )
    bare.journal.take_writes()
    bare.hears(2, "append_entries", **append)
    assert any(isinstance(write, TruncateLog) for write in bare.journal.take_writes())
    assert bare.journal.last_index == 2


def test_row_3_an_acknowledgement_moves_next_index_back() -> None:
    """What is in flight behind the acknowledged entry is sent again."""
    bare = Bare(3)
    bare.become_leader()
    for _ in range(5):
        bare._applyCommand(Draft(EntryKind.COMMAND, b"x"), None)
    bare._checkCommandsToApply()
    sent = bare.next_index[Node(2)]
    assert sent == bare.journal.last_index + 1
    bare.hears(2, "next_node_idx", next_node_idx=3, reset=False, success=True)
    assert bare.next_index[Node(2)] == 3 < sent


def test_row_4_an_acknowledgement_has_no_term() -> None:
    """One from any older term counts."""
    bare = Bare(3)
    bare.become_leader()
    bare.hears(2, "next_node_idx", next_node_idx=3, reset=False, success=True)
    assert bare.match_index[Node(2)] == 2


def test_row_5_a_single_voter_commits_before_its_flush() -> None:
    """The leader's own log counts as stored at once."""
    bare = Bare(1)
    bare.election_deadline = -1.0
    bare._SyncObj__raftState = CANDIDATE  # connectedToAnyone() is never true for one node
    bare.stock_set_term(1, 1)
    bare._SyncObj__onBecomeLeader()
    bare.at(1.0)
    assert bare.commit_index == bare.journal.last_index
    assert bare.journal.take_writes()  # ... and here is what was not even handed to the disk


def test_row_6_a_vote_counts_as_often_as_it_arrives() -> None:
    """One voter of five makes a leader by answering twice."""
    bare = Bare(5)
    bare.at(10.0)
    for _ in range(2):
        bare.hears(2, "response_vote", term=bare.term)
    assert bare.role == LEADER


def test_row_6_a_stranger_has_a_vote() -> None:
    """So does a node that is no member."""
    bare = Bare(3)
    bare.at(10.0)
    bare.hears(99, "response_vote", term=bare.term)
    assert bare.role == LEADER


def test_row_7_a_higher_term_deposes_a_healthy_leader() -> None:
    """A node that was cut off and timed out alone is enough."""
    bare = Bare(3)
    bare.become_leader()
    bare.hears(3, "request_vote", term=bare.term + 5, last_log_index=1, last_log_term=0)
    assert bare.role == FOLLOWER


def test_row_7_a_lower_term_gets_no_answer() -> None:
    """A leader whose term is too low never hears that it is."""
    bare = Bare(3)
    bare.stock_set_term(9, None)
    bare.outbox.take()
    bare.hears(2, "append_entries", term=1, commit_index=1, prevLogIdx=1, prevLogTerm=0, entries=[])
    assert bare.outbox.take() == []


def test_row_8_a_leader_alone_leads_for_half_a_minute() -> None:
    """As pysyncobj comes."""
    assert SyncObjConf().leaderFallbackTimeout == 30.0


def test_row_17_a_transfer_needs_a_silent_moment() -> None:
    """With one entry on its way it is refused."""
    bare = Bare(3)
    bare.become_leader()
    refused: list[object] = []
    bare.transferLeadership(Node(2), lambda _, reason: refused.append(reason))
    assert refused


@pytest.mark.parametrize("name", ["addNodeToCluster", "removeNodeFromCluster"])
def test_row_11_membership_is_out_of_reach(name: str) -> None:
    """Its membership commands are pickles; here they cannot be made."""
    with pytest.raises(Exception, match=r"disabled|not part of mailraft"):
        getattr(Bare(3), name)(Node(4))

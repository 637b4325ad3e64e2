"""Who is in the group (thesis section 4.1). pysyncobj's own membership is not used (row 11).

A configuration is an entry of the log, in force from the moment it is appended, undone when it is
truncated, and stored in the same batch as its index, since it is the entry. One change at a time,
of one voter at most, so that any two majorities meet. Each change names the version it expects,
which fences a controller that has not seen the latest.
"""

from __future__ import annotations

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.messages import ChangeConfiguration
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.consensus.replica import ReplicaBase
from mailraft.node.consensus.stock import CANDIDATE, FOLLOWER, LEADER, Node, surroundings
from mailraft.node.interfaces import Configuration

# How far behind a learner may be that is to vote: less than travels in an instant.
PROMOTION_LAG_ENTRIES = 64


class Membership(ReplicaBase):
    def begin_membership(self) -> None:
        self.members_changed = False
        self._started_at = self.journal.last_index
        self.adopt_configuration()

    # ---- changing it -----------------------------------------------------------------------------

    def why_not(self, wanted: ChangeConfiguration) -> str:
        """Why a change may not be appended now; empty when it may."""
        now = self.configuration
        if self.role != LEADER:
            return "this replica does not lead"
        if wanted.expected_version != now.version:
            return f"version {now.version} is in force, not {wanted.expected_version}"
        if (
            self.journal.configuration_index > self.commit_index
            and self.mutants is not Mutant.TWO_CHANGES_AT_ONCE
        ):
            return "the change before is not committed"
        if self.journal.term(self.commit_index) != self.term:
            # Else an earlier leader's change may still come back (2015 erratum to the thesis).
            return "nothing of this term is committed yet"
        return _misshapen(now, wanted) or self._not_ready(wanted)

    def _not_ready(self, wanted: ChangeConfiguration) -> str:
        """A learner is promoted only when caught up: until then it would only cost availability."""
        for replica in set(wanted.voters) - set(self.configuration.voters):
            match = self.match_index.get(Node(replica), 0)
            behind = self.journal.last_index - match
            if replica not in self.configuration.learners:
                return f"{replica} is no learner yet"
            if not match:  # however short the log is: it may not even exist yet
                return f"{replica} has not answered yet"
            if Node(replica) not in self.heard():
                return f"{replica} does not answer any more"
            if behind > PROMOTION_LAG_ENTRIES:
                return f"{replica} lacks {behind} entries"
        return ""

    # ---- living in it ----------------------------------------------------------------------------

    def adopt_configuration(self) -> None:
        """The latest in the log counts, committed or not (thesis section 4.1)."""
        found = self._configuration_in_force()
        if found is self.configuration and self.membership_begun:
            return
        self.membership_begun = True
        self.configuration = found
        self.is_voter = self.replica in found.voters
        before = self.other_nodes | self.learner_nodes
        self.other_nodes = {Node(voter) for voter in found.voters if voter != self.replica}
        self.learner_nodes = {Node(one) for one in found.learners if one != self.replica}
        for gone in before - self.other_nodes - self.learner_nodes:
            self.connected_nodes.discard(gone)
            self.forget_progress(gone)
        if self.role == CANDIDATE:
            self.stock_set_role(FOLLOWER)
        if self.role == LEADER:
            for node in self.peers_in_order():
                if node not in before:
                    self.next_index[node] = self.journal.last_index + 1
                    self.match_index[node] = 0
                    self.last_response[node] = surroundings.now
        self.members_changed = True
        self.want_append = True

    def _configuration_in_force(self) -> Configuration:
        found = self.journal.configuration
        if (
            self.mutants is Mutant.CONFIGURATION_OF_BIRTH
            and self.journal.configuration_index <= self._started_at
        ):
            return self.journal.base_configuration
        if (
            self.mutants is Mutant.KEEP_TRUNCATED_CONFIGURATION
            and found.version < self.configuration.version
        ):
            return self.configuration
        return found

    def leave_if_removed(self) -> None:
        """A leader that is no voter now leads until that is committed (thesis section 4.2.2)."""
        if (
            self.role != LEADER
            or self.is_voter
            or self.journal.configuration_index > self.commit_index
        ):
            return
        able = self.heirs()
        if able:
            heir = max(able, key=lambda node: self.match_index[node])
            self.send(heir.id, timeout_now=raft_pb2.TimeoutNow())
        self.stock_set_role(FOLLOWER)
        self.leader_node = None

    def forget_progress(self, node: Node) -> None:
        """It is no member any more."""
        for known in (self.next_index, self.match_index, self.last_response):
            known.pop(node, None)


def _misshapen(now: Configuration, wanted: ChangeConfiguration) -> str:
    voters, learners = set(wanted.voters), set(wanted.learners)
    if not voters:
        return "a group needs a voter"
    if voters & learners:
        return "a learner has no vote"
    if len(voters ^ set(now.voters)) > 1:
        return "only one voter may change at a time"
    if voters == set(now.voters) and learners == set(now.learners):
        return "nothing changes"
    return ""

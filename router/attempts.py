"""When a request is tried again, and how it ends: the one set of rules, for the router and both
clients. Pure: no clock, no I/O.

Safe to try again always: what was not sent, and what a node answers without having done anything
(NOT_LEADER, NO_LEADER, STALE_ROUTE, ...). After COMMIT_UNKNOWN, a lost connection or the time of
one try only if doing it twice is doing it once: reads, and mutations with a request_id. A mutation
whose fate is not known stays that way: unless a later try settles it, it ends as COMMIT_UNKNOWN.

A round tries each replica once, without waiting; between rounds there is a pause that grows. What
followed a try that cost a server its work is paid from a budget.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import NamedTuple

from mailraft.router.budget import Extra
from mailraft.router.failures import LostError, NoAnswerError, UnreachableError
from mailraft.router.methods import Pace
from mailraft.router.table import CLUSTER, Place
from mailraft.v1 import error_pb2
from mailraft.wire import errors

TRY_TIMEOUT_S = 1.0  # of the first try; doubles, so that a cluster that is only slow answers too
PATIENT_TRY_TIMEOUT_S = 5.0
PAUSE_FIRST_S = 0.02
PAUSE_MAX_S = 0.5
TRIES_MAX = 200
# What is told when the budget of retries is spent, in milliseconds: many are told at once.
SPENT_RETRY_MS = (200, 1_000)


class Target(enum.Enum):
    LEADER = "the leader"
    ANY = "any replica: near, and not busy"
    EXACT = "the replica that the request names"


class Goal(NamedTuple):
    """Where a request must go and what may be done to get it there."""

    shard: int
    target: Target
    pace: Pace = Pace.QUICK
    mutation: bool = False
    repeatable: bool = True
    replica_id: int = 0
    # One try may take all the time there is (write levels that wait for replicas).
    whole_time: bool = False


# Nothing was done, and another try may find what is asked for.
_NOTHING_DONE = (
    errors.NotLeaderError,
    errors.NoLeaderError,
    errors.StaleRouteError,
    errors.ShuttingDownError,
    errors.ReplicaLaggingError,
    errors.DeadlineExceededError,
    errors.ReplyFullError,
    UnreachableError,
)
_FATE_UNKNOWN = (errors.CommitUnknownError, LostError)
# Of a try that had too little time left.
_SAY_LESS = (LostError, UnreachableError, errors.DeadlineExceededError)
# What has no reason of the API, in the figures of retries.
_UNSAID: Mapping[type[errors.MailraftError], str] = {
    UnreachableError: "UNREACHABLE",
    LostError: "LOST",
    NoAnswerError: "NO_ANSWER",
}
# Tries that cost a server its work, or that found it too busy to do any.
_COSTLY = (*_FATE_UNKNOWN, errors.DeadlineExceededError, errors.OverloadedError)


class Attempts:
    """The tries of one request so far, and what follows from them."""

    def __init__(self, goal: Goal, extra: Extra) -> None:
        self.goal = goal
        self.tried: set[str] = set()  # addresses of this round
        self.count = self.rounds = 0
        self.fresher = 0  # a replica that is known to be further ahead
        self.sent_to_leader = False  # a replica that was asked could not do without
        self._timeouts = 0
        self._fate_unknown = False
        self._refusal: errors.MailraftError | None = None  # the latest that says what is missing
        self.chance = extra.chance
        self._extra = extra
        extra.budget.earn()

    def timeout_s(self, remaining_s: float) -> float:
        """How long one try may take: more after each that had too little."""
        if self.goal.whole_time:
            return remaining_s
        first_s = TRY_TIMEOUT_S
        if self.goal.pace is Pace.PATIENT:
            first_s = max(PATIENT_TRY_TIMEOUT_S, remaining_s / 2)
        return min(remaining_s, first_s * (1 << self._timeouts))

    def failed(
        self,
        address: str,
        error: errors.MailraftError,
        remaining_s: float,
        others: Callable[[], bool],
    ) -> None:
        """Returns if there may be another try; else raises what the caller shall see.

        others: whether the round has a replica left, once `address` is out of it.
        """
        self.count += 1
        if not isinstance(error, errors.ReplyFullError):  # the next batch there has room
            self.tried.add(address)
        if isinstance(error, _FATE_UNKNOWN):
            self._timeouts += 1
            self._fate_unknown |= self.goal.mutation
        self.sent_to_leader |= isinstance(error, errors.NotLeaderError)
        if isinstance(error.detail, error_pb2.ReplicaLagging):
            self.fresher = error.detail.fresher_replica_id
        if isinstance(error, errors.QuorumUnavailableError | errors.ReplicaLaggingError):
            self._refusal = error
        out_of_time = remaining_s <= 0 or self.count >= TRIES_MAX
        if out_of_time or not self._may_retry(error, others):
            raise self.last(error)
        if isinstance(error, _COSTLY) and not self._extra.budget.spend():
            raise self._spent(error)
        self._extra.retries[_UNSAID.get(type(error), error.name)] += 1

    def spare(self, choose: Callable[[], Place | None], place: Place) -> Place | None:
        """Another place, to be asked beside this one; the round has tried it then."""
        self.tried.add(place.address)
        other = choose()
        self.tried.discard(place.address)
        if other is not None:
            self.tried.add(other.address)
        return other

    def next_round(self, error: errors.MailraftError) -> float:
        """All may be tried again after this pause, in seconds."""
        pause_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2.0**self.rounds)
        self.rounds += 1
        self.tried.clear()
        if isinstance(error, errors.NotLeaderError) and self.rounds == 1:
            return 0.0  # its leader was asked before it was named
        return pause_s * self.chance.uniform(0.5, 1.0)

    def last(self, error: errors.MailraftError) -> errors.MailraftError:
        """What the caller is told after the last try."""
        shard = max(0, self.goal.shard)
        # An error that may pass says nothing about an earlier try; OVER_QUOTA and the like do,
        # since the store remembers its answer to a request_id.
        if self._fate_unknown and (error.retryable or isinstance(error, errors.UnavailableError)):
            if isinstance(error, errors.CommitUnknownError):
                return error
            detail = error_pb2.CommitUnknown(shard=shard)
            return errors.CommitUnknownError(f"it may be done: {error.message}", detail=detail)
        if self._refusal is not None and isinstance(error, _SAY_LESS):
            return self._refusal
        if isinstance(error, LostError):
            return errors.DeadlineExceededError(error.message)
        if isinstance(error, UnreachableError):
            detail_quorum = error_pb2.QuorumUnavailable(shard=shard, needed=1)
            return errors.QuorumUnavailableError(error.message, detail=detail_quorum)
        return error

    def nowhere(self) -> errors.MailraftError:
        """What the caller is told when the map has no place for it."""
        goal = self.goal
        if goal.target is Target.EXACT:
            return errors.ReplicaNotFoundError(
                f"shard {goal.shard} has no replica {goal.replica_id} in the cluster map"
            )
        what = "the cluster" if goal.shard == CLUSTER else f"shard {goal.shard}"
        return errors.NoLeaderError(f"the cluster map names no replica of {what}")

    # ---- inside ----------------------------------------------------------------------------------

    def _may_retry(self, error: errors.MailraftError, others: Callable[[], bool]) -> bool:
        if isinstance(error, _FATE_UNKNOWN):
            return self.goal.repeatable
        if isinstance(error, errors.QuorumUnavailableError):
            # Another replica may lead with a quorum already; asked once each, it is the answer.
            return self.rounds == 0 and others()
        if isinstance(error, errors.OverloadedError):
            # A leader that is full is not pressed; another replica may have room for a read.
            return self.goal.target is Target.ANY and not self.goal.mutation and others()
        return isinstance(error, _NOTHING_DONE)

    def _spent(self, error: errors.MailraftError) -> errors.MailraftError:
        """Too many tries fail: more of them would only add to what is too much already."""
        if self._fate_unknown:
            return self.last(error)
        return errors.OverloadedError(
            f"too many calls are tried again; the last try: {error.message}",
            retry_after_ms=self.chance.randint(*SPENT_RETRY_MS),
        )

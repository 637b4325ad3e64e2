"""One request's tries: which node next, when, and when to give up.

Safe to try again always: what was not sent, and what a node answers without having done anything
(NOT_LEADER, NO_LEADER, STALE_ROUTE, ...). After COMMIT_UNKNOWN, a lost connection or the time of
one try only if doing it twice is doing it once: reads, and mutations with a request_id. A mutation
whose fate is not known stays that way: unless a later try settles it, it ends as COMMIT_UNKNOWN.

A round tries each replica once, without waiting; between rounds there is a pause that grows.
"""

from __future__ import annotations

import asyncio
import enum
import random
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass

from mailraft.router.fleet import Fleet
from mailraft.router.methods import Pace
from mailraft.router.pool import LostError, UnreachableError
from mailraft.router.table import CLUSTER, Place
from mailraft.v1 import error_pb2
from mailraft.wire import errors

TRY_TIMEOUT_S = 1.0  # of the first try; doubles, so that a cluster that is only slow answers too
PATIENT_TRY_TIMEOUT_S = 5.0
PAUSE_FIRST_S = 0.02
PAUSE_MAX_S = 0.5
TRIES_MAX = 200
# A leader that is busier than another replica by this many calls is left to the writes.
LEADER_HANDICAP = 8


class Target(enum.Enum):
    LEADER = "the leader"
    ANY = "any replica, the leader if it is not busier"
    EXACT = "the replica that the request names"


@dataclass(frozen=True, slots=True)
class Goal:
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


class Tries:
    """Use: place = next(); try it, with patience(place); after an error await failed(place, error),
    which may raise.
    """

    def __init__(self, fleet: Fleet, goal: Goal, deadline_s: float) -> None:
        self._fleet, self._goal, self._deadline_s = fleet, goal, deadline_s
        self._tried: set[str] = set()  # in this round
        self._count = self._rounds = self._timeouts = 0
        self._turn = random.randrange(1 << 16)
        self._fate_unknown = False
        self._fresher = 0  # a replica that is known to be further ahead

    def next(self) -> Place:
        """The node to try. Raises when the map has none."""
        place = self._choose()
        if place is None:
            self._tried.clear()
            place = self._choose()
        if place is None:
            raise self._nowhere()
        self._count += 1
        return place

    def timeout_s(self) -> float:
        """How long the try may take."""
        remaining_s = self._remaining_s()
        if self._goal.whole_time:
            return remaining_s
        first_s = TRY_TIMEOUT_S
        if self._goal.pace is Pace.PATIENT:
            first_s = max(PATIENT_TRY_TIMEOUT_S, remaining_s / 2)
        return min(remaining_s, first_s * (1 << self._timeouts))

    def patience(self, place: Place) -> AbstractAsyncContextManager[None]:
        """Around the try: it ends as soon as another node is known to lead in place of a silent
        one.
        """
        if self._goal.target is not Target.LEADER:
            return nullcontext()
        return self._fleet.seeker.patience(self._goal.shard, place)

    def succeeded(self, place: Place) -> None:
        if self._goal.target is Target.LEADER:
            self._fleet.table.confirm(self._goal.shard, place)

    async def failed(self, place: Place, error: errors.MailraftError) -> None:
        """Return when it is time for the next try; else raise what the caller shall see."""
        goal, table = self._goal, self._fleet.table
        if not isinstance(error, errors.ReplyFullError):  # the next batch there has room
            self._tried.add(place.address)
        unknown = isinstance(error, _FATE_UNKNOWN)
        self._fate_unknown |= unknown and goal.mutation
        self._timeouts += unknown
        if not self._may_retry(error, unknown):
            raise self._last(error)
        if isinstance(error, errors.NotLeaderError | errors.QuorumUnavailableError):
            table.doubt(goal.shard, place.address)
            table.learn(goal.shard, error)
        elif not isinstance(error, errors.ReplicaLaggingError | errors.ReplyFullError):
            table.doubt(goal.shard, place.address)
        if isinstance(error.detail, error_pb2.ReplicaLagging):
            self._fresher = error.detail.fresher_replica_id
        if isinstance(error, errors.StaleRouteError):
            await self._refresh(error)
        if self._choose() is None:
            await self._pause(error)
        if self._remaining_s() <= 0:
            raise self._last(error)

    # ---- inside ----------------------------------------------------------------------------------

    def _remaining_s(self) -> float:
        return self._deadline_s - asyncio.get_running_loop().time()

    def _choose(self) -> Place | None:
        goal, tried = self._goal, self._tried
        leader = self._fleet.table.leader(goal.shard)
        if (
            goal.target is Target.LEADER
            and leader is not None
            and leader.address not in tried
            and not self._fleet.node(leader).suspect
        ):
            return leader
        places = self._fleet.table.topology.places(goal.shard)
        if goal.target is Target.EXACT:
            places = tuple(place for place in places if place.replica_id == goal.replica_id)
        elif goal.target is Target.LEADER:
            places = tuple(place for place in places if place.voter)
            if leader is not None and all(leader.address != place.address for place in places):
                places = (*places, leader)  # known by its address before the map is
        start = self._turn % max(1, len(places))
        in_turn = [*places[start:], *places[:start]]
        leads = leader.address if leader is not None else ""
        return min(
            (place for place in in_turn if place.address not in tried),
            key=lambda place: self._rank(place, leads),
            default=None,
        )

    def _rank(self, place: Place, leads: str) -> tuple[bool, int]:
        """Lower is better: nodes that answer, then the leader, or for ANY a replica that is further
        ahead than one that lags, then whoever is least busy.
        """
        node = self._fleet.node(place)
        if self._fresher and place.replica_id == self._fresher:
            return node.suspect, -1
        if self._goal.target is Target.LEADER:
            return node.suspect, place.address != leads
        return node.suspect, node.calls_in_flight + LEADER_HANDICAP * (place.address != leads)

    def _may_retry(self, error: errors.MailraftError, unknown: bool) -> bool:
        if self._remaining_s() <= 0 or self._count >= TRIES_MAX:
            return False
        if unknown:
            return self._goal.repeatable
        if isinstance(error, errors.QuorumUnavailableError):
            # Another replica may lead with a quorum already; asked once each, it is the answer.
            return self._rounds == 0 and self._choose() is not None
        return isinstance(error, _NOTHING_DONE)

    async def _refresh(self, error: errors.MailraftError) -> None:
        detail = error.detail
        told = detail.epoch if isinstance(detail, error_pb2.StaleRoute) else 0
        if told == 0 or told > self._fleet.table.epoch:
            try:
                await asyncio.wait_for(self._fleet.refresh(), max(0.0, self._remaining_s()))
            except TimeoutError:
                return
            self._tried.clear()

    async def _pause(self, error: errors.MailraftError) -> None:
        """Between rounds: grows, with jitter, and not past the deadline."""
        pause_s = min(PAUSE_MAX_S, PAUSE_FIRST_S * 2**self._rounds) * random.uniform(0.5, 1.0)
        self._rounds += 1
        self._tried.clear()
        if isinstance(error, errors.NotLeaderError) and self._rounds == 1:
            pause_s = 0.0  # its leader was asked before it was named
        await asyncio.sleep(max(0.0, min(pause_s, self._remaining_s())))

    def _last(self, error: errors.MailraftError) -> errors.MailraftError:
        """What the caller is told after the last try."""
        shard = max(0, self._goal.shard)
        # An error that may pass says nothing about an earlier try; OVER_QUOTA and the like do,
        # since the store remembers its answer to a request_id.
        if self._fate_unknown and (error.retryable or isinstance(error, errors.UnavailableError)):
            if isinstance(error, errors.CommitUnknownError):
                return error
            detail = error_pb2.CommitUnknown(shard=shard)
            return errors.CommitUnknownError(f"it may be done: {error.message}", detail=detail)
        if isinstance(error, LostError):
            return errors.DeadlineExceededError(error.message)
        if isinstance(error, UnreachableError):
            detail_quorum = error_pb2.QuorumUnavailable(shard=shard, needed=1)
            return errors.QuorumUnavailableError(error.message, detail=detail_quorum)
        return error

    def _nowhere(self) -> errors.MailraftError:
        goal = self._goal
        if goal.target is Target.EXACT:
            return errors.ReplicaNotFoundError(
                f"shard {goal.shard} has no replica {goal.replica_id} in the cluster map"
            )
        what = "the cluster" if goal.shard == CLUSTER else f"shard {goal.shard}"
        return errors.NoLeaderError(f"the cluster map names no replica of {what}")

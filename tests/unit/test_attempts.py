"""When a request is tried again, and how it ends: the rules of the router and of both clients."""

from __future__ import annotations

import random
from collections.abc import Callable

import grpc
import pytest

from mailraft.router.attempts import (
    PATIENT_TRY_TIMEOUT_S,
    PAUSE_MAX_S,
    TRIES_MAX,
    TRY_TIMEOUT_S,
    Attempts,
    Goal,
    Target,
)
from mailraft.router.budget import Budget, Extra
from mailraft.router.failures import LostError, NoAnswerError, UnreachableError, failure
from mailraft.router.methods import Pace
from mailraft.v1 import error_pb2
from mailraft.wire import errors
from mailraft.wire.deadlines import MARGIN_S, passed_on

READ = Goal(1, Target.ANY)
WRITE = Goal(1, Target.LEADER, mutation=True)


def extra(reserve: float = 100, ratio: float = 0.1) -> Extra:
    """A budget to retry from, and chance that repeats."""
    return Extra(Budget(ratio, reserve), chance=random.Random(1))


def fails(
    attempts: Attempts,
    error: errors.MailraftError,
    *,
    left_s: float = 5.0,
    others: Callable[[], bool] = lambda: True,
) -> errors.MailraftError | None:
    """One try that failed: what the caller is told, None when there may be another."""
    try:
        attempts.failed("a", error, left_s, others)
    except errors.MailraftError as told:
        return told
    return None


@pytest.mark.parametrize(
    "error",
    [
        errors.NotLeaderError(),
        errors.NoLeaderError(),
        errors.StaleRouteError(),
        errors.ShuttingDownError(),
        UnreachableError("not sent"),
        errors.ReplyFullError(),
    ],
)
def test_what_did_nothing_is_tried_again_for_nothing(error: errors.MailraftError) -> None:
    """Even when the budget is spent, and even a mutation that could not be repeated."""
    attempts = Attempts(Goal(1, Target.LEADER, mutation=True, repeatable=False), extra(reserve=0))
    assert fails(attempts, error) is None


@pytest.mark.parametrize("error", [LostError("?"), NoAnswerError("?"), errors.CommitUnknownError()])
def test_what_may_be_done_is_repeated_only_if_that_does_nothing_twice(
    error: errors.MailraftError,
) -> None:
    """A mutation without a request_id ends there; with one it goes on."""
    once = Attempts(Goal(1, Target.LEADER, mutation=True, repeatable=False), extra())
    assert isinstance(fails(once, error), errors.CommitUnknownError)
    assert fails(Attempts(WRITE, extra()), error) is None


def test_a_mutation_whose_fate_is_unknown_ends_as_such() -> None:
    """Whatever says nothing of the first try, a spent budget included; OVER_QUOTA settles it."""
    for later in (errors.NoLeaderError(), errors.OverloadedError(), NoAnswerError("?")):
        attempts = Attempts(WRITE, extra(reserve=1))
        assert fails(attempts, LostError("broke")) is None
        assert isinstance(fails(attempts, later, left_s=0), errors.CommitUnknownError)
    spent = Attempts(WRITE, extra(reserve=0))
    assert isinstance(fails(spent, LostError("broke")), errors.CommitUnknownError)
    settled = Attempts(WRITE, extra())
    assert fails(settled, LostError("broke")) is None
    assert isinstance(fails(settled, errors.OverQuotaError()), errors.OverQuotaError)


def test_of_many_calls_that_fail_few_are_tried_again() -> None:
    """At most ratio * calls + reserve; the rest are told to come back, at different times."""
    shared, again, refusals = extra(reserve=10, ratio=0.2), 0, []
    for _ in range(500):
        told = fails(Attempts(READ, shared), NoAnswerError("slow"))
        again += told is None
        if told is not None:
            refusals.append(told)
    assert 100 <= again <= 0.2 * 500 + 10
    assert all(isinstance(each, errors.OverloadedError) for each in refusals)
    assert len({each.retry_after_ms for each in refusals}) > 50
    assert shared.retries == {"NO_ANSWER": again}
    assert shared.budget.refused == len(refusals)


def test_calls_that_succeed_fill_the_budget_again() -> None:
    """Up to the reserve and no further."""
    budget = Budget(0.5, 2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    budget.earn()
    assert not budget.spend()
    budget.earn()
    assert budget.spend()
    for _ in range(100):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]


def test_a_leader_that_is_full_is_not_pressed_a_replica_is_left_for_another() -> None:
    """Of reads that any replica may serve, as long as the round has one."""
    full = errors.OverloadedError(retry_after_ms=321)
    assert fails(Attempts(READ, extra()), full) is None
    for goal in (WRITE, Goal(1, Target.LEADER), Goal(1, Target.EXACT, replica_id=3)):
        assert fails(Attempts(goal, extra()), full) is full
    assert fails(Attempts(READ, extra()), full, others=lambda: False) is full


def test_a_round_has_each_replica_once_and_rounds_are_apart() -> None:
    """Pauses grow, with jitter, up to a bound; the first after NOT_LEADER is none."""
    attempts = Attempts(READ, extra())
    assert fails(attempts, errors.NoLeaderError()) is None
    assert attempts.tried == {"a"}
    pauses_s = [attempts.next_round(errors.NoLeaderError()) for _ in range(9)]
    assert not attempts.tried
    assert pauses_s[0] < 0.03
    assert pauses_s[2] > pauses_s[0]
    assert all(0 < each <= PAUSE_MAX_S for each in pauses_s)
    assert Attempts(READ, extra()).next_round(errors.NotLeaderError()) == 0.0


def test_tries_end() -> None:
    """With the time, and after many."""
    no_leader = errors.NoLeaderError()
    assert fails(Attempts(READ, extra()), no_leader, left_s=0.0) is no_leader
    attempts = Attempts(READ, extra())
    told = [fails(attempts, no_leader) for _ in range(TRIES_MAX)]
    assert told[:-1] == [None] * (TRIES_MAX - 1)
    assert told[-1] is no_leader


def test_a_leader_without_quorum_is_asked_about_once() -> None:
    """Others may lead with one; when all have said so it is the answer."""
    attempts, refused = Attempts(WRITE, extra()), errors.QuorumUnavailableError()
    assert fails(attempts, refused) is None
    assert fails(attempts, refused, others=lambda: False) is refused
    attempts.next_round(refused)
    assert fails(attempts, refused) is refused


@pytest.mark.parametrize("late", [NoAnswerError("?"), errors.DeadlineExceededError("late")])
def test_a_try_without_time_hides_no_refusal(late: errors.MailraftError) -> None:
    """The caller is told what is missing, not that the last replica had no time left to say so."""
    attempts = Attempts(READ, extra())
    refusal = errors.QuorumUnavailableError("2 of 5 voters answer")
    assert fails(attempts, refusal) is None
    assert fails(attempts, late, left_s=0.0) is refusal


def test_each_try_has_more_time() -> None:
    """And never more than is left; patient ones at once, those that wait for replicas all."""
    attempts = Attempts(READ, extra())
    assert attempts.timeout_s(9.0) == TRY_TIMEOUT_S
    assert attempts.timeout_s(0.5) == 0.5
    fails(attempts, NoAnswerError("slow"))
    assert attempts.timeout_s(9.0) == 2 * TRY_TIMEOUT_S
    patient = Attempts(Goal(1, Target.LEADER, Pace.PATIENT), extra())
    assert patient.timeout_s(8.0) == PATIENT_TRY_TIMEOUT_S
    assert patient.timeout_s(60.0) == 30.0
    whole = Attempts(Goal(1, Target.LEADER, mutation=True, whole_time=True), extra())
    assert whole.timeout_s(9.0) == 9.0


def test_a_lagging_replica_names_who_is_ahead_and_a_follower_who_leads() -> None:
    """Both are remembered for the next try."""
    attempts = Attempts(READ, extra())
    detail = error_pb2.ReplicaLagging(fresher_replica_id=7)
    assert fails(attempts, errors.ReplicaLaggingError(detail=detail)) is None
    assert (attempts.fresher, attempts.sent_to_leader) == (7, False)
    assert fails(attempts, errors.NotLeaderError()) is None
    assert attempts.sent_to_leader


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "failed to connect to all", UnreachableError),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", LostError),
        (grpc.StatusCode.CANCELLED, "", LostError),
        (grpc.StatusCode.UNKNOWN, "Stream removed", LostError),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM", LostError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", NoAnswerError),
        (grpc.StatusCode.INTERNAL, "a bug", errors.InternalError),
    ],
)
def test_what_grpc_says_of_a_broken_call(
    code: grpc.StatusCode, message: str, kind: type[errors.MailraftError]
) -> None:
    """CANCELLED comes from a server that stops: what was done is not known."""
    told = errors.MailraftError(message)
    if kind is errors.InternalError:
        told = errors.InternalError(message)
    told.code, told.reason = code, error_pb2.ERROR_REASON_UNSPECIFIED
    assert type(failure("host:1", told)) is kind


def test_a_deadline_is_passed_on_with_a_margin() -> None:
    """A server answers before its caller gives up, and never takes longer than the API allows."""
    assert passed_on(1.0) == pytest.approx(0.95)
    assert passed_on(10.0) == pytest.approx(10.0 - MARGIN_S)
    assert passed_on(None) == pytest.approx(9.9)
    assert passed_on(1_000.0) == 60.0

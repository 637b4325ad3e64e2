"""What one caller may take, on a clock of the test's."""

from __future__ import annotations

import pytest

from mailraft.wire import callers, errors
from mailraft.wire.access import Principal, Role
from mailraft.wire.callers import CallerLimits, Callers

LIMITS = CallerLimits(
    calls_per_s=10, recipients_per_s=100, bytes_per_s=1_000, calls_max=3, streams_max=2
)
ADA, BOB = Principal(Role.SERVICE, "ada"), Principal(Role.OPERATOR, "bob")


class Clock:
    """Seconds, as told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """At some time."""
    return Clock()


@pytest.fixture
def all_of_them(clock: Clock) -> Callers:
    """The callers of a process."""
    return Callers(LIMITS, now=clock)


@pytest.mark.parametrize(("what", "per_s"), [("calls", 10), ("recipients", 100), ("bytes", 1_000)])
def test_a_rate_passes_bursts_and_bounds_what_goes_on(
    all_of_them: Callers, clock: Clock, what: str, per_s: int
) -> None:
    """Twice a second's worth at once; over a minute no more than comes in; and another caller
    notices nothing.
    """
    ada = all_of_them.share(ADA)
    taken, delays_ms = 0, []
    for _ in range(6_000):
        try:
            all_of_them.take(ada, what, per_s // 10)
        except errors.RateLimitedError as refused:
            delays_ms.append(refused.retry_after_ms or 0)
        else:
            taken += per_s // 10
        clock.now_s += 0.01
    assert min(delays_ms) >= callers.RETRY_MIN_MS
    assert max(delays_ms) <= 2 * callers.RETRY_MAX_MS
    assert 60 * per_s <= taken <= 62 * per_s + per_s // 10
    all_of_them.take(all_of_them.share(BOB), what, per_s)


def test_one_that_takes_much_at_once_waits_as_long(all_of_them: Callers, clock: Clock) -> None:
    """A request that is larger than the bucket passes, and is paid for."""
    ada = all_of_them.share(ADA)
    all_of_them.take(ada, "bytes", 12_000)
    with pytest.raises(errors.RateLimitedError):
        all_of_them.take(ada, "bytes", 1)
    clock.now_s += 9.9
    with pytest.raises(errors.RateLimitedError):
        all_of_them.take(ada, "bytes", 1)
    clock.now_s += 0.2
    all_of_them.take(ada, "bytes", 1)


def test_what_is_open_is_bounded_for_each(all_of_them: Callers) -> None:
    """Calls and streams apart; what ends makes room."""
    ada, bob = all_of_them.share(ADA), all_of_them.share(BOB)
    for streaming, most in ((False, 3), (True, 2)):
        opened = [all_of_them.open(ada, streaming=streaming) for _ in range(most)]
        with pytest.raises(errors.OverloadedError) as refused:
            all_of_them.open(ada, streaming=streaming)
        assert refused.value.retry_after_ms
        all_of_them.open(bob, streaming=streaming).close()
        for each in opened:
            each.close()
        all_of_them.open(ada, streaming=streaming).close()


def test_requests_in_memory_are_bounded_in_all_and_for_each(
    all_of_them: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever came of them, they are counted no longer when they are served."""
    monkeypatch.setattr(callers, "HELD_BYTES_MAX", 100)
    monkeypatch.setattr(callers, "HELD_BYTES_OF_ONE_MAX", 60)
    ada, bob = all_of_them.share(ADA), all_of_them.share(BOB)
    calls = {share: all_of_them.open(share, streaming=False) for share in (ada, bob, None)}
    calls[ada].hold(50)
    with pytest.raises(errors.OverloadedError):
        calls[ada].hold(20)
    calls[bob].hold(50)
    for each in calls.values():
        with pytest.raises(errors.OverloadedError):
            each.hold(1)
    for each in calls.values():
        each.close()
    assert all_of_them.held_bytes == ada.held_bytes == bob.held_bytes == 0  # type: ignore[union-attr]


def test_members_of_the_cluster_have_no_share(all_of_them: Callers) -> None:
    """Nor has anybody without a certificate, whom nobody can tell from another."""
    for caller in (Principal(Role.NODE, "node-1"), Principal(Role.ROUTER, "router"), None):
        assert all_of_them.share(caller) is None
    all_of_them.take(None, "calls", 1_000_000)
    assert all_of_them.pause_s(None, 1_000_000) == 0.0


def test_callers_that_are_gone_are_forgotten(
    all_of_them: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those that have something open."""
    monkeypatch.setattr(callers, "CALLERS_KEPT", 10)
    ada = all_of_them.share(ADA)
    all_of_them.open(ada, streaming=False)
    for number in range(100):
        all_of_them.share(Principal(Role.SERVICE, str(number)))
        assert len(all_of_them._shares) <= 11
    assert all_of_them.share(ADA) is ada


def test_a_stream_waits_instead(all_of_them: Callers) -> None:
    """For as long as what it brought takes to come in again."""
    ada = all_of_them.share(ADA)
    assert all_of_them.pause_s(ada, 2_000) == 0.0
    assert all_of_them.pause_s(ada, 3_000) == pytest.approx(3.0)

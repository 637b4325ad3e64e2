"""The checker finds what is planted, and nothing else."""

from __future__ import annotations

import time
from random import Random

import pytest
from tests.faults.checker import Broken, Stored, check
from tests.faults.history import NEVER, History, Kind, Operation, Outcome

from mailraft.client import Consistency

A = "alice"


def delivery(number: int, start_s: float, end_s: float, place: int) -> Operation:
    """An acknowledged one. MODSEQ is 10 + place, UID is place."""
    done = Operation(number, Kind.DELIVER, A, 0, start_s, end_s=end_s, outcome=Outcome.DONE)
    done.uid, done.modseq, done.message_id = place, 10 + place, f"M{place}"
    return done


def listing(
    number: int,
    start_s: float,
    end_s: float,
    place: int,
    level: Consistency = Consistency.LINEARIZABLE,
) -> Operation:
    """A list that saw the messages up to `place`."""
    done = Operation(number, Kind.LIST, A, 0, start_s, level, end_s=end_s, outcome=Outcome.DONE)
    done.modseq, done.total = 10 + place, place
    done.newest_uids = tuple(range(place, max(0, place - 3), -1))
    return done


def stored(number: int, place: int) -> Stored:
    """A message where `delivery` puts it."""
    return Stored(number, place, 10 + place, f"M{place}")


def broken(operations: list[Operation], final: list[Stored]) -> set[Broken]:
    """What the checker finds."""
    return {each.what for each in check(History(operations), {A: final})}


THREE = [stored(1, 1), stored(2, 2), stored(3, 3)]


def three() -> list[Operation]:
    """Three deliveries, one after the other, and a read that saw two of them beside the third."""
    return [
        delivery(1, 0, 1, 1),
        delivery(2, 2, 3, 2),
        delivery(3, 4, 6, 3),
        listing(4, 5, 7, 2),
        listing(5, 8, 9, 3),
    ]


def test_a_right_history() -> None:
    """Nothing is found; a read beside a write may see it or not."""
    assert broken(three(), THREE) == set()
    early = [*three()[:3], listing(4, 5, 5.5, 3), listing(5, 5.6, 5.7, 3)]
    assert broken(early, THREE) == set()


def test_a_lost_message() -> None:
    """Acknowledged and not there."""
    assert Broken.LOST in broken(three(), THREE[:2])


def test_an_unknown_delivery() -> None:
    """May be there or not; if it is, then behind all that was complete before it began."""
    unknown = Operation(9, Kind.DELIVER, A, 0, 10.0)
    assert unknown.end_s == NEVER
    assert broken([*three(), unknown], THREE) == set()
    assert broken([*three(), unknown], [*THREE, stored(9, 4)]) == set()
    late = [delivery(1, 0, 1, 1), delivery(2, 2, 3, 3), Operation(9, Kind.DELIVER, A, 0, 4.0)]
    final = [stored(1, 1), stored(9, 2), stored(2, 3)]
    assert broken(late, final) == {Broken.REORDERED}


def test_a_doubled_message() -> None:
    """One request, two messages."""
    assert Broken.DOUBLED in broken(three(), [*THREE, stored(3, 4)])


def test_an_invented_message() -> None:
    """There, and delivered by nobody."""
    assert Broken.INVENTED in broken(three(), [*THREE, stored(77, 4)])


def test_a_message_at_another_place() -> None:
    """Acknowledged under one UID, there under another."""
    moved = three()
    moved[2].uid = 8
    assert broken(moved, THREE) == {Broken.CHANGED}


def test_a_stale_read() -> None:
    """A linearizable read without what was acknowledged before it began."""
    assert broken([*three(), listing(6, 10, 11, 2)], THREE) == {Broken.STALE}


def test_a_read_behind_another_read() -> None:
    """What one read saw, the next one sees, also where the write has no answer yet."""
    slow = [delivery(1, 0, 1, 1), delivery(2, 2, 9, 2), listing(4, 3, 4, 2), listing(5, 5, 6, 1)]
    assert broken(slow, THREE[:2]) == {Broken.STALE}


def test_a_session_that_goes_back() -> None:
    """A session read may be behind others, not behind what its own session wrote or read."""
    behind = listing(6, 10, 11, 2, Consistency.SESSION)
    own = {Broken.READ_YOUR_WRITES, Broken.MONOTONIC_READS}
    assert broken([*three(), behind], THREE) == own
    behind.session = 1
    assert broken([*three(), behind], THREE) == set()
    seen = listing(7, 9, 9.5, 3, Consistency.LOCAL)
    seen.session = 1
    assert broken([*three(), seen, behind], THREE) == {Broken.MONOTONIC_READS}


def test_a_write_before_what_its_session_read() -> None:
    """The order of all writes keeps what led to them."""
    slow = [delivery(1, 0, 9, 2), listing(2, 1, 2, 2, Consistency.LOCAL), delivery(3, 4, 5, 1)]
    both = {Broken.WRITES_FOLLOW_READS, Broken.REORDERED}
    assert broken(slow, [stored(3, 1), stored(1, 2)]) == both
    slow[2].session = 1
    assert broken(slow, [stored(3, 1), stored(1, 2)]) == {Broken.REORDERED}


@pytest.mark.parametrize("level", [Consistency.LOCAL, Consistency.QUORUM])
def test_levels_that_promise_no_freshness(level: Consistency) -> None:
    """Such a read may show any prefix, also one that its session was past; never anything else."""
    behind = listing(6, 10, 11, 1, level)
    assert broken([*three(), behind], THREE) == set()
    behind.total = 2
    assert broken([*three(), behind], THREE) == {Broken.WRONG_CONTENT}


def test_a_read_that_is_older_than_its_bound() -> None:
    """The third message was complete at 6: a read that begins at 10 may miss it if it may be older
    than 4 s.
    """
    behind = listing(6, 10, 11, 2, Consistency.BOUNDED)
    for bound_s, found in ((4.5, set()), (3.5, {Broken.STALE})):
        behind.bound_s = bound_s
        assert broken([*three(), behind], THREE) == found


def test_a_read_that_is_older_than_it_says() -> None:
    """Whatever the level promises, its age has to be true, and within its bound."""
    behind = listing(6, 10, 11, 2, Consistency.LOCAL)
    for age_s, found in ((4.5, set()), (3.5, {Broken.STALE})):
        behind.age_s = age_s
        assert broken([*three(), behind], THREE) == found
    old = listing(6, 10, 11, 3, Consistency.BOUNDED)
    old.bound_s, old.age_s = 1.0, 2.0
    assert broken([*three(), old], THREE) == {Broken.STALE}


def test_writes_in_another_order_than_real_time() -> None:
    """The second, begun after the first was acknowledged, stands before it."""
    swapped = [delivery(1, 0, 1, 2), delivery(2, 2, 3, 1)]
    assert broken(swapped, [stored(2, 1), stored(1, 2)]) == {Broken.REORDERED}


def test_a_read_of_the_future() -> None:
    """A read that saw a write which began after its end."""
    seer = [delivery(1, 0, 1, 1), listing(2, 2, 3, 2), delivery(3, 4, 5, 2)]
    both = {Broken.REORDERED, Broken.WRITES_FOLLOW_READS}
    assert broken(seer, [stored(1, 1), stored(3, 2)]) == both


def test_uids_against_modseqs() -> None:
    """A later UID with an earlier MODSEQ."""
    final = [Stored(1, 1, 12, "M1"), Stored(2, 2, 11, "M2")]
    assert Broken.REORDERED in broken([], final) | broken([delivery(1, 0, 1, 1)], final)


def test_wrong_content() -> None:
    """A list whose state and whose messages do not belong together."""
    wrong = three()
    wrong[4].total = 2
    assert broken(wrong, THREE) == {Broken.WRONG_CONTENT}
    wrong = three()
    wrong[4].newest_uids = (3, 1)
    assert broken(wrong, THREE) == {Broken.WRONG_CONTENT}


@pytest.mark.parametrize(
    ("outcome", "what"),
    [(Outcome.MISSING, Broken.STALE), (Outcome.WRONG, Broken.WRONG_CONTENT)],
)
def test_fetches(outcome: Outcome, what: Broken) -> None:
    """Of an acknowledged message that is not found, or has other bytes."""
    fetch = Operation(9, Kind.FETCH, A, 0, 10.0, end_s=11.0, outcome=outcome)
    assert broken([*three(), fetch], THREE) == {what}


def test_a_long_history_in_little_time() -> None:
    """50,000 operations, and one that is wrong among them is found."""
    chance = Random(7)
    operations, final, clock_s = [], [], 0.0
    for place in range(1, 25_001):
        clock_s += 1
        operations.append(delivery(2 * place, clock_s, clock_s + chance.random() * 0.9, place))
        operations.append(listing(2 * place + 1, clock_s + 0.95, clock_s + 0.99, place))
        final.append(stored(2 * place, place))
    began_s = time.monotonic()
    assert broken(operations, final) == set()
    assert time.monotonic() - began_s < 10
    operations.append(listing(60_001, clock_s + 2, clock_s + 3, 24_999))
    assert broken(operations, final) == {Broken.STALE}


def test_overlap_and_silence() -> None:
    """What a run counts: operations under way during a fault, and the longest wait of writes."""
    history = History(three(), faults=[(2.5, 4.5)])
    assert [each.number for each in history.overlapping()] == [2, 3]
    assert history.longest_silence_s() == 2


def test_silence_is_of_writes_that_wait() -> None:
    """Nobody misses a write while every client reads; one that waited and gave up is missed."""
    writes = [delivery(1, 0, 1, 1), delivery(2, 8, 9, 2)]
    assert History(writes, faults=[(0, 9)]).longest_silence() == (1, 8)
    gave_up = Operation(3, Kind.DELIVER, A, 0, 4.0, gave_up_s=6.0)
    assert History([*writes, gave_up], faults=[(0, 9)]).longest_silence() == (5, 4)

"""When a log is compacted, and up to where."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from mailraft.node.consensus.compaction import CompactionLimits, LogSizes, compact_through

LIMITS = CompactionLimits(entries_max=1_000, bytes_max=100_000, follower_bytes_max=400_000)


def through(
    sizes: LogSizes,
    last: int,
    *,
    base: int = 1,
    applied: int | None = None,
    needed: Sequence[int] = (),
) -> int | None:
    """The verdict under LIMITS."""
    return compact_through(
        sizes,
        base_index=base,
        applied_index=last if applied is None else applied,
        last_index=last,
        needed_from=needed,
        limits=LIMITS,
    )


def log_of(count: int, size_bytes: int) -> LogSizes:
    """Entries 2 to count + 1, all of one size."""
    sizes = LogSizes(1, 1, 0)
    for index in range(2, count + 2):
        sizes.add(index, size_bytes)
    return sizes


def test_a_log_within_its_limits_stays() -> None:
    """Neither many entries nor many bytes: nothing is written."""
    assert through(log_of(1_000, 100), 1_001) is None
    assert through(log_of(10, 10_000), 11) is None


def test_many_entries_are_cut_to_half() -> None:
    """By count: the later half stays for followers that fall a little behind."""
    assert through(log_of(1_001, 10), 1_002) == 502


def test_many_bytes_are_cut_to_half() -> None:
    """By bytes: large entries count for what they are."""
    found = through(log_of(200, 1_000), 201)
    assert found is not None
    assert 101 <= found <= 201
    assert 201 - found <= 50


def test_what_is_not_applied_stays() -> None:
    """An entry that is not applied is nowhere but in the log."""
    assert through(log_of(2_000, 10), 2_001, applied=300) == 300
    assert through(log_of(2_000, 10), 2_001, applied=1) is None


def test_a_connected_follower_keeps_what_it_lacks() -> None:
    """Up to a cap: past it the follower gets a snapshot, and the log is bounded all the same."""
    assert through(log_of(2_000, 10), 2_001, needed=(2_001, 700)) == 700
    assert through(log_of(2_000, 10), 2_001, needed=(2_001, 1)) is None
    capped = through(log_of(2_000, 1_000), 2_001, needed=(1,))
    assert capped is not None
    assert 1_590 <= capped <= 1_670


def test_a_little_is_not_worth_a_write() -> None:
    """A follower that moves on slowly does not cause a compaction an entry."""
    sizes = log_of(2_000, 10)
    assert through(sizes, 2_001, needed=(100,)) is None
    assert through(sizes, 2_001, needed=(130,)) == 130


@pytest.mark.parametrize("seed", range(20))
def test_sizes_follow_the_log(seed: int) -> None:
    """However it grows, is cut and compacted: the sum is exact to within a run of entries."""
    draw = Random(seed)
    sizes, kept, base = LogSizes(1, 1, 0), dict[int, int](), 1
    last = 1
    for _ in range(500):
        match draw.randrange(12):
            case 0 if last > base:
                first = draw.randint(max(base + 1, last - 20), last)
                sizes.truncate(first)
                kept = {index: size for index, size in kept.items() if index < first}
                last = first - 1
            case 1 if last > base:
                base = draw.randint(base, min(base + 30, last))
                sizes.compact(base)
                kept = {index: size for index, size in kept.items() if index > base}
            case _:
                last += 1
                kept[last] = draw.randrange(64, 2_000)
                sizes.add(last, kept[last])
        assert sum(run.entries for run in sizes._runs) == len(kept)
        assert abs(sizes.size_bytes - sum(kept.values())) <= 2 * 64 * 2_000
        if not kept:
            assert sizes.size_bytes == 0
        limit = draw.randrange(1, 50_000)
        left = sizes.index_leaving(limit)
        above = sum(size for index, size in kept.items() if index > left)
        assert above <= limit + 2 * 64 * 2_000


def test_an_estimated_log_is_taken_to_be_even() -> None:
    """What is known at a start is enough to cut it about in half."""
    sizes = LogSizes(100, 1_100, 200_000)
    assert sizes.size_bytes == 200_000
    assert 590 <= sizes.index_leaving(100_000) <= 670
    sizes.compact(600)
    assert 95_000 <= sizes.size_bytes <= 105_000
    sizes.compact(1_100)
    assert sizes.size_bytes == 0
    assert sizes.index_leaving(0) == 0

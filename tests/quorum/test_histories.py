"""Every read level under faults, thousands of operations each, all of them judged; and that the
judge finds it when a level is served as a weaker one.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.faults.checker import Broken
from tests.faults.network import ProxiedCluster
from tests.quorum import level_faults, rows
from tests.quorum.level_faults import FAULTS, Fault
from tests.quorum.level_load import LevelLoad, Verdict

from mailraft.client import Consistency

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

# Of each level in each run: 20,000 in the five.
ANSWERED_MIN = 4_000
RUN_DEADLINE_S = 270.0


async def under(cluster: ProxiedCluster, fault: Fault, answered: int, seed: int) -> Verdict:
    """A load until each level has so many answers from when the first fault begins."""
    async with LevelLoad(cluster, seed=seed) as load:
        await load.more(500)
        load.count_from_here()
        with load.history.fault():
            times = await level_faults.repeat(
                fault, cluster, lambda: load.fewest >= answered, RUN_DEADLINE_S
            )
        verdict = await load.verdict()
    rows.note(f"{fault.__name__.replace('_', ' ')}, {times} times", verdict)
    return verdict


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_level_keeps_its_promise(proxied: ProxiedCluster, fault: Fault) -> None:
    """LINEARIZABLE misses nothing; a session reads what it wrote and read, and writes behind it;
    BOUNDED is within its bound; every age is true, and every complete read; LOCAL is a prefix.
    """
    verdict = await under(proxied, fault, ANSWERED_MIN, seed=10 + FAULTS.index(fault))
    assert not verdict.violations, verdict.violations[:3]


@pytest.mark.parametrize(
    ("mutant", "level", "broken"),
    [
        ("linearizable_as_local", Consistency.LINEARIZABLE, {Broken.STALE}),
        ("bounded_as_local", Consistency.BOUNDED, {Broken.STALE}),
        ("always_complete", Consistency.QUORUM, {Broken.STALE}),
        (
            "session_without_token",
            Consistency.SESSION,
            {Broken.READ_YOUR_WRITES, Broken.MONOTONIC_READS},
        ),
    ],
)
async def test_a_level_that_is_served_as_a_weaker_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mutant: str,
    level: Consistency,
    broken: set[Broken],
) -> None:
    """The same load and checker find it, at that level and in nothing else."""
    folder = tmp_path / "cluster"
    async with (
        level_faults.mutated(mutant, folder, monkeypatch) as cluster,
        LevelLoad(cluster) as load,
    ):
        await load.more(300)
        await level_faults.follower_cut_off(cluster)
        verdict = await load.verdict()
    assert {each.what for each in verdict.violations} == broken
    assert all(f"{level!r}" in each.text for each in verdict.violations)

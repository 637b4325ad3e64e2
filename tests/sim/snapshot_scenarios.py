"""Directed scenarios about the start of the log: compaction, and snapshots (rows 14 to 16)."""

from __future__ import annotations

from dataclasses import replace

from tests.sim.scenarios import Scenario, hold
from tests.sim.scene import GROUP, SETTINGS, Scene

from mailraft.node.consensus.compaction import CompactionLimits
from mailraft.node.consensus.messages import SnapshotSent
from mailraft.node.consensus.mutants import Mutant
from mailraft.node.interfaces import replica_id

# A follower's needs keep nothing: what is cut off gets a snapshot.
SMALL = replace(SETTINGS, compaction=CompactionLimits(entries_max=6, follower_bytes_max=0))


def base_index(scene: Scene, number: int) -> int:
    """Where a node's log begins."""
    return scene.disks[number].load(GROUP).base.index


def behind_the_log(mutants: Mutant = Mutant.NONE) -> Scene:
    """A follower below the start of its leader's log is asked whether it holds that, says no, and
    gets a snapshot; from there on it takes entries as before.
    """
    scene = Scene(3, mutants, settings=SMALL)
    scene.elect(1)
    scene.live_s(0.2)
    for number in range(8):
        scene.propose(1, b"v%d" % number)
        scene.settle(1, 2)
    hold(base_index(scene, 1) > 2, "progress: the leader's log is compacted")
    scene.drop(3)
    scene.live_s(1.0)
    hold((1, replica_id(3, 1)) in scene.snapshots_wanted, "progress: a snapshot is wanted")
    scene.bring(3, scene.snapshot(1))
    scene.step(1, SnapshotSent(GROUP, replica_id(3, 1)))
    scene.propose(1, b"after")
    scene.live_s(0.3)
    hold(
        scene.values(3) == [b"after"] and scene.status(3) == _followed(scene, 3),
        "progress: n3 goes on behind the snapshot",
    )
    hold(scene.disks[3].applied(GROUP) == scene.disks[1].applied(GROUP), "digests: n3 is equal")
    return scene


def _followed(scene: Scene, number: int) -> object:
    leads = scene.status(1)
    return replace(leads, replica=replica_id(number, 1), leading=False)


def late_snapshot(mutants: Mutant = Mutant.NONE) -> Scene:
    """A snapshot that comes late takes nothing away: what its receiver has acknowledged beyond it
    stays, and is there when it counts (row 16).
    """
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.settle()
    scene.propose(1, b"in the snapshot")
    scene.deliver(1, 2)
    scene.propose(1, b"acknowledged")
    scene.deliver(1, 3)  # n3 has both, and is not told what is committed of it
    scene.deliver(2, 1)
    snapshot = scene.snapshot(1)
    scene.deliver(3, 1)
    hold(b"acknowledged" in scene.values(1), "progress: it is committed by n1 and n3")
    scene.drop(3)
    scene.bring(3, snapshot)
    scene.drop(1)
    scene.elect(3, 2)
    scene.settle(2, 3)
    hold(
        b"acknowledged" in scene.values(3) + scene.values(2),
        "nothing acknowledged lost: n2 and n3 know nothing of it",
    )
    return scene


def power_cut_while_compacting(mutants: Mutant = Mutant.NONE) -> Scene:
    """Compaction moves the start of the log and touches nothing that is kept: a power cut behind
    it takes nothing that was acknowledged (row 14).
    """
    scene = Scene(3, mutants, settings=SMALL)
    scene.elect(1)
    scene.settle()
    for number in range(8):
        scene.propose(1, b"v%d" % number)
    scene.deliver(1, 3)
    scene.deliver(1, 2)
    scene.drop_between(1, 3)
    scene.deliver(2, 1)
    scene.drop_between(1, 2)  # n2 is told with the next entry what is committed
    scene.flushing.discard(2)
    scene.propose(1, b"acknowledged")
    scene.drop_between(1, 3)
    scene.deliver(1, 2)  # the others are committed now, n2 applies them and compacts its log
    hold(base_index(scene, 2) > 2, "progress: n2 compacts its log")
    scene.flush(2)
    scene.deliver(2, 1)
    hold(b"acknowledged" in scene.values(1), "progress: it is committed by n1 and n2")
    scene.power_cut(2)
    scene.flushing.add(2)
    scene.drop(1)
    scene.elect(2, 3)
    scene.settle(2, 3)
    hold(
        b"acknowledged" in scene.values(2),
        "nothing acknowledged lost: n2 has lost what it had acknowledged",
    )
    return scene


def lost_disk(mutants: Mutant = Mutant.NONE) -> Scene:
    """A voter that comes back on an empty disk elects nobody who lacks what it had acknowledged;
    once it holds the leader's log again, it votes (row 12).
    """
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.settle()
    scene.propose(1, b"acknowledged")
    scene.deliver(1, 2)
    scene.deliver(2, 1)
    hold(scene.values(1) == [b"acknowledged"], "progress: it is committed by n1 and n2")
    scene.drop(3)
    scene.lose_disk(2)
    scene.drop(1)
    scene.campaign(3)
    scene.settle(2, 3)
    hold(not scene.status(3).leading, "leader completeness: n3 leads without the entry")
    scene.step(1)  # it has heard nobody, and leads no more
    scene.elect(1, 3)
    scene.live_s(1.0)
    hold(not scene.disks[2].load(GROUP).amnesic, "progress: n2 knows again what it has to know")
    hold(b"acknowledged" in scene.values(2), "nothing acknowledged lost: n2 does not get it")
    for number in (1, 3):
        scene.drop(number)
    scene.elect(2, 3)
    return scene


SNAPSHOT_SCENARIOS: tuple[Scenario, ...] = (
    lost_disk,
    behind_the_log,
    late_snapshot,
    power_cut_while_compacting,
)

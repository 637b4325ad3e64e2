"""Directed scenarios of leaders that go, or seem to: as those in scenarios.py."""

from __future__ import annotations

from tests.sim.scenarios import Scenario, hold
from tests.sim.scene import SETTINGS, Scene

from mailraft.node.consensus.mutants import Mutant


def leader_is_killed(mutants: Mutant = Mutant.NONE) -> Scene:
    """A leader whose node is gone is replaced well before an election timeout: that their streams
    to it broke is all its followers wait for, and chance which of them goes first.
    """
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.live_s(0.2)
    scene.drop(1)
    scene.lose(1, 2, 3)
    scene.live_s(SETTINGS.leader_lost_max_s + SETTINGS.heartbeat_s, 2, 3)
    hold(len(scene.leaders()) == 2, "progress: n2 or n3 leads in n1's place")
    terms = {scene.status(number).term for number in (2, 3)}
    hold(terms == {2}, "no needless election: one of them is elected, in the next term")
    return scene


def streams_to_a_living_leader_break(mutants: Mutant = Mutant.NONE) -> Scene:
    """A leader that lives keeps its followers: those that hear it again at its next heartbeat do
    not campaign, and one that does not is refused by the others (thesis section 9.6).
    """
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.live_s(0.2)
    scene.lose(1, 2, 3)
    scene.reconnect(1, 2, 3)
    scene.live_s(0.6)
    hold(
        not any("pre-vote" in line for line in scene.transcript[-10:]),
        "no needless election: a follower that hears its leader campaigns",
    )
    scene.lose(1, 3)
    for _ in range(6):
        scene.live_s(0.1, 1, 2)
        scene.drop_between(1, 3)
        scene.step(3)
        scene.settle(2, 3)
    hold(any("refuses its pre-vote" in line for line in scene.transcript), "progress: n3 campaigns")
    hold(
        scene.leaders() == [1] and scene.status(1).term == scene.status(3).term == 1,
        "no needless election: a leader that is heard by the others is deposed",
    )
    return scene


def retiring_leader(mutants: Mutant = Mutant.NONE) -> Scene:
    """A node that is about to stop hands over what it leads, gets nothing back, and still votes."""
    scene = Scene(3, mutants)
    scene.elect(1)
    scene.live_s(0.2)
    scene.propose(1, b"before")
    scene.retire(1)
    scene.settle()
    (leader,) = scene.leaders()
    hold(leader != 1 and scene.values(leader) == [b"before"], "progress: another one leads")
    scene.transfer(leader, 1)
    scene.live_s(0.7)
    hold(
        scene.leaders() == [leader] and scene.status(leader).term == 2,
        "transfer: a node that stops is made leader again",
    )
    other = 5 - leader
    scene.drop(leader)
    scene.elect(other, 1)
    hold(scene.status(other).leading, "progress: its vote still counts")
    return scene


FAILOVER_SCENARIOS: tuple[Scenario, ...] = (
    leader_is_killed,
    streams_to_a_living_leader_break,
    retiring_leader,
)

"""Directed scenarios of members that come and go (thesis chapter 4; row 11)."""

from __future__ import annotations

from tests.sim.scenarios import hold
from tests.sim.scene import GROUP, Scene

from mailraft.node.consensus.messages import ChangeRefused
from mailraft.node.consensus.mutants import Mutant


def _led(voters: int, mutants: Mutant, *, spares: int = 0) -> Scene:
    scene = Scene(voters, mutants, spares=spares)
    scene.elect(1)
    scene.settle()
    scene.live_s(0.2)
    return scene


def one_change_at_a_time(mutants: Mutant = Mutant.NONE) -> Scene:
    """A change waits until the one before is committed, and names the version that it expects
    (thesis section 4.1): otherwise two majorities need not meet.
    """
    scene = _led(3, mutants)
    first = scene.change(1, (1, 2))
    hold(scene.appended(first) and scene.voters(1) == [1, 2], "progress: in force when appended")
    second = scene.change(1, (1,))
    hold(
        [type(outcome) for outcome in scene.outcomes[second]] == [ChangeRefused],
        "one change at a time: a second one is appended while the first is uncommitted",
    )
    scene.settle()
    scene.live_s(0.2)
    late = scene.change(1, (1,), version=1)
    reason = "version 2 is in force, not 1"
    hold(
        scene.outcomes[late] == [ChangeRefused(late, GROUP, reason)],
        "version: a change of a stale controller is appended",
    )
    return scene


def change_is_undone(mutants: Mutant = Mutant.NONE) -> Scene:
    """A configuration that is truncated is in force no more (thesis section 4.1)."""
    scene = _led(3, mutants)
    scene.change(1, (1, 2))
    scene.drop(1)
    scene.elect(2, 3)
    scene.settle(2, 3)
    scene.live_s(0.3)
    hold(scene.log(1) == scene.log(2), "log matching: n1 has the log of n2")
    hold(scene.voters(1) == [1, 2, 3], "membership: a truncated configuration stays in force")
    return scene


def change_survives_a_restart(mutants: Mutant = Mutant.NONE) -> Scene:
    """After a restart the configuration is that of the log, not that of birth (row 11)."""
    scene = _led(3, mutants)
    scene.change(1, (1, 2))
    scene.settle()
    scene.live_s(0.2)
    scene.power_cut(1, 2)
    hold(
        scene.voters(1) == [1, 2] and scene.voters(2) == [1, 2],
        "membership: after a restart the configuration of birth is in force",
    )
    scene.elect(1, 2)
    return scene


def learners_have_no_vote(mutants: Mutant = Mutant.NONE) -> Scene:
    """Learners get every entry, count for nothing, and hold no elections (thesis section 4.2.1)."""
    scene = _led(3, mutants, spares=2)
    for learners in ((4,), (4, 5)):
        scene.change(1, (1, 2, 3), learners)
        scene.settle()
        scene.live_s(0.2)
    scene.propose(1, b"value")
    scene.settle(1, 4, 5)
    scene.settle(1, 4, 5)
    hold(scene.log(4) == scene.log(1), "progress: a learner gets the entry")
    hold(scene.values(1) == [], "durable majority: learners count")
    term = scene.status(4).term
    scene.time_out(4)
    hold(scene.status(4).term == term, "no needless election: a learner campaigns")
    scene.settle()
    scene.live_s(0.3)
    hold(scene.values(5) == [b"value"], "progress: learners apply")
    return scene


def stranger_never_campaigns(mutants: Mutant = Mutant.NONE) -> Scene:
    """A replica that is no member, and knows of none, does not make itself leader (row 11)."""
    scene = _led(3, mutants, spares=1)
    log = scene.log(4)
    scene.time_out(4)
    scene.live_s(0.2)
    hold(scene.leaders() == [1], "election safety: a replica without peers elects itself")
    hold(scene.log(4) == log, "election safety: it led long enough to write to its log")
    hold(scene.status(4).term <= scene.status(1).term, "no needless election: its term rises")
    return scene


def promotion_waits_for_the_log(mutants: Mutant = Mutant.NONE) -> Scene:
    """A learner that lacks much of the log is not promoted yet; then it is, and its vote counts."""
    scene = _led(3, mutants, spares=1)
    scene.change(1, (1, 2, 3), (4,))
    scene.settle(1, 2, 3)
    for number in range(80):
        scene.propose(1, b"%d" % number)
        scene.settle(1, 2, 3)
    early = scene.change(1, (1, 2, 3, 4))
    hold(not scene.appended(early), "promotion: a voter that has nothing costs a majority")
    scene.settle()
    scene.live_s(0.2)
    hold(len(scene.values(4)) == 80, "progress: the learner catches up")
    hold(scene.appended(scene.change(1, (1, 2, 3, 4))), "progress: it is promoted")
    scene.settle()
    scene.live_s(0.2)
    scene.elect(4, 2, 3)
    return scene


def promotion_waits_for_an_answer(mutants: Mutant = Mutant.NONE) -> Scene:
    """A learner that has never answered is not promoted, however short the log is: with a voter
    lost, nothing could be decided any more, not even that the learner's node shall make it.
    """
    scene = _led(3, mutants, spares=1)
    scene.change(1, (1, 2, 3), (4,))
    scene.settle(1, 2)
    early = scene.change(1, (1, 2, 3, 4))
    hold(not scene.appended(early), "promotion: a voter that may not exist costs the majority")
    scene.propose(1, b"value")
    scene.settle(1, 2)
    hold(scene.values(1) == [b"value"], "progress: two of three decide")
    scene.settle(1, 2, 4)
    scene.live_s(0.2, 1, 2, 4)
    hold(scene.appended(scene.change(1, (1, 2, 3, 4))), "progress: it is promoted")
    return scene


def promotion_waits_for_one_that_died(mutants: Mutant = Mutant.NONE) -> Scene:
    """A learner that had caught up and answers no more is not promoted: with a voter lost as well
    nothing could be decided any more.
    """
    scene = _led(3, mutants, spares=1)
    scene.change(1, (1, 2, 3), (4,))
    scene.settle()
    scene.live_s(0.2)
    scene.live_s(1.0, 1, 2)
    late = scene.change(1, (1, 2, 3, 4))
    hold(not scene.appended(late), "promotion: a voter that is dead costs the majority")
    scene.live_s(0.2)
    hold(scene.appended(scene.change(1, (1, 2, 3, 4))), "progress: it is back, and promoted")
    return scene


def leader_removes_itself(mutants: Mutant = Mutant.NONE) -> Scene:
    """A leader that is removed commits that without counting itself, and hands over (thesis
    section 4.2.2). No request is lost.
    """
    scene = _led(3, mutants)
    scene.propose(1, b"before")
    scene.change(1, (2, 3))
    scene.deliver(1, 2)
    scene.deliver(2, 1)
    scene.deliver(1, 2)
    scene.deliver(2, 1)
    hold(scene.status(1).leading, "membership: one of two voters is no majority")
    scene.settle()
    scene.live_s(0.3)
    (leader,) = scene.leaders()
    hold(leader in (2, 3), "progress: another one leads")
    scene.propose(leader, b"after")
    scene.live_s(0.3)
    hold(scene.values(2) == scene.values(3) == [b"before", b"after"], "nothing is lost")
    return scene


def leader_on_its_way_out_is_still_needed(mutants: Mutant = Mutant.NONE) -> Scene:
    """A leader that appended its own removal, and lost its leadership before anybody else had
    that, still campaigns: its log may be the only one that can win (thesis section 4.2.2).
    """
    scene = _led(2, mutants)
    scene.change(1, (2,))
    scene.drop(1)
    scene.pass_s(0.6)
    scene.step(1)
    hold(scene.leaders() == [] and scene.voters(1) == [2], "progress: n1 leads no more")
    scene.drop(1)
    scene.campaign(2)
    scene.settle()
    hold(scene.leaders() == [], "progress: n2 lacks the entry, and cannot win")
    scene.elect(1, 2)
    scene.settle()
    scene.live_s(0.2)
    hold(scene.leaders() == [2] and scene.voters(2) == [2], "progress: n2 leads, alone")
    return scene


def newcomer_wins_with_an_old_vote(mutants: Mutant = Mutant.NONE) -> Scene:
    """A voter that does not know of a new one yet votes for it all the same: else a majority that
    is alive could not elect (thesis section 4.1, last paragraph).
    """
    scene = _led(2, mutants, spares=1)
    scene.change(1, (1, 2), (3,))
    scene.settle()
    scene.live_s(0.2)
    scene.change(1, (1, 2, 3))
    scene.settle(1, 3)
    hold(scene.voters(2) == [1, 2], "progress: n2 has not heard of it")
    scene.drop(1)
    scene.elect(3, 2)
    scene.settle(2, 3)
    hold(scene.voters(2) == [1, 2, 3], "progress: n2 has the new configuration")
    return scene


def removed_node_disturbs_nobody(mutants: Mutant = Mutant.NONE) -> Scene:
    """A removed node that never heard of it times out in vain (thesis section 4.2.3)."""
    scene = _led(3, mutants)
    scene.change(1, (1, 2))
    scene.settle(1, 2)
    scene.drop(3)
    scene.live_s(0.6, 1, 2)
    scene.time_out(3)
    scene.settle()
    hold(scene.leaders() == [1] and scene.status(1).term == 1, "no needless election")
    return scene


MEMBERSHIP_SCENARIOS = (
    one_change_at_a_time,
    change_is_undone,
    change_survives_a_restart,
    learners_have_no_vote,
    stranger_never_campaigns,
    promotion_waits_for_the_log,
    promotion_waits_for_an_answer,
    promotion_waits_for_one_that_died,
    leader_removes_itself,
    leader_on_its_way_out_is_still_needed,
    newcomer_wins_with_an_old_vote,
    removed_node_disturbs_nobody,
)

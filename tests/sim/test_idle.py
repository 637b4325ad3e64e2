"""What groups cost that do nothing: a turn looks at those that are due, not at all there are."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.sim.scene import Scene
from tests.sim.world import World

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.group import Group
from mailraft.node.consensus.heartbeat import Outgoing
from mailraft.node.consensus.settings import Settings
from mailraft.node.consensus.timers import Timers

GROUPS = 20
IDLE_S = 10.0


def test_an_idle_group_gets_hardly_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats keep leaders and followers as they are, for seconds, without a turn of any group:
    three nodes took over 600 turns in that time.
    """
    world = World(1, groups=GROUPS)
    world.run_until(lambda: all(map(world.leader, world.groups)), 5.0, "all groups have leaders")
    world.run(2.0)
    leaders = dict(world.watch.leaders)
    turns: Counter[int] = Counter()
    tick = Group.tick

    def counted(group: Group) -> None:
        turns[group.group] += 1
        tick(group)

    monkeypatch.setattr(Group, "tick", counted)
    world.run(IDLE_S)
    assert sum(turns.values()) <= GROUPS, turns
    assert world.watch.leaders == leaders
    for node in world.nodes.values():
        assert node.host is not None
        for group in world.groups:
            if world.leader(group) != node.number:
                heard_s = world.now - node.host.leader_heard_s(group)
                assert heard_s < 2 * world.settings.heartbeat_s, "its age is known all the same"


def test_nodes_that_lead_nothing_at_each_other_hardly_beat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one leader for all, only its beats are awaited: followers tell each other their clocks
    and disks once a second. In a large cluster nearly all pairs of nodes are such.
    """
    world = World(1)
    world.run_until(lambda: bool(world.leader(1)), 5.0, "it has a leader")
    world.run(2.0)
    leader = world.leader(1)
    beats: Counter[bool] = Counter()
    beat = Outgoing.beat

    def counted(outgoing: Outgoing, now: float) -> raft_pb2.Heartbeat:
        beats[bool(outgoing.led)] += 1
        return beat(outgoing, now)

    monkeypatch.setattr(Outgoing, "beat", counted)
    world.run(IDLE_S)
    a_period = IDLE_S / world.settings.heartbeat_s
    assert world.leader(1) == leader
    assert beats[True] >= 2 * 0.8 * a_period, "from the leader to both"
    assert 4 <= beats[False] <= 4 * (1 + IDLE_S / world.settings.idle_heartbeat_s)


def test_timers_give_each_group_once_at_its_earliest_time() -> None:
    """The earliest time that was set counts, until it is taken; then a later one may be set."""
    timers = Timers()
    timers.set(1, 5.0)
    timers.set(2, 3.0)
    timers.set(1, 2.0)
    timers.set(1, 4.0)
    timers.set(3, 2.0)
    timers.drop(3)
    assert list(timers.take(1.9)) == []
    assert list(timers.take(10.0)) == [1, 2]
    timers.set(1, 20.0)
    assert list(timers.take(19.0)) == []
    assert list(timers.take(20.0)) == [1]


def _led() -> Scene:
    """Three nodes with the patience of production; the first leads, and all know it."""
    scene = Scene(3, settings=Settings(election_timeout_max_s=1e6))
    scene.elect(1)
    scene.settle()
    return scene


def test_a_commit_index_goes_with_the_next_entry_and_alone_only_after_a_while() -> None:
    """An entry costs an append and an acknowledgement for each follower while others follow; the
    last one of them is told within the time of the settings.
    """
    scene = _led()
    scene.transcript.clear()
    for number in range(4):
        scene.propose(1, b"%d" % number)
        scene.settle()
    assert sum("appends" in line for line in scene.transcript) == 2 * 4, scene.transcript
    last = scene.status(1).commit_index
    assert scene.status(2).commit_index < last, "it goes with the next one"
    scene.pass_s(scene.settings.commit_notice_s)
    scene.step(1)
    scene.settle()
    assert {scene.status(each).commit_index for each in (1, 2, 3)} == {last}


def test_who_waits_at_a_follower_is_told_a_commit_index_at_once() -> None:
    """A follower that is asked for a read index hears what is committed with the answer."""
    scene = _led()
    scene.propose(1, b"a")
    scene.settle()
    last = scene.status(1).commit_index
    assert scene.status(2).commit_index < last
    scene.read(2)
    scene.settle()
    assert scene.status(2).commit_index == last


def test_a_read_asks_one_voter_of_two_and_the_other_only_if_that_is_slow() -> None:
    """Whoever answered first before is asked; if it is silent the read waits a moment, no more."""
    scene = _led()
    scene.propose(1, b"a")
    scene.settle()
    scene.transcript.clear()
    first = scene.read(1)
    asked = [line for line in scene.transcript if "still yours?" in line]
    assert len(asked) == 1, asked
    quick = 2 if "n1 -> n2" in asked[0] else 3
    scene.drop(quick)
    scene.settle()
    assert first not in scene.outcomes
    scene.pass_s(scene.settings.read_patience_s)
    scene.step(1)
    scene.deliver(1, 5 - quick)
    scene.deliver(5 - quick, 1)
    assert first in scene.outcomes
    scene.transcript.clear()
    scene.read(1)
    asked = [line for line in scene.transcript if "still yours?" in line]
    assert len(asked) == 1
    assert f"n1 -> n{5 - quick}" in asked[0], "the one that answered"

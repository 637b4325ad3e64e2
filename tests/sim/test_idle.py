"""What groups cost that do nothing: a turn looks at those that are due, not at all there are."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.sim.world import World

from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.group import Group
from mailraft.node.consensus.heartbeat import Outgoing
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

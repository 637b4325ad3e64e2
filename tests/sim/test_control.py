"""Controllers move replicas while nodes die, messages are late and leaders change: control_world.

MAILRAFT_SIM_SEEDS and MAILRAFT_SIM_SEED0 simulate more histories, as in `make sim`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from random import Random

import pytest
from tests.sim.control_world import REPLACE_AFTER_MS, STEP_S, ControlWorld

from mailraft.cluster.control import moves
from mailraft.cluster.control.observed import HEARD_LATELY_S, Change, HandOver, Observed
from mailraft.node.interfaces import META_GROUP, node_of
from mailraft.v1 import cluster_pb2, job_pb2

SEEDS = int(os.environ.get("MAILRAFT_SIM_SEEDS", "25"))
SEED0 = int(os.environ.get("MAILRAFT_SIM_SEED0", "0"))
HOSTS = ("", "", "", "shared", "shared", "", "")
SHARDS = 4
FAULT_STEPS = 240
ALL_NODES = range(1, len(HOSTS) + 1)


def move(world: ControlWorld, shard: int = 1) -> tuple[str, int, int]:
    """Begin to move a replica of a shard: the job, the node it is on, and where it goes."""
    on = [each.node_id for each in world.replicas_of(shard)]
    apart = [node for node in (1, 2, 3, 6, 7) if node not in on]
    spec = job_pb2.MoveSpec(shard=shard, from_node_id=on[0], to_node_id=apart[0])
    job = world.begin(job_pb2.JobSpec(move=spec))
    assert job
    return job, on[0], apart[0]


def ask_something(world: ControlWorld, chance: Random) -> None:
    """What an operator may come up with."""
    node = chance.choice([each.id for each in world.map.nodes])
    there = [each for each in world.map.nodes if each.state == cluster_pb2.NODE_STATE_ACTIVE]
    spec = job_pb2.JobSpec()
    match chance.choice("mmmdurrcca-"):
        case "m":
            shard = chance.randrange(SHARDS + 1)
            on = [each.node_id for each in world.replicas_of(shard)]
            spec.move.shard, spec.move.from_node_id = shard, chance.choice(on)
            apart = [each.id for each in there if each.id not in on]
            spec.move.to_node_id = chance.choice(apart or [1])
            world.begin(spec)
        case "d":
            spec.drain.node_id = node
            world.begin(spec)
        case "u":
            world.stay(node)
        case "r":
            spec.rebalance.SetInParent()
            world.begin(spec)
        case "c" if world.open_jobs:
            world.cancel(chance.choice(world.open_jobs))
        case "a" if len(world.nodes) < 10:
            world.add_node()
        case "-" if len(there) > 6:
            spec.decommission.node_id = node
            world.begin(spec)
        case _:
            pass


def disturb(world: ControlWorld, chance: Random, lost: list[int]) -> None:
    """One node at a time is away for a while, and one of them for good."""
    away = [node for node in world.nodes.values() if not node.serving and not node.gone]
    for node in away:
        if node.number not in lost and chance.random() < 0.08:
            world.come_back(node.number)
    if [node for node in away if node.number not in lost] or chance.random() > 0.1:
        return
    number = chance.choice([node.number for node in world.nodes.values() if node.serving])
    match chance.choice(("crash", "crash", "cut", "split", "leader", "lost")):
        case "cut":
            world.cut(number)
        case "split":
            world.cut(number, heard=True)
        case "leader":
            world.crash(world.controller or number)
        case "lost" if not lost:
            world.crash(number)
            lost.append(number)
        case _:
            world.crash(number)


def history(seed: int) -> ControlWorld:
    """A cluster with faults, and then without: raises PropertyError."""
    world, chance, lost = ControlWorld(seed, HOSTS, SHARDS), Random(~seed), list[int]()
    world.faults = True
    for _ in range(FAULT_STEPS):
        if chance.random() < 0.08:
            ask_something(world, chance)
        disturb(world, chance, lost)
        world.step()
    for number in lost:  # a drained one would be waited for
        world.stay(number)
    world.calm(lost)
    return world


@pytest.mark.parametrize("seed", range(SEED0, SEED0 + SEEDS))
def test_jobs_end_and_leave_nothing_behind(seed: int) -> None:
    """Once faults stop every job ends; then each shard has three voters on three hosts, no learner,
    and no node has rows that the map does not place there. On the way no change ever costs a group
    its majority, no member loses its rows, and no replica has two lives.
    """
    history(seed)


def deliveries_of_a_move() -> int:
    """Without faults."""
    world = ControlWorld(1, HOSTS, SHARDS)
    job, _, _ = move(world)
    world.calm()
    assert world.job(job).state == job_pb2.JOB_STATE_SUCCEEDED
    return len(world.delivered)


@pytest.mark.parametrize("shard", [META_GROUP, 1])
@pytest.mark.parametrize("away", [8, 60])
@pytest.mark.parametrize("who", ["controller", "source", "target", "leader"])
def test_a_node_that_dies_at_any_step_of_a_move_changes_nothing(
    who: str, away: int, shard: int
) -> None:
    """After each thing that a controller does: the job ends, with the shard where it was to be, or
    (the target was away for so long that it was given up) where it was.
    """
    steps = deliveries_of_a_move()
    assert steps >= 6
    for last in range(1, steps + 1):
        world = ControlWorld(last, HOSTS, SHARDS)
        job, source, target = move(world, shard)
        fallen: list[int] = []

        def fall(sender: int, world: ControlWorld = world, fallen: list[int] = fallen) -> None:
            if len(world.delivered) == last and not fallen:  # noqa: B023 - of this round
                leader = node_of(world.groups[shard].leader)
                names = {"source": source, "target": target, "leader": leader}  # noqa: B023
                fallen.append(names.get(who) or sender)
                world.crash(fallen[0])

        world.after_delivery = fall
        for _ in range(away + 10):
            world.step()
        world.calm()
        state = world.job(job).state
        assert state == job_pb2.JOB_STATE_SUCCEEDED or (
            state == job_pb2.JOB_STATE_CANCELLED and who == "target"
        ), (last, state)
        on = {each.node_id for each in world.replicas_of(shard)}
        if who != "target" and away * STEP_S * 1000 < REPLACE_AFTER_MS:
            assert target in on
            assert source not in on


def test_a_target_that_is_dead_for_good_is_given_up() -> None:
    """Before it votes: the learner goes, the move is cancelled, and the decommission that it was
    part of finds another target.
    """
    world = ControlWorld(3, HOSTS, SHARDS)
    source = world.replicas_of(1)[0].node_id
    spec = job_pb2.JobSpec(decommission=job_pb2.DecommissionSpec(node_id=source))
    job = world.begin(spec)
    world.run_until(
        lambda: any(group.configuration.learners for group in world.groups.values()), 20, "begun"
    )
    [learner, *_] = [
        each for group in world.groups.values() for each in group.configuration.learners
    ]
    world.crash(node_of(learner))
    world.calm([node_of(learner)])
    assert world.job(job).state == job_pb2.JOB_STATE_SUCCEEDED
    assert not any(learner in group.members for group in world.groups.values())


def test_who_is_silent_is_not_counted_on() -> None:
    """However far its log goes: a learner that nobody has heard lately gets no vote, and the old
    replica stays while of the others only a minority is heard.
    """
    world = ControlWorld(8, HOSTS, SHARDS)
    _, source, target = move(world)
    group, job = world.groups[1], world.open_moves[0]
    old, new = job.old_replica_id, job.new_replica_id
    world.run_until(lambda: 1 in world.nodes[target].rows, 20, "begun")
    group.match[new] = group.last_index
    world.step()
    promoted = moves.next_step(world.seen(), job)
    assert isinstance(promoted, Change)
    assert new in promoted.voters
    assert not isinstance(moves.next_step(without(world.seen(), target), job), Change)

    world.run_until(lambda: new in group.committed.voters, 9, "promoted")
    seen = world.seen()
    assert isinstance(moves.next_step(seen, job), Change | HandOver)
    others = {node_of(each) for each in group.committed.voters if each != old}
    minority = without(seen, *(others - {node_of(group.leader)}))
    assert source not in others
    assert not isinstance(moves.next_step(minority, job), Change | HandOver)


def without(seen: Observed, *silent: int) -> Observed:
    """The same, but for some nodes that were not heard for longer than that."""
    return replace(seen, silent_s={**seen.silent_s, **dict.fromkeys(silent, 2 * HEARD_LATELY_S)})


def test_a_decommission_without_room_says_so_and_waits() -> None:
    """Of three nodes one cannot go: nothing moves, no shard shrinks, and the job says what it waits
    for, once. When a node joins it goes on by itself.
    """
    world = ControlWorld(4, ("", "", ""), SHARDS)
    job = world.begin(job_pb2.JobSpec(decommission=job_pb2.DecommissionSpec(node_id=1)))
    for _ in range(50):
        world.step()
    told = world.job(job)
    assert told.activity == "waits for nodes that can take its replicas"
    assert told.state == job_pb2.JOB_STATE_RUNNING
    assert told.version == 2
    assert all(len(group.committed.voters) == 3 for group in world.groups.values())
    world.add_node()
    world.run_until(lambda: world.open_jobs == [], 200, "moved")
    world.calm()
    assert world.job(job).state == job_pb2.JOB_STATE_SUCCEEDED
    assert world.nodes[1].gone


def test_a_dead_node_of_three_is_not_dropped() -> None:
    """With nowhere to put its replicas they stay: it may come back, and then it counts."""
    world = ControlWorld(5, ("", "", ""), SHARDS)
    world.crash(3)
    for _ in range(100):
        world.step()
    assert world.open_jobs == []
    assert all(len(group.committed.voters) == 3 for group in world.groups.values())


def test_a_drained_node_leads_nothing_until_it_is_undrained() -> None:
    """Its leaders go, and come back when it may lead again; nothing else moves."""
    world = ControlWorld(6, ("", "", ""), 6)
    job = world.begin(job_pb2.JobSpec(drain=job_pb2.DrainSpec(node_id=2)))
    world.calm()
    assert world.job(job).state == job_pb2.JOB_STATE_SUCCEEDED
    leading = [node_of(group.leader) for group in world.groups.values()]
    assert 2 not in leading
    world.stay(2)
    for _ in range(30):
        world.step()
    leading = [node_of(group.leader) for number, group in world.groups.items() if number]
    assert leading.count(2) == 2
    assert not any(isinstance(each, Change) for each in world.delivered)


@pytest.mark.parametrize("dies", [False, True])
def test_a_drain_ends_also_when_the_node_dies(dies: bool) -> None:
    """A node that is down leads nothing."""
    world = ControlWorld(7, ("", "", ""), SHARDS)
    job = world.begin(job_pb2.JobSpec(drain=job_pb2.DrainSpec(node_id=2)))
    world.step()
    if dies:
        world.crash(2)
    world.run_until(lambda: world.open_jobs == [], 40, "drained")
    assert world.job(job).state == job_pb2.JOB_STATE_SUCCEEDED


def test_a_drain_of_the_last_that_may_lead_says_so_and_waits() -> None:
    """Better a leader on its way than none; when another may lead again the drain ends."""
    world = ControlWorld(9, ("", "", ""), SHARDS)
    drains = [job_pb2.JobSpec(drain=job_pb2.DrainSpec(node_id=number)) for number in (1, 2, 3)]
    *_, job = [world.begin(each) for each in drains]
    for _ in range(40):
        world.step()
    assert world.job(job).activity == "waits for other nodes that may lead"
    assert all(group.leader for group in world.groups.values())
    world.stay(1)
    world.run_until(lambda: world.open_jobs == [], 40, "drained")
    assert {node_of(group.leader) for group in world.groups.values()} == {1}


@pytest.mark.parametrize("kind", ["drain", "decommission"])
def test_a_node_whose_leaving_is_cancelled_stays(kind: str) -> None:
    """It is active again before its job is over, and moves that began come to an end."""
    world = ControlWorld(10, HOSTS, SHARDS)
    spec = job_pb2.JobSpec()
    getattr(spec, kind).node_id = 4
    job = world.begin(spec)
    world.run_until(lambda: world.job(job).state == job_pb2.JOB_STATE_RUNNING, 9, "begun")
    world.cancel(world.job(job))
    world.calm()
    assert world.job(job).state == job_pb2.JOB_STATE_CANCELLED
    assert world.map.nodes[3].state == cluster_pb2.NODE_STATE_ACTIVE

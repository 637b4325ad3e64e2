"""The controller with one of its precautions taken out: the simulation must see it.

What is not found by chance in a few histories has a test of its own in test_control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.sim.control_groups import SimGroup
from tests.sim.control_world import ControlWorld
from tests.sim.test_control import history
from tests.sim.watch import PropertyError

from mailraft.cluster.control import moves, node_jobs
from mailraft.cluster.control import plan as planning
from mailraft.cluster.control.observed import Action, Change, Observed
from mailraft.cluster.meta import machine, nodes
from mailraft.internal.v1 import control_pb2, meta_pb2
from mailraft.node.mailstore.overlay import Overlay

SEEDS_MAX = 60
Patch = pytest.MonkeyPatch


def no_configuration_version(patch: Patch) -> None:
    """A leader takes a change whatever version it was made for."""
    change = SimGroup.change

    def careless(group: SimGroup, asked: Change) -> bool:
        return change(group, replace(asked, expected_version=group.configuration.version))

    patch.setattr(SimGroup, "change", careless)


def remove_before_promotion(patch: Patch) -> None:
    """The old replica goes as soon as the new one is a learner."""
    remove = moves._remove

    def early(
        seen: Observed, record: meta_pb2.MetaJobRecord, leader: control_pb2.ReplicaReport
    ) -> Action | None:
        if record.new_replica_id in leader.configuration.learners:
            voters, learners = moves._members(leader)
            if record.old_replica_id in voters and record.old_replica_id != leader.replica_id:
                return moves.change(leader, voters - {record.old_replica_id}, learners)
        return remove(seen, record, leader)

    add = moves._add
    patch.setattr(moves, "_add", lambda *of: early(*of) or add(*of))


def keep_left_over_learners(patch: Patch) -> None:
    """Nobody removes a learner that a late message added."""
    patch.setattr(planning, "_left_over", lambda _: iter(()))


def wait_for_the_dead(patch: Patch) -> None:
    """A move to a node that is dead for good is never given up."""
    patch.setattr(Observed, "dead", lambda *_: False)


def count_learners_as_replicas(patch: Patch) -> None:
    """Placement sees four replicas where a learner is left over, and takes a voter away."""
    every = lambda shard: tuple(each.node_id for each in shard.replicas)  # noqa: E731
    patch.setattr(node_jobs, "_voting", every)


def plan_from_old_jobs(patch: Patch) -> None:
    """A controller goes on with the jobs that it knew when it led."""
    init = ControlWorld.__init__

    def careless(world: ControlWorld, *of: object) -> None:
        init(world, *of)  # type: ignore[arg-type]
        world.reads_before_it_plans = False

    patch.setattr(ControlWorld, "__init__", careless)


def record_what_is_old(patch: Patch) -> None:
    """The map takes the configuration that is told last, not the newest."""

    def record(overlay: Overlay, command: meta_pb2.MetaCommand, _: int) -> meta_pb2.MetaReply:
        machine._put_shard(overlay, command.record_shard.shard)
        nodes.head_of(overlay).epoch += 1
        return meta_pb2.MetaReply(done=meta_pb2.MetaDone())

    patch.setitem(machine._ACTIONS, "record_shard", record)


MUTANTS: list[Callable[[Patch], None]] = [
    no_configuration_version,
    remove_before_promotion,
    keep_left_over_learners,
    wait_for_the_dead,
    count_learners_as_replicas,
    plan_from_old_jobs,
    record_what_is_old,
]


def histories() -> None:
    """Until one breaks."""
    for seed in range(SEEDS_MAX):
        history(seed)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_precaution_that_is_taken_out_is_missed(
    mutant: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    """A property breaks."""
    mutant(monkeypatch)
    with pytest.raises((PropertyError, AssertionError)) as broken:
        histories()
    print(f"{mutant.__name__}: {str(broken.value)[:200]}")

"""Which replica goes on where a majority is lost: the plan, the map after it, the commands."""

from __future__ import annotations

from mailraft.cluster.control.observed import Record, RecordForced
from mailraft.cluster.control.plan import plan as next_actions
from mailraft.cluster.meta.machine import EPOCHS_LOST_MAX, NODES_LOST_MAX
from mailraft.cluster.recovery import Lost, plan
from mailraft.internal.v1 import meta_pb2, raft_pb2
from mailraft.internal.v1 import recovery_service_pb2 as pb
from mailraft.node.forcing import FORCED_VERSION, successor
from mailraft.node.interfaces import META_GROUP, replica_id
from mailraft.v1 import cluster_pb2
from meta_driver import Meta, first_map, refused
from seen_cluster import seen

CLUSTER = first_map(count=3, shards=1)
SHARD = 1


def replica(node: int, last: int, *, term: int = 3, **more: object) -> pb.SurveyedReplica:
    """One of a shard of three voters, which hears nobody."""
    told = pb.SurveyedReplica(
        group=SHARD,
        replica_id=replica_id(node, 1),
        term=term,
        last_term=term,
        last_index=last,
        commit_index=last - 1,
        configuration=raft_pb2.Configuration(
            format=1, version=1, voters=[replica_id(each, 1) for each in (1, 2, 3)]
        ),
    )
    for name, value in more.items():
        setattr(told, name, value)
    return told


def judged(*replicas: pb.SurveyedReplica) -> Lost | None:
    """What is planned for the shard, when these nodes answer."""
    told = {
        each.replica_id >> 32: pb.SurveyResponse(node_id=each.replica_id >> 32, replicas=[each])
        for each in replicas
    }
    made = plan(CLUSTER, told)
    return next((each for each in made.lost if each.group == SHARD), None)


def survivor(lost: Lost | None) -> int:
    """The node that goes on; 0: none."""
    assert lost is not None
    return 0 if lost.survivor is None else lost.survivor.replica_id >> 32


def test_a_shard_that_can_elect_a_leader_is_left_alone() -> None:
    """Two of three, or one that says it has a leader."""
    assert judged(replica(1, 10), replica(2, 9)) is None
    assert judged(replica(1, 10, leader=replica_id(2, 1))) is None


def test_the_longest_log_goes_on() -> None:
    """A later term before a higher index; voters without memory count for a log, not for a vote."""
    assert survivor(judged(replica(1, 10))) == 1
    forgetful = replica(3, 12, amnesic=True)
    assert survivor(judged(replica(1, 10), forgetful)) == 3
    assert survivor(judged(replica(1, 10, term=4), forgetful)) == 1


def test_what_is_given_up_and_what_is_known_to_be_kept_is_told() -> None:
    """Also of a replica that answers and is not chosen."""
    lost = judged(replica(1, 10), replica(3, 7, amnesic=True))
    assert lost is not None
    assert lost.given_up == [2, 3]
    assert lost.able == 1
    assert lost.committed == 9
    assert lost.others == {replica_id(3, 1): 3}


def test_neither_damage_nor_an_empty_disk_goes_on() -> None:
    """Then nothing is left of the shard."""
    assert survivor(judged(replica(1, 10, stopped=True))) == 0
    assert survivor(judged(replica(1, 1, term=0, amnesic=True))) == 0


def test_a_history_that_was_given_up_once_does_not_come_back() -> None:
    """However long it is: after the shard was forced, this replica missed all that came."""
    forced = replica(2, 20)
    forced.replica_id = successor(forced.replica_id)
    forced.configuration.version = FORCED_VERSION
    forced.configuration.voters[:] = [forced.replica_id, replica_id(3, 9)]
    assert survivor(judged(replica(1, 90), forced)) == 2


def test_the_meta_group_comes_first_and_silent_nodes_are_named() -> None:
    """With one node left of three, everything has lost its majority."""
    meta = replica(1, 5)
    meta.group = META_GROUP
    told = {1: pb.SurveyResponse(node_id=1, replicas=[replica(1, 10), meta])}
    made = plan(CLUSTER, told)
    assert [each.group for each in made.lost] == [META_GROUP, SHARD]
    assert made.silent == made.given_up == [2, 3]


def test_numbers_that_lost_replicas_may_have_given_are_not_given_again() -> None:
    """And the epoch is above any that they may have told; recorded twice it is the same."""
    meta = Meta(first_map(count=3))
    epoch, incarnation = meta.map.epoch, meta.head.next_incarnation
    told = cluster_pb2.Shard(id=META_GROUP, configuration_version=FORCED_VERSION)
    told.replicas.add(replica_id=successor(replica_id(1, 1)), node_id=1)
    for _ in range(2):
        meta.run(record_forced=meta_pb2.RecordShard(shard=told))
    assert meta.map.epoch == epoch + EPOCHS_LOST_MAX
    assert meta.head.next_node_id == 4 + NODES_LOST_MAX
    assert meta.head.next_incarnation > incarnation
    assert meta.on(META_GROUP) == [1]
    told.id = SHARD
    assert refused(meta.run(record_forced=meta_pb2.RecordShard(shard=told))) == "BAD_FIELD"


def test_the_controller_records_what_was_forced() -> None:
    """Of the meta group as such; of a shard like any other change."""
    cluster = seen()
    for group in (META_GROUP, SHARD):
        report = next(
            each for each in cluster.reports[1].replicas if each.group == group and each.leading
        )
        report.replica_id = successor(report.replica_id)
        report.configuration_committed = True
        report.configuration.CopyFrom(
            raft_pb2.Configuration(version=FORCED_VERSION, voters=[report.replica_id])
        )
    actions = {type(each): each for each in next_actions(cluster) if hasattr(each, "shard")}
    assert actions[RecordForced].shard.id == META_GROUP
    assert actions[Record].shard.id == SHARD

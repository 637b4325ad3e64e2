"""What GetClusterStatus tells, of what a controller sees; and what commands make of it."""

from __future__ import annotations

import pytest

from mailraft.cluster.cli import describe
from mailraft.cluster.control.overview import CLOCK_OFF_MS_MAX, overview
from mailraft.cluster.errors import ExitCode
from mailraft.cluster.picture import NoSuchThingError, Picture
from mailraft.v1 import admin_pb2, cluster_pb2
from seen_cluster import GIB, SHARDS, seen, silent


def ids(told: admin_pb2.GetClusterStatusResponse) -> list[str]:
    """Of all alarms, in their order."""
    return [alarm.id for alarm in told.alarms]


def test_all_is_well() -> None:
    """No alarm; the line says so, and the exit status; the meta group is counted nowhere."""
    picture = Picture(overview(seen()))
    assert picture.summary == "OK epoch=1 nodes=3/3 shards=2 under_replicated=0 no_leader=0"
    assert picture.exit_code == ExitCode.OK
    assert [(each.replicas, each.leaders) for each in picture.nodes] == [(2, 2), (2, 0), (2, 0)]
    assert [describe.shard_name(each.shard.id) for each in picture.told.shards] == [
        "meta",
        "s1",
        "s2",
    ]


def test_replicas_of_one_node_in_several_shards_are_told_apart() -> None:
    """Replica ids are unique in a shard, not in a cluster: each shard tells its own index."""
    told = overview(seen())
    assert [{at.applied_index for at in each.replicas} for each in told.shards] == [
        {10},
        {11},
        {12},
    ]
    behind = {
        each.node_id: describe.behind(told.shards[1])[each.replica_id]
        for each in told.shards[1].shard.replicas
    }
    assert behind == {1: 0, 2: 2, 3: 2}


def test_a_silent_follower() -> None:
    """All is served with less to spare: warnings, which name the node and the shards."""
    picture = Picture(overview(silent(seen(), 3)))
    assert picture.summary == "DEGRADED epoch=1 nodes=2/3 shards=2 under_replicated=2 no_leader=0"
    assert picture.exit_code == ExitCode.FAILED
    assert ids(picture.told) == ["under-replicated", "node-silent/3"]
    assert picture.told.alarms[0].shards == [0, 1, 2]
    assert picture.told.alarms[1].message == "n3 was not heard for 12 s"
    assert describe.live(picture.shard(1)) == "2/3"


def test_a_silent_leader() -> None:
    """Its shards have none: that is worse, comes first, and has an exit status of its own."""
    picture = Picture(overview(silent(seen(), 1)))
    assert picture.word == "UNAVAILABLE"
    assert picture.exit_code == ExitCode.UNAVAILABLE
    assert ids(picture.told) == ["no-leader", "under-replicated", "node-silent/1"]
    assert [describe.shard_state(each) for each in picture.shards] == ["NO LEADER"] * SHARDS


def test_a_leader_without_a_majority() -> None:
    """It may say that it leads: nothing it takes can be committed."""
    told = overview(silent(silent(seen(), 2), 3))
    assert ids(told)[0] == "no-leader"


def test_a_node_that_has_left_is_not_missed() -> None:
    """It counts nowhere, and only gives its name to what is remembered of it."""
    before = seen(4)
    before.map.nodes[3].state = cluster_pb2.NODE_STATE_REMOVED
    for group in (before.map.meta, *before.map.shards):
        kept = [each for each in group.replicas if each.node_id != 4]
        del group.replicas[:]
        group.replicas.extend(kept)
    picture = Picture(overview(silent(before, 4)))
    assert not any("/4" in alarm for alarm in ids(picture.told))
    assert len(picture.nodes) == 3
    assert picture.name(4) == "n4"
    with pytest.raises(NoSuchThingError, match="no node 'n4'"):
        picture.node("n4")


def test_fewer_hosts_than_replicas() -> None:
    """One node alone holds one replica of each shard, and that is all there can be."""
    assert overview(seen(1)).alarms == []


@pytest.mark.parametrize(
    ("alarm", "message"),
    [
        ("replica-stopped/2", "n2 has stopped its replicas of s1"),
        ("replica-differs/2", "n2 has another state than its peers in s1"),
        ("damaged/2", "n2 has damaged data that nobody else has: a file"),
        ("repairing/2", "n2 fetches 1 replicas again from its peers: a file"),
        ("disk-nearly-full/2", "n2 has 86% of its disk used"),
        ("disk-full/2", "n2 has a full disk: it takes no new mail, only deletes"),
        ("clock-off/2", "n2 has its clock -11 s off"),
        ("disk-slow/2", "n2 has a slow disk: a flush takes 400 ms"),
        ("node-slow/2", "n2 is slow: calls wait up to 2000 ms for a turn"),
    ],
)
def test_a_node_that_tells_of_trouble(alarm: str, message: str) -> None:
    """Each kind has its alarm, about that node and no other."""
    before = seen()
    report = before.reports[2]
    replica = next(each for each in report.replicas if each.group == 1)
    match alarm.partition("/")[0]:
        case "replica-stopped":
            replica.stopped = True
        case "replica-differs":
            leading = next(each for each in before.reports[1].replicas if each.group == 1)
            leading.differing.append(replica.replica_id)
        case "damaged":
            report.damage = "a file"
        case "repairing":
            report.repairing, replica.fetching = "a file", True
        case "disk-nearly-full":
            report.disk_free_bytes = 14 * GIB
        case "disk-full":
            report.disk_full = True
        case "disk-slow":
            report.flush_ms = 400
        case "node-slow":
            report.loop_lag_ms = 2_000
        case _:
            report.clock_ahead_ms = -CLOCK_OFF_MS_MAX - 1_000
    told = overview(before)
    [found] = [each for each in told.alarms if each.node_id]
    assert (found.id, found.message) == (alarm, message)
    assert found.severity == admin_pb2.ALARM_SEVERITY_WARNING


def test_many_shards_are_not_all_named() -> None:
    """In the message; the alarm has them all."""
    before = seen()
    for number in range(3, 20):
        before.map.shards.add().CopyFrom(before.map.shards[0])
        before.map.shards[-1].id = number
    [alarm] = [each for each in overview(before).alarms if each.id == "no-leader"]
    assert alarm.message == "17 shards lack a leader with a majority: s3 s4 s5 s6 s7 and 12 more"
    assert len(alarm.shards) == 17


def test_things_are_named_by_name_or_number() -> None:
    """What is not there is told with what is."""
    picture = Picture(overview(seen()))
    assert picture.node("n2").node.id == picture.node("2").node.id == 2
    with pytest.raises(NoSuchThingError) as caught:
        picture.node("n9")
    assert (caught.value.exit_code, caught.value.hint) == (ExitCode.NOT_FOUND, "there are n1 n2 n3")
    with pytest.raises(NoSuchThingError, match="no shard 3"):
        picture.shard(3)


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (4_402_341_478, "4.1 GiB"),
        (1 << 51, "2048.0 TiB"),
    ],
)
def test_sizes(count: int, told: str) -> None:
    """With the unit that leaves few digits."""
    assert describe.size(count) == told

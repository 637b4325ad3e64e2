"""Which replica a request goes to: the leader, a near one, one that is not busy."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from mailraft.router.attempts import Attempts, Goal, Target
from mailraft.router.budget import Extra
from mailraft.router.latencies import RENEWED_AFTER, SAMPLES_MAX, SAMPLES_MIN, Latencies
from mailraft.router.loads import FORGIVEN_S, Loads
from mailraft.router.places import choose
from mailraft.router.table import CLUSTER, RoutingTable
from mailraft.v1 import cluster_pb2, error_pb2
from mailraft.wire import errors
from mailraft.wire.slots import SLOTS


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def table(*, leader: int = 0, learner: int = 0) -> RoutingTable:
    """Three nodes a, b, c in zones of the same names, one shard on all."""
    names = ("a", "b", "c")
    nodes = [
        cluster_pb2.Node(id=number, address=name, zone=name)
        for number, name in enumerate(names, start=1)
    ]
    roles = {learner: cluster_pb2.REPLICA_ROLE_LEARNER}
    replicas = [
        cluster_pb2.Replica(
            replica_id=number,
            node_id=number,
            role=roles.get(number, cluster_pb2.REPLICA_ROLE_VOTER),
        )
        for number in (1, 2, 3)
    ]
    shard = cluster_pb2.Shard(id=1, replicas=replicas)
    if leader:
        shard.leader.CopyFrom(
            cluster_pb2.LeaderHint(shard=1, node_id=leader, replica_id=leader, term=1)
        )
    return RoutingTable(
        cluster_pb2.ClusterMap(
            epoch=1,
            slot_count=SLOTS,
            slots=[cluster_pb2.SlotRange(first_slot=0, last_slot=SLOTS - 1, shard=1)],
            shards=[shard],
            nodes=nodes,
        )
    )


class Scene:
    """What choose() is told, and 200 choices of it."""

    def __init__(self, target: Target = Target.ANY, zone: str = "", **map_args: int) -> None:
        self.clock = Clock()
        self.table, self.loads, self.zone = table(**map_args), Loads(self.clock), zone
        self.suspects: set[str] = set()
        extra = Extra(chance=random.Random(7))
        self.attempts = Attempts(Goal(1, target, replica_id=2), extra)

    def choice(self) -> str:
        place = choose(
            self.attempts,
            self.table,
            self.loads,
            suspect=lambda place: place.address in self.suspects,
            zone=self.zone,
        )
        return place.address if place else ""

    def choices(self) -> Counter[str]:
        return Counter(self.choice() for _ in range(200))

    def takes(self, address: str, took_s: float, times: int = 10) -> None:
        """Answers that took so long, after one that also took connecting."""
        for _ in range(times + 1):
            began_s = self.loads.began(address)
            self.clock.now_s += took_s
            self.loads.ended(address, began_s, sampled=True)


def test_reads_that_may_go_anywhere_are_spread() -> None:
    """The leader gets no more than the others, so that it has time for writes."""
    found = Scene(leader=1).choices()
    assert set(found) == {"a", "b", "c"}
    assert min(found.values()) > 40


def test_a_slow_replica_is_avoided_and_forgiven() -> None:
    """While it is known to be slow it gets nothing that another can take; later it is tried."""
    scene = Scene()
    for address, took_s in (("a", 0.005), ("b", 0.005), ("c", 0.5)):
        scene.takes(address, took_s)
    assert scene.choices()["c"] == 0
    scene.clock.now_s += 60 * FORGIVEN_S
    assert scene.choices()["c"] > 20


def test_a_busy_replica_is_avoided() -> None:
    """Of two as fast as each other the one with less open is asked."""
    scene = Scene()
    for _ in range(5):
        scene.loads.began("a")
    assert scene.choices()["a"] == 0


def test_a_try_without_an_answer_counts_for_its_time_and_a_refusal_does_not_attract() -> None:
    """Left after a second: slow. Refused at once: as slow as before."""
    scene = Scene()
    for address in ("a", "b", "c"):
        scene.takes(address, 0.005)
    began_s = scene.loads.began("c")
    scene.clock.now_s += 1.0
    scene.loads.ended("c", began_s, sampled=True, answered=False)
    assert scene.choices()["c"] == 0
    slow = scene.loads.cost("c")
    began_s = scene.loads.began("c")
    scene.loads.ended("c", began_s, sampled=True, error=errors.NoLeaderError())
    assert scene.loads.cost("c") == slow


def test_a_replica_that_says_it_is_full_is_left_alone_for_as_long_as_it_says() -> None:
    """OVERLOADED with its delay."""
    scene = Scene()
    with (
        pytest.raises(errors.OverloadedError),
        scene.loads.measured("b", sampled=True),
    ):
        raise errors.OverloadedError(retry_after_ms=400)
    assert scene.loads.cost("b") == math.inf
    assert scene.choices()["b"] == 0
    scene.clock.now_s += 0.5
    assert scene.choices()["b"] > 20


def test_the_own_zone_is_asked_unless_it_is_busy() -> None:
    """Three times as expensive as another: then another."""
    scene = Scene(zone="b")
    for address in ("a", "b", "c"):
        scene.takes(address, 0.005)
    assert scene.choices() == {"b": 200}
    scene.takes("b", 0.1)
    found = scene.choices()
    assert found["b"] == 0
    assert set(found) == {"a", "c"}


def test_a_session_goes_on_where_it_is_further_ahead() -> None:
    """REPLICA_LAGGING names a fresher replica: that one, whatever it costs."""
    scene = Scene()
    scene.takes("c", 0.5)
    detail = error_pb2.ReplicaLagging(fresher_replica_id=3)
    scene.attempts.failed("a", errors.ReplicaLaggingError(detail=detail), 5.0, lambda: True)
    assert scene.choices() == {"c": 200}


def test_who_was_sent_to_the_leader_goes_there() -> None:
    """A follower that could not serve the read by itself."""
    scene = Scene(leader=2)
    scene.attempts.failed("a", errors.NotLeaderError(), 5.0, lambda: True)
    assert scene.choices() == {"b": 200}


def test_writes_go_to_the_leader_and_without_one_to_any_voter() -> None:
    """To a suspect last of all."""
    scene = Scene(Target.LEADER, leader=3)
    assert scene.choices() == {"c": 200}
    scene.suspects.add("c")
    assert set(scene.choices()) == {"a", "b"}
    scene.attempts.tried |= {"a", "b"}
    assert scene.choice() == "c"
    scene.attempts.tried.add("c")
    assert not scene.choice()


def test_a_required_replica_is_the_only_place() -> None:
    """No other is asked instead."""
    scene = Scene(Target.EXACT, leader=1)
    assert scene.choices() == {"b": 200}
    scene.attempts.tried.add("b")
    assert not scene.choice()


def test_a_learner_serves_nobody() -> None:
    """It may be far behind, or empty."""
    assert set(Scene(learner=2).choices()) == {"a", "c"}


def test_whole_cluster_calls_go_to_who_leads_it_once_that_is_known() -> None:
    """The leader of the meta group is found like any other."""
    scene = Scene()
    scene.attempts = Attempts(Goal(CLUSTER, Target.ANY), Extra(chance=random.Random(7)))
    assert set(scene.choices()) == {"a", "b", "c"}
    detail = error_pb2.NotLeader(leader_node_id=3, leader_address="c", term=2)
    scene.table.failed(CLUSTER, "a", errors.NotLeaderError(detail=detail))
    assert scene.choices() == {"c": 200}


def test_the_time_of_connecting_says_nothing() -> None:
    """The first answer of each node."""
    scene = Scene()
    scene.takes("a", 9.0, times=0)
    assert scene.loads.cost("a") == scene.loads.cost("b")


def test_p95_is_of_the_newest_calls_of_a_kind() -> None:
    """Unknown at first; one slow call in twenty does not move it, and old ones are forgotten."""
    latencies = Latencies()
    for number in range(SAMPLES_MIN - 1):
        latencies.took("list", 1.0 if number % 25 == 0 else 0.01)
        assert latencies.p95_s("list") is None
    latencies.took("list", 0.01)
    assert latencies.p95_s("list") == 0.01
    assert latencies.p95_s("get") is None
    for _ in range(SAMPLES_MAX + RENEWED_AFTER):
        latencies.took("list", 0.2)
    assert latencies.p95_s("list") == 0.2

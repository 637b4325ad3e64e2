"""A model of capacity: costs fitted to docs/scale.json, and what some number of mailboxes needs.

What a mailbox does a day is stated, not measured. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from bench.scale.data import Data
from bench.scale.fit import Fit, Point, fit
from bench.scale.measure import KIB, MIB, ClusterSeen, Cost, Seen, Setting

from mailraft.cluster.mapfile import NODES_MAX, SHARDS_MAX
from mailraft.v1 import cluster_pb2

GIB, TIB = 1024 * MIB, 1024 * 1024 * MIB
REPLICAS = 3
DAY_S = 86_400
# Two calls of a lane are in flight, and carry what waits between them.
CALLS_IN_FLIGHT = 2
# What heartbeats may take of a node's core.
IDLE_PERCENT_MAX = 25.0
# From here on mails go and come in pieces.
PIECES_FROM_BYTES = MIB


# ---- the model -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU of all nodes together in milliseconds a call; percent of a core and MiB of an idle node;
    bytes on the disk of a replica a byte of mail.
    """

    deliver: Fit
    fetch: Fit
    page: Fit
    idle_cpu: Fit
    idle_memory: Fit
    disk_ratio: float


def fitted(data: Data) -> Costs:
    """The model of what was measured: what a call adds to what its nodes take anyway."""
    idle_of = {each.shape: each for each in data.clusters}

    def points(
        cost_of: Callable[[Seen], Cost], features: Callable[[Setting], Mapping[str, float]]
    ) -> list[Point]:
        return [
            _point(seen, cost_of(seen), features, idle_of[seen.setting.cluster])
            for seen in data.seen
        ]

    return Costs(
        deliver=fit(points(lambda seen: seen.deliver, delivery)),
        fetch=fit(points(lambda seen: seen.fetch, fetching)),
        page=fit(points(lambda seen: seen.page, paging)),
        idle_cpu=fit([_idle_point(idle, idle.cpu_percent) for idle in data.clusters]),
        idle_memory=fit([_idle_point(idle, idle.memory_mib) for idle in data.clusters]),
        disk_ratio=median(each.disk_ratio for each in data.clusters if each.disk_ratio is not None),
    )


def delivery(setting: Setting) -> Mapping[str, float]:
    """What a delivery costs by. Each replica takes the mail, its bytes, and its part of an entry
    and of a round, in which entries of several shards are flushed together.
    """
    shards, concurrency = setting.shards, setting.concurrency
    # Those that have one of so many calls, when each call takes any.
    busy_shards = shards * (1 - (1 - 1 / shards) ** concurrency)
    copies = setting.replicas
    return {
        "mail": copies,
        "entry": copies * busy_shards / concurrency,
        "round": copies * min(1.0, setting.nodes / concurrency),
        **{name: copies * kib for name, kib in _bytes(setting).items()},
    }


def fetching(setting: Setting) -> Mapping[str, float]:
    """One replica reads it, and answers a call with as many as wait for it."""
    return {"read": 1.0, "call": _calls(setting), **_bytes(setting)}


def paging(setting: Setting) -> Mapping[str, float]:
    """The same, of envelopes: mails of any size have equal ones."""
    return {"read": 1.0, "call": _calls(setting)}


def _bytes(setting: Setting) -> Mapping[str, float]:
    kib, pieces = setting.size_bytes / KIB, setting.size_bytes >= PIECES_FROM_BYTES
    return {"KiB": 0.0 if pieces else kib, "streamed KiB": kib if pieces else 0.0}


def _calls(setting: Setting) -> float:
    return min(1.0, CALLS_IN_FLIGHT * setting.nodes / setting.concurrency)


def _point(
    seen: Seen, cost: Cost, features: Callable[[Setting], Mapping[str, float]], idle: ClusterSeen
) -> Point:
    idle_ms = idle.nodes * idle.cpu_percent / 100 * 1000 / cost.per_s
    return Point(repr(seen.setting), features(seen.setting), cost.nodes_ms - idle_ms)


def _idle_point(idle: ClusterSeen, used: float) -> Point:
    groups = idle.shards * min(idle.nodes, REPLICAS) / idle.nodes
    features = keeping(groups, idle.nodes - 1)
    return Point(f"{idle.nodes} nodes, {idle.shards} shards", features, used)


def keeping(groups: float, peers: float) -> Mapping[str, float]:
    """What a node takes idle. Peers: all other nodes of the cluster, since each beats to each
    whether they share a group or not (node/peers.py).
    """
    return {"node": 1.0, "peer": peers, "group": groups}


# ---- what is needed ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Profile:
    """What one mailbox does, on average. busy: the busiest hour over the mean of the day."""

    name: str
    mails_a_day: float
    mail_bytes: int
    fetches_a_day: float
    pages_a_day: float
    kept_days: int
    busy: float


LIGHT = Profile("light", 10, 30 * KIB, 15, 10, 365, 3.0)
OFFICE = Profile("office", 40, 64 * KIB, 80, 60, 730, 4.0)
PROFILES = (LIGHT, OFFICE)
MAILBOXES = (1_000_000, 100_000_000)


@dataclass(frozen=True, slots=True)
class NodeSize:
    """What a node is given, and how much of it is planned for the busiest hour."""

    cores_used: float = 0.5  # of its one loop
    disk_bytes: int = 8 * TIB
    disk_used: float = 0.7
    network_bytes_per_s: float = 1.25e9 / 8  # 10 Gbit/s, shared by eight nodes of a host
    network_used: float = 0.4
    memory_bytes: int = 8 * GIB
    shard_bytes: int = 128 * GIB  # what moves, is snapshotted and restored at a time


NODE = NodeSize()


@dataclass(frozen=True, slots=True)
class Needs:
    """Rates are of the busiest hour; bytes on disk and CPU of all replicas together. idle_percent:
    of a core of each node, before anybody calls, were they all one cluster; idle_percent_shared: if
    nodes beat only to those they share a group with. nodes_a_cluster: before IDLE_PERCENT_MAX.
    """

    mails_per_s: float
    fetches_per_s: float
    pages_per_s: float
    cores: float
    disk_bytes: float
    network_bytes_per_s: float
    shards: int
    nodes_by_cpu: int
    nodes_by_disk: int
    nodes_by_network: int
    idle_percent: float
    idle_percent_shared: float
    nodes_a_cluster: float
    memory_mib: float

    @property
    def nodes(self) -> int:
        return max(REPLICAS, self.nodes_by_cpu, self.nodes_by_disk, self.nodes_by_network)

    @property
    def groups(self) -> float:
        """Replicas of shards on each node."""
        return self.shards * REPLICAS / self.nodes

    @property
    def clusters(self) -> int:
        """How many a deployment has to be split into: by shards, and by nodes."""
        nodes = min(NODES_MAX, self.nodes_a_cluster)
        return max(math.ceil(self.shards / SHARDS_MAX), math.ceil(self.nodes / nodes))


def needs(profile: Profile, mailboxes: int, costs: Costs, node: NodeSize = NODE) -> Needs:
    """No batching is counted on: in many shards each mail is an entry, and each read a call."""
    peak = mailboxes * profile.busy / DAY_S
    mails, fetches, pages = (
        peak * each for each in (profile.mails_a_day, profile.fetches_a_day, profile.pages_a_day)
    )
    alone = Setting(shards=1, size_bytes=profile.mail_bytes, concurrency=1)
    cores = (
        mails * costs.deliver.model.predict(delivery(alone))
        + fetches * costs.fetch.model.predict(fetching(alone))
        + pages * costs.page.model.predict(paging(alone))
    ) / 1000
    kept = mailboxes * profile.mails_a_day * profile.kept_days * profile.mail_bytes
    one_copy = kept * costs.disk_ratio
    # Into the leader, on to the other replicas, and out to who reads.
    network = profile.mail_bytes * (mails * (1 + 2 * (REPLICAS - 1)) + fetches)
    shards = max(1, math.ceil(one_copy / node.shard_bytes))
    by_cpu = math.ceil(cores / node.cores_used)
    by_disk = math.ceil(one_copy * REPLICAS / (node.disk_bytes * node.disk_used))
    by_network = math.ceil(network / (node.network_bytes_per_s * node.network_used))
    nodes = max(REPLICAS, by_cpu, by_disk, by_network)
    groups = shards * REPLICAS / nodes
    kept_up, shared = (
        keeping(groups, min(nodes - 1, peers)) for peers in (nodes - 1, groups * (REPLICAS - 1))
    )
    return Needs(
        mails,
        fetches,
        pages,
        cores,
        one_copy * REPLICAS,
        network,
        shards,
        by_cpu,
        by_disk,
        by_network,
        costs.idle_cpu.model.predict(kept_up),
        costs.idle_cpu.model.predict(shared),
        1 + at_most(costs, "peer", IDLE_PERCENT_MAX),
        costs.idle_memory.model.predict(kept_up),
    )


# ---- where it breaks -----------------------------------------------------------------------------


def map_bytes(nodes: int, shards: int) -> int:
    """Of a cluster map of this size, as every router and client holds it."""
    found = cluster_pb2.ClusterMap(cluster_id="0" * 36, epoch=1_000_000, slot_count=16_384)
    for number in range(1, nodes + 1):
        found.nodes.add(
            id=number,
            name=f"n{number}",
            address=f"node-{number}.mail.example.org:7400",
            host=f"host-{number // 8}",
            zone=f"zone-{number % 3}",
            weight_milli=1_000,
        )
    for shard in range(1, shards + 1):
        found.slots.add(first_slot=shard, last_slot=shard + 1, shard=shard)
        each = found.shards.add(id=shard, configuration_version=1_000)
        for replica in range(REPLICAS):
            each.replicas.add(
                replica_id=1_000_000 + replica, node_id=(shard + replica) % nodes + 1, role=1
            )
    return found.ByteSize()


def at_most(costs: Costs, what: str, percent: float) -> float:
    """How many groups, or peers, an idle node has when keeping up with them takes so much of its
    core.
    """
    model = costs.idle_cpu.model.coefficients
    return (percent - model["node"]) / model[what]


def full_rate(costs: Costs, batched: bool) -> float:
    """Mails of 4 KiB a second that a node takes with a whole core, as one of three replicas."""
    setting = Setting(shards=1, concurrency=256 if batched else 1)
    return 1000 * REPLICAS / costs.deliver.model.predict(delivery(setting))

"""How a cluster does, made of what its controller sees: for GetClusterStatus. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from mailraft.cluster.control.node_jobs import META_REPLICATION
from mailraft.cluster.control.observed import Observed
from mailraft.cluster.control.upgrades import enabled
from mailraft.cluster.topology import Node
from mailraft.internal.v1 import control_pb2
from mailraft.node.disk_space import nearly_full
from mailraft.node.engine.backend import DiskUsage
from mailraft.node.interfaces import META_GROUP, node_of
from mailraft.v1 import admin_pb2, cluster_pb2

# Long before a leader stops to stamp (node.clocks.SKEW_MS_MAX).
CLOCK_OFF_MS_MAX = 10_000
# The worst turn of a loop: hundred times what it is on a healthy node.
LOOP_LATE_MS = 1_000
SHARDS_NAMED_MAX = 5
# By group and replica id: another life of a replica may still lie on the same node.
Reports = Mapping[tuple[int, int], control_pb2.ReplicaReport]
_LIVE = (cluster_pb2.REPLICA_STATE_LEADING, cluster_pb2.REPLICA_STATE_FOLLOWING)
_WARNING, _CRITICAL = admin_pb2.ALARM_SEVERITY_WARNING, admin_pb2.ALARM_SEVERITY_CRITICAL


def overview(seen: Observed) -> admin_pb2.GetClusterStatusResponse:
    """Nodes, shards, and what is wrong with them."""
    replicas = {
        (each.group, each.replica_id): each
        for told in seen.reports.values()
        for each in told.replicas
    }
    hosts = len({node.host_key for node in map(Node.of, seen.map.nodes) if node.holds})
    shards = [_shard(seen, group, replicas, hosts) for group in seen.groups]
    # The meta group's replicas are not counted: these are figures about mail.
    mail = [each.shard for each in shards if each.shard.id != META_GROUP]
    held = Counter(each.node_id for shard in mail for each in shard.replicas)
    led = Counter(shard.leader.node_id for shard in mail)
    return admin_pb2.GetClusterStatusResponse(
        cluster_id=seen.map.cluster_id,
        epoch=seen.map.epoch,
        nodes=[_node(seen, each, held[each.id], led[each.id]) for each in seen.map.nodes],
        shards=shards,
        alarms=sorted(_alarms(seen, shards), key=lambda each: -each.severity),
        feature_level=enabled(seen),
    )


def _node(
    seen: Observed, node: cluster_pb2.Node, replicas: int, leaders: int
) -> cluster_pb2.NodeStatus:
    report = seen.reports.get(node.id, control_pb2.ReportResponse())
    return cluster_pb2.NodeStatus(
        node=node,
        reachable=seen.heard(node.id),
        heard_age_ms=int(seen.silent_s.get(node.id, 0.0) * 1000),
        replicas=replicas,
        leaders=leaders,
        disk_used_bytes=report.disk_used_bytes,
        disk_free_bytes=report.disk_free_bytes,
        disk_total_bytes=report.disk_total_bytes,
        loop_lag_ms=report.loop_lag_ms,
        clock_ahead_ms=report.clock_ahead_ms,
        feature_level=report.feature_level,
        flush_ms=report.flush_ms,
    )


def _shard(
    seen: Observed, group: cluster_pb2.Shard, reports: Reports, hosts: int
) -> cluster_pb2.ShardStatus:
    leader = seen.leader(group.id)
    told = cluster_pb2.ShardStatus(shard=group)
    durable: dict[int, int] = {}
    if leader is not None:
        durable = {each.replica_id: each.match_index for each in leader.progress}
        durable[leader.replica_id] = leader.last_index
        hint = cluster_pb2.LeaderHint(
            shard=group.id,
            node_id=node_of(leader.replica_id),
            replica_id=leader.replica_id,
            term=leader.term,
        )
        told.shard.leader.CopyFrom(hint)
        told.commit_index = leader.applied_index
    live = voters = 0
    for replica in group.replicas:
        report = reports.get((group.id, replica.replica_id))
        state = _state(seen, replica, report)
        told.replicas.add(
            replica_id=replica.replica_id,
            state=state,
            applied_index=report.applied_index if report is not None else 0,
            durable_index=durable.get(replica.replica_id, 0),
            heard_age_ms=int(seen.silent_s.get(replica.node_id, 0.0) * 1000),
        )
        if replica.role != cluster_pb2.REPLICA_ROLE_LEARNER:
            voters += 1
            live += state in _LIVE
    told.available = leader is not None and live > voters // 2
    wanted = META_REPLICATION if group.id == META_GROUP else seen.settings.replicas_per_shard
    told.under_replicated = live < max(1, min(wanted, hosts))  # no two of them on one host
    return told


def _state(
    seen: Observed, replica: cluster_pb2.Replica, report: control_pb2.ReplicaReport | None
) -> cluster_pb2.ReplicaState.ValueType:
    if not seen.heard(replica.node_id):
        return cluster_pb2.REPLICA_STATE_UNREACHABLE
    if report is None:
        return cluster_pb2.REPLICA_STATE_UNSPECIFIED
    if report.stopped:
        return cluster_pb2.REPLICA_STATE_CORRUPT
    if report.fetching:
        return cluster_pb2.REPLICA_STATE_INSTALLING
    return (
        cluster_pb2.REPLICA_STATE_LEADING if report.leading else cluster_pb2.REPLICA_STATE_FOLLOWING
    )


# ---- alarms ----------------------------------------------------------------------------------


def _alarms(seen: Observed, shards: Iterable[cluster_pb2.ShardStatus]) -> Iterator[admin_pb2.Alarm]:
    yield from _about_shards(
        "no-leader",
        _CRITICAL,
        [each.shard.id for each in shards if not each.available],
        "lack a leader with a majority",
    )
    yield from _about_shards(
        "under-replicated",
        _WARNING,
        [each.shard.id for each in shards if each.under_replicated],
        "lack live replicas",
    )
    differing = {
        (each.group, replica)
        for report in seen.reports.values()
        for each in report.replicas
        for replica in each.differing
    }
    for node in seen.map.nodes:
        if node.state != cluster_pb2.NODE_STATE_REMOVED:
            yield from _about_node(seen, node, differing)


def _about_shards(
    kind: str, severity: admin_pb2.AlarmSeverity.ValueType, shards: list[int], what: str
) -> Iterator[admin_pb2.Alarm]:
    if shards:
        message = f"{len(shards)} shards {what}: {_named(shards)}"
        yield admin_pb2.Alarm(id=kind, severity=severity, message=message, shards=shards)


def _about_node(
    seen: Observed, node: cluster_pb2.Node, differing: set[tuple[int, int]]
) -> Iterator[admin_pb2.Alarm]:
    def alarm(kind: str, message: str, shards: Iterable[int] = ()) -> admin_pb2.Alarm:
        return admin_pb2.Alarm(
            id=f"{kind}/{node.id}",
            severity=_WARNING,
            message=f"{node.name} {message}",
            node_id=node.id,
            shards=shards,
        )

    if not seen.heard(node.id):
        yield alarm("node-silent", f"was not heard for {seen.silent_s.get(node.id, 0.0):.0f} s")
        return
    report = seen.reports.get(node.id)
    if report is None:
        return
    if report.feature_level < enabled(seen):
        knows = f"{report.version}, which understands feature level {report.feature_level}"
        yield alarm("node-too-old", f"runs {knows}: at {enabled(seen)} the others refuse it")
    for kind, message, shards in _about_data(report, differing):
        yield alarm(kind, message, shards)
    usage = DiskUsage(report.disk_total_bytes, report.disk_free_bytes)
    if report.disk_full:
        yield alarm("disk-full", "has a full disk: it takes no new mail, only deletes")
    elif nearly_full(usage):
        yield alarm("disk-nearly-full", f"has {usage.used_ratio:.0%} of its disk used")
    if seen.slow_disk(node.id):
        yield alarm("disk-slow", f"has a slow disk: a flush takes {report.flush_ms} ms")
    if report.loop_lag_ms > LOOP_LATE_MS:
        yield alarm("node-slow", f"is slow: calls wait up to {report.loop_lag_ms} ms for a turn")
    if abs(report.clock_ahead_ms) > CLOCK_OFF_MS_MAX:
        yield alarm("clock-off", f"has its clock {report.clock_ahead_ms / 1000:+.0f} s off")


def _about_data(
    report: control_pb2.ReportResponse, differing: set[tuple[int, int]]
) -> Iterator[tuple[str, str, list[int]]]:
    """What is wrong with what a node stores: kind, message, shards."""
    if report.damage:
        yield "damaged", f"has damaged data that nobody else has: {report.damage}", []
    if report.repairing:
        fetching = _groups(report, lambda each: each.fetching)
        text = f"fetches {len(fetching)} replicas again from its peers: {report.repairing}"
        yield "repairing", text, fetching
    stopped = _groups(report, lambda each: each.stopped)
    if stopped:
        yield "replica-stopped", f"has stopped its replicas of {_named(stopped)}", stopped
    differs = _groups(
        report, lambda each: (each.group, each.replica_id) in differing and not each.stopped
    )
    if differs:
        yield "replica-differs", f"has another state than its peers in {_named(differs)}", differs


def _groups(
    report: control_pb2.ReportResponse, which: Callable[[control_pb2.ReplicaReport], bool]
) -> list[int]:
    return [each.group for each in report.replicas if which(each)]


def _named(shards: list[int]) -> str:
    """Not all of thousands."""
    first = shards[:SHARDS_NAMED_MAX]
    named = " ".join("meta" if each == META_GROUP else f"s{each}" for each in first)
    more = len(shards) - SHARDS_NAMED_MAX
    return f"{named} and {more} more" if more > 0 else named

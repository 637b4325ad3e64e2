"""What commands print of a cluster's things: JSON for programs, words for people."""

from __future__ import annotations

from mailraft.cluster.picture import Picture
from mailraft.v1 import admin_pb2, cluster_pb2, job_pb2

_FINISHED = ("succeeded", "failed", "cancelled")


def word(name: str, prefix: str) -> str:
    """NODE_STATE_ACTIVE: active."""
    return name.removeprefix(prefix).lower().replace("_", "-")


def size(count: int) -> str:
    """Bytes with a unit: 4.1 GiB."""
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def duration(milliseconds: int) -> str:
    """The largest unit that says it exactly: 90000 is 90s, 0 is 0."""
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)):
        if milliseconds and milliseconds % length == 0:
            return f"{milliseconds // length}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0"


# ---- nodes -----------------------------------------------------------------------------------


def node_state(status: cluster_pb2.NodeStatus) -> str:
    state = status.node.state or cluster_pb2.NODE_STATE_ACTIVE
    return word(cluster_pb2.NodeState.Name(state), "NODE_STATE_")


def node(status: cluster_pb2.NodeStatus) -> dict[str, object]:
    it = status.node
    return {
        "node": it.id,
        "name": it.name,
        "address": it.address,
        "zone": it.zone,
        "host": it.host,
        "weight_milli": it.weight_milli,
        "version": it.version,
        "state": node_state(status),
        "reachable": status.reachable,
        "heard_age_ms": status.heard_age_ms,
        "replicas": status.replicas,
        "leads": status.leaders,
        "disk_used_bytes": status.disk_used_bytes,
        "disk_free_bytes": status.disk_free_bytes,
        "disk_total_bytes": status.disk_total_bytes,
        "loop_lag_ms": status.loop_lag_ms,
        "clock_ahead_ms": status.clock_ahead_ms,
        "flush_ms": status.flush_ms,
    }


NODE_HEADERS = ("NODE", "STATE", "ADDRESS", "VERSION", "REPLICAS", "LEADS", "DISK")


def node_row(status: cluster_pb2.NodeStatus) -> tuple[object, ...]:
    it, state = status.node, node_state(status)
    if not status.reachable:
        state = "SILENT" if state == "active" else f"{state}, SILENT"
    used = size(status.disk_used_bytes) if status.disk_total_bytes else "-"
    return it.name, state, it.address, it.version or "-", status.replicas, status.leaders, used


# ---- shards ----------------------------------------------------------------------------------


def shard_name(number: int) -> str:
    return f"s{number}" if number else "meta"


def shard_state(status: cluster_pb2.ShardStatus) -> str:
    if not status.available:
        return "NO LEADER"
    return "under-replicated" if status.under_replicated else "ok"


def replica_state(status: cluster_pb2.ReplicaStatus) -> str:
    name = cluster_pb2.ReplicaState.Name(status.state)
    return word(name, "REPLICA_STATE_").replace("unspecified", "unknown")


def role(replica: cluster_pb2.Replica) -> str:
    return word(cluster_pb2.ReplicaRole.Name(replica.role), "REPLICA_ROLE_")


def behind(status: cluster_pb2.ShardStatus) -> dict[int, int | None]:
    """Replica to how many entries of its leader's log are not on its disk; None: not known."""
    last = max((each.durable_index for each in status.replicas), default=0)
    return {
        each.replica_id: last - each.durable_index if each.durable_index else None
        for each in status.replicas
    }


def live(status: cluster_pb2.ShardStatus) -> str:
    """Replicas that are, of those that the map has: 3/3."""
    states = (cluster_pb2.REPLICA_STATE_LEADING, cluster_pb2.REPLICA_STATE_FOLLOWING)
    return f"{sum(each.state in states for each in status.replicas)}/{len(status.shard.replicas)}"


def shard(picture: Picture, status: cluster_pb2.ShardStatus) -> dict[str, object]:
    it = status.shard
    states = {each.replica_id: each for each in status.replicas}
    return {
        "shard": it.id,
        "state": shard_state(status).lower().replace(" ", "-"),
        "leader": it.leader.node_id,
        "term": it.leader.term,
        "configuration_version": it.configuration_version,
        "commit_index": status.commit_index,
        "replicas": [
            {
                "replica_id": each.replica_id,
                "node": each.node_id,
                "name": picture.name(each.node_id),
                "role": role(each),
                "state": replica_state(states[each.replica_id]),
                "applied_index": states[each.replica_id].applied_index,
                "durable_index": states[each.replica_id].durable_index,
                "behind": behind(status)[each.replica_id],
            }
            for each in it.replicas
        ],
    }


# ---- jobs ------------------------------------------------------------------------------------


def job_state(job: job_pb2.Job) -> str:
    return word(job_pb2.JobState.Name(job.state), "JOB_STATE_")


def job_is_open(job: job_pb2.Job) -> bool:
    return job_state(job) not in _FINISHED


def job_what(picture: Picture, spec: job_pb2.JobSpec) -> str:
    """In words: move s17 n1→n4."""
    match spec.WhichOneof("spec"):
        case "move":
            return f"move {move(picture, spec.move)}"
        case "drain":
            return f"drain {picture.name(spec.drain.node_id)}"
        case "decommission":
            return f"decommission {picture.name(spec.decommission.node_id)}"
        case None:
            return "nothing"
        case kind:
            return kind


def move(picture: Picture, spec: job_pb2.MoveSpec) -> str:
    source = picture.name(spec.from_node_id) if spec.from_node_id else "(new)"
    target = picture.name(spec.to_node_id) if spec.to_node_id else "(gone)"
    return f"{shard_name(spec.shard)} {source}→{target}"


def took_s(job: job_pb2.Job) -> float:
    """From its creation to its end; of an open one to its last known start: 0."""
    return max(0, job.finished_time_ms - job.created_time_ms) / 1000


def job(picture: Picture, it: job_pb2.Job) -> dict[str, object]:
    return {
        "job": it.id,
        "what": job_what(picture, it.spec),
        "state": job_state(it),
        "steps_done": it.progress.steps_done,
        "steps_total": it.progress.steps_total,
        "activity": it.activity,
        "error": it.error.message,
        "parent": it.parent_job_id,
        "created_time_ms": it.created_time_ms,
        "started_time_ms": it.started_time_ms,
        "finished_time_ms": it.finished_time_ms,
        "findings": [each.message for each in it.findings],
    }


# ---- alarms ----------------------------------------------------------------------------------


def severity(alarm: admin_pb2.Alarm) -> str:
    return word(admin_pb2.AlarmSeverity.Name(alarm.severity), "ALARM_SEVERITY_")


def alarm(it: admin_pb2.Alarm) -> dict[str, object]:
    return {
        "alarm": it.id,
        "severity": severity(it),
        "message": it.message,
        "node": it.node_id,
        "shards": list(it.shards),
    }

"""Commands about jobs: begin one, and record what became of it."""

from __future__ import annotations

from collections.abc import Iterator

from mailraft.cluster.meta import nodes
from mailraft.cluster.meta.state import FINISHED, job_id, job_number
from mailraft.internal.v1 import meta_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import replica_id
from mailraft.node.mailstore.errors import Refused, bad_field, limit_reached
from mailraft.node.mailstore.overlay import Overlay
from mailraft.v1 import cluster_pb2, error_pb2, job_pb2

FORMAT = 1
OPEN_JOBS_MAX = 20_000
FINDINGS_MAX = 100
JOBS_KEPT_MS = 30 * 24 * 3600 * 1000
_FORGOTTEN_PER_COMMAND = 10
_SUPPORTED = ("move", "drain", "decommission", "rebalance")


def begin(overlay: Overlay, command: meta_pb2.MetaCommand, now_ms: int) -> meta_pb2.MetaReply:
    asked = command.begin_job
    kind = asked.spec.WhichOneof("spec")
    if kind not in _SUPPORTED:
        raise Refused(
            error_pb2.ERROR_REASON_FEATURE_NOT_ENABLED, f"this version has no job {kind!r}"
        )
    head = nodes.head_of(overlay)
    _forget_old(overlay, now_ms)
    record = meta_pb2.MetaJobRecord(format=FORMAT)
    record.job.id = job_id(head.next_job)
    record.job.spec.CopyFrom(asked.spec)
    record.job.parent_job_id = asked.parent_job_id
    record.job.state = job_pb2.JOB_STATE_PENDING
    record.job.created_time_ms = now_ms
    record.job.version = 1
    running = list(_open(overlay))
    if len(running) >= OPEN_JOBS_MAX:
        raise limit_reached("open jobs", OPEN_JOBS_MAX)
    match kind:
        case "move":
            _begin_move(overlay, head, record, running)
        case "drain":
            _refuse_twin(asked.spec, running)
            nodes.move_to(overlay, asked.spec.drain.node_id, cluster_pb2.NODE_STATE_DRAINING)
        case "decommission":
            _refuse_twin(asked.spec, running)
            leaving = asked.spec.decommission.node_id
            nodes.move_to(overlay, leaving, cluster_pb2.NODE_STATE_DECOMMISSIONING)
        case "rebalance":
            if any(each.job.spec.HasField("rebalance") for each in running):
                raise _conflict("a rebalance is under way")
        case _:
            raise AssertionError(kind)
    head.next_job += 1
    overlay.put(keys.cluster_job(job_number(record.job.id)), record)
    return meta_pb2.MetaReply(job=record)


def advance(overlay: Overlay, command: meta_pb2.MetaCommand, now_ms: int) -> meta_pb2.MetaReply:
    asked = command.advance_job
    key = keys.cluster_job(job_number(asked.job_id))
    record = overlay.edit(key, meta_pb2.MetaJobRecord)
    if record is None:
        raise Refused(error_pb2.ERROR_REASON_JOB_NOT_FOUND, f"there is no job {asked.job_id}")
    known, told = record.job, asked.job
    if known.state in FINISHED:
        raise Refused(error_pb2.ERROR_REASON_JOB_FINISHED, f"job {known.id} is finished")
    if asked.expected_version and asked.expected_version != known.version:
        raise _conflict(f"job {known.id} is at version {known.version}")
    known.version += 1
    known.state = told.state
    known.progress.CopyFrom(told.progress)
    known.activity = told.activity
    if not known.started_time_ms:
        known.started_time_ms = now_ms
    if told.state in FINISHED:
        known.finished_time_ms = now_ms
    if told.HasField("error"):
        known.error.CopyFrom(told.error)
    del known.findings[:]
    known.findings.extend(told.findings[-FINDINGS_MAX:])
    return meta_pb2.MetaReply(job=record)


def _begin_move(
    overlay: Overlay,
    head: meta_pb2.MetaHeadRecord,
    record: meta_pb2.MetaJobRecord,
    running: list[meta_pb2.MetaJobRecord],
) -> None:
    move = record.job.spec.move
    stored = overlay.read(keys.cluster_shard(move.shard), meta_pb2.MetaShardRecord)
    if stored is None:
        raise Refused(error_pb2.ERROR_REASON_SHARD_NOT_FOUND, f"there is no shard {move.shard}")
    if any(
        each.job.spec.HasField("move") and each.job.spec.move.shard == move.shard
        for each in running
    ):
        raise _conflict(f"a replica of shard {move.shard} is on its way already")
    holders = {each.node_id: each.replica_id for each in stored.shard.replicas}
    if move.from_node_id and move.from_node_id not in holders:
        raise Refused(
            error_pb2.ERROR_REASON_REPLICA_NOT_FOUND,
            f"node {move.from_node_id} has no replica of shard {move.shard}",
        )
    if move.to_node_id:
        target = nodes.read(overlay, move.to_node_id)
        if move.to_node_id in holders:
            raise _conflict(f"node {target.id} has a replica of shard {move.shard} already")
        if target.state != cluster_pb2.NODE_STATE_ACTIVE:
            raise bad_field(f"move.to_node_id: node {target.id} takes no replicas now")
        for other in holders.keys() - {move.from_node_id} if target.host else ():
            if nodes.read(overlay, other).host == target.host:
                raise bad_field(f"move.to_node_id: on host {target.host} is node {other} already")
        record.new_replica_id = replica_id(target.id, head.next_incarnation)
        head.next_incarnation += 1
    elif not move.from_node_id:
        raise bad_field("move: it names neither where from nor where to")
    record.old_replica_id = holders.get(move.from_node_id, 0)


def _refuse_twin(spec: job_pb2.JobSpec, running: list[meta_pb2.MetaJobRecord]) -> None:
    for each in running:
        if each.job.spec == spec:
            raise _conflict(f"job {each.job.id} does the same")


def _open(overlay: Overlay) -> Iterator[meta_pb2.MetaJobRecord]:
    for _, value in overlay.scan(*keys.CLUSTER_JOBS):
        record = meta_pb2.MetaJobRecord.FromString(value)
        if record.job.state not in FINISHED:
            yield record


def _forget_old(overlay: Overlay, now_ms: int) -> None:
    forgotten = 0
    for key, value in overlay.scan(*keys.CLUSTER_JOBS):
        job = meta_pb2.MetaJobRecord.FromString(value).job
        if job.state not in FINISHED or job.finished_time_ms > now_ms - JOBS_KEPT_MS:
            continue
        overlay.delete(key)
        forgotten += 1
        if forgotten == _FORGOTTEN_PER_COMMAND:
            return


def _conflict(message: str) -> Refused:
    return Refused(error_pb2.ERROR_REASON_JOB_CONFLICT, message)

"""Jobs about nodes and the whole placement: drain, decommission, rebalance, and replacing the dead.

Each begins moves of single replicas (moves.py) as children, as many as there is room for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mailraft.cluster.control.observed import Action, Advance, Begin, Observed, SetState
from mailraft.cluster.control.progress import advanced, finished
from mailraft.cluster.placement import Move, Placement, moves, target
from mailraft.cluster.topology import Node, PlacementError
from mailraft.internal.v1 import meta_pb2
from mailraft.node.interfaces import META_GROUP, GroupId, node_of
from mailraft.v1 import cluster_pb2, job_pb2

META_REPLICATION = 3
_DRAINS = (cluster_pb2.NODE_STATE_DRAINING, cluster_pb2.NODE_STATE_DRAINED)


def next_steps(seen: Observed, record: meta_pb2.MetaJobRecord, room: int) -> Iterator[Action]:
    """What to do now for a job that is no move; at most `room` moves are begun."""
    job = record.job
    match job.spec.WhichOneof("spec"):
        case "drain":
            yield from _drain(seen, job)
        case "decommission":
            yield from _decommission(seen, job, room)
        case "rebalance":
            yield from _rebalance(seen, job, room)
        case _:  # moves.py
            return


def replacements(seen: Observed, room: int) -> Iterator[Begin]:
    """Moves off nodes that were silent for too long. They may come back, and hold nothing then."""
    there = [node for node in seen.map.nodes if node.state != cluster_pb2.NODE_STATE_REMOVED]
    dead = {
        node.id
        for node in there
        if node.state == cluster_pb2.NODE_STATE_ACTIVE and seen.dead(node.id)
    }
    if not dead or len(dead) > len(there) // 2:
        return  # so many at once: it is we who hear nothing
    if room > 0:
        wanted = [each for each in wanted_moves(seen, without=dead) if each.remove in dead]
        yield from _begin(seen, wanted, room, parent="")


def wanted_moves(seen: Observed, *, without: set[int] | None = None) -> list[Move]:
    """What placement would move now: the shards', and the meta group's as shard 0.

    Silent nodes keep what they have and get nothing. No shard is left with fewer replicas than it
    should have: what cannot be placed stays. Empty when the nodes cannot hold the replicas apart.
    """
    nodes = [
        replace(Node.of(each), state=cluster_pb2.NODE_STATE_DRAINED)
        if seen.silent(each.id) and each.state == cluster_pb2.NODE_STATE_ACTIVE
        else Node.of(each)
        for each in seen.map.nodes
        if each.id not in (without or set())
    ]
    taking = {node.id for node in nodes if node.takes}
    shards: Placement = {shard.id: _voting(shard) for shard in seen.map.shards}
    meta: Placement = {META_GROUP: _voting(seen.map.meta)}
    hosts = len({node.host_key for node in nodes if node.holds})
    found: list[Move] = []
    for current, replication in (
        (meta, META_REPLICATION),
        (shards, seen.settings.replicas_per_shard),
    ):
        try:
            wanted = target(current, nodes, max(1, min(replication, hosts)))
        except PlacementError:
            continue
        found.extend(
            move
            for move in moves(current, wanted, nodes)
            if (move.add in taking if move.add else len(current[move.shard]) > replication)
        )
    return found


def _voting(shard: cluster_pb2.Shard) -> tuple[int, ...]:
    """A learner may still be given up: it stands in for nobody."""
    return tuple(
        each.node_id for each in shard.replicas if each.role == cluster_pb2.REPLICA_ROLE_VOTER
    )


def spec_of(move: Move) -> job_pb2.JobSpec:
    """A move as a job."""
    return job_pb2.JobSpec(
        move=job_pb2.MoveSpec(
            shard=move.shard, from_node_id=move.remove or 0, to_node_id=move.add or 0
        )
    )


def _drain(seen: Observed, job: job_pb2.Job) -> Iterator[Action]:
    """plan.py hands the leaders over, for as long as the node is draining or drained."""
    node = seen.node(job.spec.drain.node_id)
    if node is None or node.state not in _DRAINS:
        yield finished(job, job_pb2.JOB_STATE_CANCELLED)
        return
    if job.state == job_pb2.JOB_STATE_CANCELLING:
        yield SetState(node.id, cluster_pb2.NODE_STATE_ACTIVE)
        return
    if node.state == cluster_pb2.NODE_STATE_DRAINED:
        yield finished(job, job_pb2.JOB_STATE_SUCCEEDED)
        return
    report = seen.reports.get(node.id)
    led = {each.group for each in report.replicas if each.leading} if report is not None else set()
    if seen.silent(node.id) or (report is not None and not led):
        yield SetState(node.id, cluster_pb2.NODE_STATE_DRAINED)
        return
    total = max(job.progress.steps_total, len(led))
    stuck = not all(_may_be_led_elsewhere(seen, group) for group in led)
    activity = "waits for other nodes that may lead" if stuck else "hands leaders over"
    yield from _news(job, total - len(led), total, activity)


def _may_be_led_elsewhere(seen: Observed, number: GroupId) -> bool:
    group = seen.group(number)
    nodes = [seen.node(node) for node in (_voting(group) if group is not None else ())]
    return any(node is not None and Node.of(node).takes for node in nodes)


def _decommission(seen: Observed, job: job_pb2.Job, room: int) -> Iterator[Action]:
    node = seen.node(job.spec.decommission.node_id)
    if node is None or node.state == cluster_pb2.NODE_STATE_REMOVED:
        yield finished(job, job_pb2.JOB_STATE_SUCCEEDED)
        return
    if node.state != cluster_pb2.NODE_STATE_DECOMMISSIONING:
        yield finished(job, job_pb2.JOB_STATE_CANCELLED)  # it was told to stay
        return
    if job.state == job_pb2.JOB_STATE_CANCELLING:
        yield SetState(node.id, cluster_pb2.NODE_STATE_ACTIVE)
        return
    held = {
        group.id
        for group in seen.groups
        if any(replica.node_id == node.id for replica in group.replicas)
    }
    coming = {
        each.job.spec.move.shard for each in seen.moving if node_of(each.new_replica_id) == node.id
    }
    if not held | coming:
        yield SetState(node.id, cluster_pb2.NODE_STATE_REMOVED)
        return
    wanted = [each for each in wanted_moves(seen) if each.remove == node.id] if room > 0 else []
    stuck = room > 0 and not wanted and not seen.moving
    total = max(job.progress.steps_total, len(held))
    activity = "waits for nodes that can take its replicas" if stuck else "moves replicas"
    yield from _news(job, total - len(held), total, activity)
    yield from _begin(seen, wanted, room, parent=job.id)


def _rebalance(seen: Observed, job: job_pb2.Job, room: int) -> Iterator[Action]:
    """What is wanted is found anew each time, since nodes come and go while it runs."""
    if job.state == job_pb2.JOB_STATE_CANCELLING:
        yield finished(job, job_pb2.JOB_STATE_CANCELLED)
        return
    mine = [each for each in seen.moving if each.job.parent_job_id == job.id]
    limit = job.spec.rebalance.concurrent_moves
    if limit:
        room = min(room, limit - len(mine))
    if mine and room <= 0:
        return
    wanted = [] if job.spec.rebalance.leaders_only else wanted_moves(seen)
    left = len({move.shard for move in wanted} | {each.job.spec.move.shard for each in mine})
    if not left:
        yield finished(job, job_pb2.JOB_STATE_SUCCEEDED)
        return
    total = max(job.progress.steps_total, left)
    yield from _news(job, total - left, total, "moves replicas")
    yield from _begin(seen, wanted, room, parent=job.id)


def _news(job: job_pb2.Job, done: int, total: int, activity: str) -> Iterator[Advance]:
    told = advanced(job, done, total, activity)
    if told is not None:
        yield told


def _begin(seen: Observed, wanted: list[Move], room: int, *, parent: str) -> Iterator[Begin]:
    """As many of the moves as there is room for, one of a shard."""
    busy = {each.job.spec.move.shard for each in seen.moving}
    for move in wanted:
        if room <= 0:
            return
        if move.shard not in busy:
            busy.add(move.shard)
            room -= 1
            yield Begin(spec_of(move), parent)

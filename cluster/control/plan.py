"""What to do next, from what is the case: pure, and the same for any controller that sees it.

Records what groups say of their members, brings open jobs a step further, lets drained nodes lead
nothing, spreads leaders, replaces nodes that were silent for too long, removes what no job wants.
"""

from __future__ import annotations

from collections.abc import Iterator

from mailraft.cluster.control import moves, node_jobs
from mailraft.cluster.control.observed import (
    Action,
    Begin,
    Change,
    Describe,
    HandOver,
    Observed,
    Plan,
    Record,
    RecordForced,
)
from mailraft.cluster.leaders import spread_leaders
from mailraft.cluster.topology import Node, PlacementError, Topology
from mailraft.internal.v1 import control_pb2
from mailraft.node import forcing
from mailraft.node.clocks import SKEW_MS_MAX
from mailraft.node.interfaces import META_GROUP, node_of
from mailraft.v1 import cluster_pb2

HAND_OVERS_PER_PLAN = 4
# A move copies a shard: while callers wait on an event loop for so long, no other begins.
BUSY_LAG_MS = 250


def plan(seen: Observed, *, balance: bool = True) -> list[Action]:
    """What can be done now. Nothing here depends on what was planned before.

    balance: also look who should lead what, which walks over all shards.
    """
    made = Plan()
    for group in seen.groups:
        made.add(_record(seen, group))
    for each in _descriptions(seen):
        made.add(each)
    for record in seen.moving:
        made.add(moves.next_step(seen, record))
    for change in _left_over(seen):
        made.add(change)
    room = room_for_moves(seen)
    for record in seen.jobs:
        for action in node_jobs.next_steps(seen, record, room):
            room -= isinstance(action, Begin)
            made.add(action)
    for begin in node_jobs.replacements(seen, room):
        made.add(begin)
    for hand_over in _leaders(seen)[:HAND_OVERS_PER_PLAN] if balance else ():
        made.add(hand_over)
    return made.actions


def room_for_moves(seen: Observed) -> int:
    """How many more moves may begin now. None while anybody is kept waiting by those there are."""
    lags_ms = [each.loop_lag_ms for node, each in seen.reports.items() if seen.heard(node)]
    if seen.moving and max(lags_ms, default=0) > BUSY_LAG_MS:
        return 0
    return max(0, seen.settings.concurrent_moves - len(seen.moving))


def _record(seen: Observed, known: cluster_pb2.Shard) -> Record | RecordForced | None:
    """Members that are in force and committed, and newer than what the map says."""
    leader = seen.settled(known.id)
    if leader is None or leader.configuration.version <= known.configuration_version:
        return None
    told = cluster_pb2.Shard(id=known.id, configuration_version=leader.configuration.version)
    order = {each.replica_id: at for at, each in enumerate(known.replicas)}
    members = (*leader.configuration.voters, *leader.configuration.learners)
    for replica in sorted(members, key=lambda each: (order.get(each, len(order)), each)):
        role = (
            cluster_pb2.REPLICA_ROLE_VOTER
            if replica in leader.configuration.voters
            else cluster_pb2.REPLICA_ROLE_LEARNER
        )
        told.replicas.add(replica_id=replica, node_id=node_of(replica), role=role)
    forced = forcing.times_forced(told.configuration_version)
    if told.id == META_GROUP and forced > forcing.times_forced(known.configuration_version):
        return RecordForced(told)
    return Record(told)


def _descriptions(seen: Observed) -> Iterator[Describe]:
    for node in seen.map.nodes:
        report = seen.reports.get(node.id)
        if report is None or node.state == cluster_pb2.NODE_STATE_REMOVED:
            continue
        if (report.version, report.address) != (node.version, node.address):
            yield Describe(node.id, report.version, report.address)


def _left_over(seen: Observed) -> Iterator[Change]:
    """Learners that no open job wants: a controller acted on a job that was over."""
    wanted = {record.new_replica_id for record in seen.moving}
    for group in seen.groups:
        leader = seen.settled(group.id)
        if leader is None:
            continue
        stray = set(leader.configuration.learners) - wanted
        if stray:
            members = leader.configuration
            yield moves.change(leader, set(members.voters), set(members.learners) - stray)


def _leaders(seen: Observed) -> list[HandOver]:
    """Who should lead instead: of the meta group anybody on an active node, of shards evenly."""
    leading: dict[int, control_pb2.ReplicaReport] = {}
    for group in seen.groups:
        leader = seen.settled(group.id)
        if leader is not None:
            leading[group.id] = leader
    able = [
        Node.of(each)
        for each in seen.map.nodes
        if seen.heard(each.id)
        and abs(seen.reports[each.id].clock_ahead_ms) <= SKEW_MS_MAX
        and not seen.reports[each.id].disk_full
        and not seen.slow_disk(each.id)
    ]
    current = {
        group: (node_of(leader.replica_id), *_other_voters(seen, leader))
        for group, leader in leading.items()
        if group != META_GROUP
    }
    try:
        shares = Topology(able, 1).shares(max(1, len(current)))
    except PlacementError:
        return []
    wanted = spread_leaders(current, able, shares, current) if current else {}
    meta = leading.get(META_GROUP)
    if meta is not None:
        holders = (node_of(meta.replica_id), *_other_voters(seen, meta))
        takers = {each.id for each in able if each.takes}
        better = next((node for node in holders if node in takers), holders[0])
        wanted[META_GROUP] = (better,)
    found = []
    for number, (node, *_) in wanted.items():
        leader = leading[number]
        if node != node_of(leader.replica_id):
            [to] = [each for each in leader.configuration.voters if node_of(each) == node]
            found.append(HandOver(node_of(leader.replica_id), number, to))
    return found


def _other_voters(seen: Observed, leader: control_pb2.ReplicaReport) -> list[int]:
    """Nodes of the other voters that could take over at once, and are there to stay."""
    going = {each.old_replica_id for each in seen.moving}
    return [
        node_of(each.replica_id)
        for each in leader.progress
        if each.replica_id in leader.configuration.voters
        and each.replica_id not in going
        and seen.heard(node_of(each.replica_id))
        and leader.last_index - each.match_index <= moves.CAUGHT_UP_ENTRIES
    ]

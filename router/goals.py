"""What a request is after: its shard, and who may serve it. Pure."""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf.message import Message

from mailraft.router.attempts import Goal, Target
from mailraft.router.methods import (
    Method,
    Pace,
    Route,
    account_of,
    repeatable,
    waits_for_replicas,
)
from mailraft.router.table import CLUSTER, Topology
from mailraft.v1 import cluster_pb2, common_pb2


def goal_of(topology: Topology, method: Method, request: Message) -> Goal:
    """Of a unary call, or one that answers with a stream."""
    typed: Any = request
    if method.route in {Route.READ, Route.WRITE}:
        shard = topology.shard_of(account_of(request))
    elif method.route in {Route.SHARD, Route.EVERY_SHARD}:
        shard = typed.shard if method.route is Route.SHARD else typed.shards[0]
    else:
        shard = CLUSTER
    options = getattr(request, "read_options", None)
    if options is not None and options.require_replica:
        return Goal(shard, Target.EXACT, method.pace, replica_id=options.require_replica)
    to_leader = method.mutation or method.route is Route.WRITE
    if options is not None:
        to_leader = to_leader or _is_ordered(topology, options)
    return Goal(
        shard,
        Target.LEADER if to_leader else Target.ANY,
        method.pace,
        mutation=method.mutation,
        repeatable=repeatable(method, request),
        whole_time=method.mutation
        and waits_for_replicas(getattr(request, "write_options", None), topology.map.policy),
    )


def forwarded(method: Method, request: Message) -> Goal:
    """Of a call to a server that finds the right one by itself: any will do."""
    options = getattr(request, "write_options", None)
    return Goal(
        CLUSTER,
        Target.ANY,
        method.pace,
        mutation=method.mutation,
        repeatable=repeatable(method, request),
        whole_time=method.mutation and waits_for_replicas(options, cluster_pb2.LevelPolicy()),
    )


def delivery_goal(
    topology: Topology,
    shard: int,
    write_options: common_pb2.WriteOptions | None,
    *,
    repeatable: bool,
) -> Goal:
    """Of a delivery to recipients in one shard."""
    waits = waits_for_replicas(write_options, topology.map.policy)
    return _delivery_goal(shard, repeatable, waits)


@functools.lru_cache(maxsize=1024)
def _delivery_goal(shard: int, repeatable: bool, whole_time: bool) -> Goal:
    return Goal(shard, Target.LEADER, mutation=True, repeatable=repeatable, whole_time=whole_time)


def upload_goal(shard: int, *, repeatable: bool) -> Goal:
    """Of an upload."""
    return Goal(
        shard,
        Target.LEADER,
        Pace.PATIENT,
        mutation=True,
        repeatable=repeatable,
        whole_time=True,
    )


def level_of(request: Message) -> int:
    """The read level that is asked for, as a number of common_pb2.Consistency."""
    options = getattr(request, "read_options", None)
    return options.consistency if isinstance(options, common_pb2.ReadOptions) else 0


def company_of(request: Message) -> int:
    """What it may travel with: reads of its level, or mutations that wait as it does. One that
    waits for replicas holds up those beside it.
    """
    read: common_pb2.ReadOptions | None = getattr(request, "read_options", None)
    if read is not None:  # no request has both
        return read.consistency
    write: common_pb2.WriteOptions | None = getattr(request, "write_options", None)
    return 0 if write is None else -1 - write.ack


def read_anywhere(goal: Goal, method: Method) -> bool:
    """A quick read that any replica may answer: its time tells how busy that replica is, and when
    it takes long it may be asked twice. Never a mutation.
    """
    return goal.target is Target.ANY and method.coalesced and not method.mutation


def _is_ordered(topology: Topology, options: common_pb2.ReadOptions) -> bool:
    """Whether a read needs the leader (a follower could serve it, at the cost of asking it)."""
    level = options.consistency
    if not level and not options.min_state:  # with it an unset level is SESSION
        level = topology.map.policy.default_consistency
    return level == common_pb2.CONSISTENCY_LINEARIZABLE

"""Reads at a level, and what a call says of its level.

A level is a promise, and never silently lowered. SESSION without min_state promises no more than
LOCAL does: a session that has neither written nor read has nothing to see again.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from mailraft.internal.v1 import command_pb2
from mailraft.node import quorum_reads
from mailraft.node.interfaces import GroupId, View
from mailraft.node.mailstore import queries
from mailraft.node.mailstore.errors import Refused
from mailraft.node.shard import ReadPoint, Replica
from mailraft.v1 import cluster_pb2, common_pb2, error_pb2
from mailraft.wire import errors, tokens

from . import convert
from .base import Call, Shards

CATCH_UP_MS = 200  # for a replica that is behind, before the caller tries another

DEFAULT = common_pb2.CONSISTENCY_SESSION
CONSISTENCIES = tuple(level for level in common_pb2.Consistency.values() if level)
MAX_STALENESS_MS = 3_600_000


class Reading(NamedTuple):
    """One account at one moment. Valid until the handler next awaits."""

    replica: Replica
    view: View
    state: str
    served: common_pb2.Served


# ---- options -------------------------------------------------------------------------------------


class ReadLevel(NamedTuple):
    """What a read asks for, the cluster's default filled in."""

    asked: common_pb2.Consistency.ValueType
    replicas: int = 0
    max_age_ms: int = 0


def default(policy: cluster_pb2.LevelPolicy) -> common_pb2.Consistency.ValueType:
    return policy.default_consistency or DEFAULT


def level_of(shards: Shards, options: common_pb2.ReadOptions) -> ReadLevel:
    """Raises BAD_FIELD, also for an option of another level."""
    asked = options.consistency
    if not asked:
        asked = DEFAULT if options.min_state else default(shards.policy())
    if asked not in CONSISTENCIES:
        raise _bad("read_options.consistency", f"{asked} is no level")
    if options.replicas and asked != common_pb2.CONSISTENCY_QUORUM:
        name = common_pb2.Consistency.Name(asked)
        raise _bad("read_options.replicas", f"must be 0 with {name}")
    if asked == common_pb2.CONSISTENCY_BOUNDED:
        if not 1 <= options.max_staleness_ms <= MAX_STALENESS_MS:
            raise _bad("read_options.max_staleness_ms", f"1 to {MAX_STALENESS_MS}")
    elif options.max_staleness_ms:
        name = common_pb2.Consistency.Name(asked)
        raise _bad("read_options.max_staleness_ms", f"must be 0 with {name}")
    return ReadLevel(asked, options.replicas, options.max_staleness_ms)


def if_in_state(options: common_pb2.WriteOptions) -> command_pb2.AccountState | None:
    """The precondition of a write. A string that is no state at all is BAD_FIELD."""
    if not options.if_in_state:
        return None
    state = _state("write_options.if_in_state", options.if_in_state)
    return convert.account_state(state)


# ---- reads ---------------------------------------------------------------------------------------


async def read(
    shards: Shards, account_id: str, options: common_pb2.ReadOptions, call: Call
) -> Reading:
    """The account at the level that is asked for. Raises REPLICA_NOT_FOUND, NOT_LEADER,
    REPLICA_LAGGING, STATE_TOO_OLD and ACCOUNT_NOT_FOUND.
    """
    level = level_of(shards, options)
    wanted = _state("read_options.min_state", options.min_state) if options.min_state else None
    replica = _replica(shards, account_id, options.require_replica)
    point = await at(shards, replica, level, call)
    if wanted is not None and not _reached(point, account_id, wanted):
        point = await _wait_for(shards, replica, account_id, wanted, point, call)
    try:
        account = queries.account(point.view, account_id)
    except Refused as refused:
        denied = refused.reason == error_pb2.ERROR_REASON_ACCOUNT_NOT_FOUND
        if not denied or wanted is not None or level.asked != DEFAULT:
            raise
        # Mail to an account that is "not there" is bounced: a replica that is a moment behind asks.
        certain = await replica.read(
            common_pb2.CONSISTENCY_LINEARIZABLE, deadline_s=call.deadline_s
        )
        point = replace(certain, consistency_met=point.consistency_met)
        account = queries.account(point.view, account_id)
    return Reading(
        replica,
        point.view,
        convert.state_token(account),
        served_read(shards, replica, point),
    )


async def asked_together(shards: Shards, requests: Iterable[Any], call: Call) -> Call:
    """The call for reads that came together, once it is known where those at LINEARIZABLE may
    read: one question a replica is enough, since all came before it is asked. What a replica
    refuses, each of its reads raises.
    """
    replicas: dict[GroupId, Replica] = {}
    for request in requests:
        if request.read_options.consistency == common_pb2.CONSISTENCY_LINEARIZABLE:
            with suppress(errors.StaleRouteError):  # the read itself says so
                replica = shards.replica_for_account(request.account_id)
                replicas[replica.group] = replica
    if not replicas:
        return call
    points = await asyncio.gather(*(_index_of(each, call) for each in replicas.values()))
    return replace(call, points=dict(zip(replicas, points, strict=True)))


async def _index_of(replica: Replica, call: Call) -> ReadPoint | errors.MailraftError:
    try:
        return await replica.read(common_pb2.CONSISTENCY_LINEARIZABLE, deadline_s=call.deadline_s)
    except errors.MailraftError as error:
        return error


async def at(shards: Shards, replica: Replica, level: ReadLevel, call: Call) -> ReadPoint:
    """A replica at the level that is asked for. Raises as Replica.read, and QUORUM_UNAVAILABLE."""
    if level.asked == common_pb2.CONSISTENCY_QUORUM:
        return await _at_freshest(shards, replica, level.replicas, call)
    known = call.points.get(replica.group)
    if known is not None and level.asked == common_pb2.CONSISTENCY_LINEARIZABLE:
        if isinstance(known, errors.MailraftError):
            raise copy.copy(known)  # raised many times one object would grow its traceback
        if known.index == replica.applied_index:
            return known
        return replace(known, view=replica.view, index=replica.applied_index)
    return await replica.read(level.asked, deadline_s=call.deadline_s, max_age_ms=level.max_age_ms)


async def _at_freshest(shards: Shards, replica: Replica, count: int, call: Call) -> ReadPoint:
    """The replica, once it has applied what any of `count` had (0: a majority of the voters)."""
    own = shards.position(replica.group)
    if own is None:
        raise replica.lagging("it does not run")
    count = count or len(own.voters) // 2 + 1
    if count > len(own.voters):
        raise _bad("read_options.replicas", f"the shard has {len(own.voters)} voters")
    asked = shards.other_positions(own, replica.group, count - 1, deadline_s=call.deadline_s)
    positions = [own, *await asked]
    if len(positions) < count:
        raise errors.QuorumUnavailableError(
            f"{len(positions)} of {count} replicas of shard {replica.group} answer",
            detail=error_pb2.QuorumUnavailable(
                shard=replica.group, needed=count, reachable=len(positions)
            ),
        )
    best = quorum_reads.freshest(positions)
    deadline_s = min(call.deadline_s, shards.now_s() + CATCH_UP_MS / 1000)
    while replica.applied_index < best.applied_index:
        if not await replica.wait_applied(deadline_s=deadline_s):
            raise replica.lagging("another has applied more", best.replica)
    point = await replica.read(common_pb2.CONSISTENCY_QUORUM, deadline_s=call.deadline_s)
    complete = quorum_reads.covers(positions, point.index)
    return replace(point, complete=complete, replicas=count)


def served_read(
    shards: Shards,
    replica: Replica,
    point: ReadPoint,
) -> common_pb2.Served:
    served = common_pb2.Served()
    served.consistency_asked = served.consistency_met = point.consistency_met
    served.shard, served.replica_id, served.node = replica.group, replica.replica, shards.node_name
    served.index, served.age_ms = point.index, point.age_ms
    served.complete, served.replicas = point.complete, point.replicas
    served.map_epoch = shards.cluster.epoch
    return served


def check_leading(replica: Replica) -> None:
    """Refuses early what propose() would refuse, before the work that comes first is done."""
    if not replica.leadership.leading:
        raise replica.not_leader()


def _replica(shards: Shards, account_id: str, required: int) -> Replica:
    try:
        replica = shards.replica_for_account(account_id)
    except errors.StaleRouteError:
        if required:
            raise _no_replica(required) from None
        raise
    if required and replica.replica != required:
        raise _no_replica(required)
    return replica


def _no_replica(required: int) -> errors.ReplicaNotFoundError:
    return errors.ReplicaNotFoundError(f"replica {required} of this account is not here")


async def _wait_for(
    shards: Shards,
    replica: Replica,
    account_id: str,
    wanted: tokens.State,
    point: ReadPoint,
    call: Call,
) -> ReadPoint:
    # A linearizable view has every state that was ever told: one that is not in it is not of here.
    if point.consistency_met == common_pb2.CONSISTENCY_LINEARIZABLE:
        raise too_old()
    deadline_s = min(call.deadline_s, shards.now_s() + CATCH_UP_MS / 1000)
    while await replica.wait_applied(deadline_s=deadline_s):
        point = replace(point, view=replica.view, index=replica.applied_index)
        if _reached(point, account_id, wanted):
            return point
    if replica.leadership.leading:  # nobody is ahead of it: with a quorum it can tell for certain
        certain = await replica.read(
            common_pb2.CONSISTENCY_LINEARIZABLE, deadline_s=call.deadline_s
        )
        if _reached(certain, account_id, wanted):
            return replace(certain, consistency_met=point.consistency_met)
        raise too_old()
    raise replica.lagging("it has not seen min_state yet")


def _reached(point: ReadPoint, account_id: str, wanted: tokens.State) -> bool:
    """Whether the view has this state. STATE_TOO_OLD when a later life of the account began."""
    try:
        state = convert.state_of(queries.account_state(point.view, account_id))
    except Refused as refused:
        if refused.reason != error_pb2.ERROR_REASON_ACCOUNT_NOT_FOUND:
            raise
        if point.consistency_met == common_pb2.CONSISTENCY_LINEARIZABLE:
            raise
        return False  # not created here yet
    if wanted.incarnation < state.incarnation:
        raise too_old()
    return (wanted.incarnation, wanted.modseq) <= (state.incarnation, state.modseq)


def too_old() -> errors.StateTooOldError:
    """What a state of an earlier life is refused with."""
    return errors.StateTooOldError(
        "the state is of another life of the account, or of another store"
    )


def _state(field: str, text: str) -> tokens.State:
    try:
        return tokens.decode_state(text)
    except ValueError:
        raise _bad(field, "is not a state") from None


def _bad(field: str, what: str) -> errors.BadFieldError:
    return errors.BadFieldError(f"{field}: {what}", fields={field: what})

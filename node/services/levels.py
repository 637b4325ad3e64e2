"""How much quorum a call wants, what it is given, and reads at a level.

Served now: writes at QUORUM; reads at LOCAL, SESSION and LINEARIZABLE. Others answer
NOT_IMPLEMENTED: a level is a promise, and never silently lowered.

Defaults, as GetCapabilities tells: QUORUM and SESSION. SESSION without min_state promises no more
than LOCAL does: a session that has neither written nor read has nothing to see again.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailraft.internal.v1 import command_pb2
from mailraft.node.interfaces import View
from mailraft.node.mailstore import queries
from mailraft.node.mailstore.errors import Refused
from mailraft.node.shard import Committed, ReadPoint, Replica
from mailraft.v1 import common_pb2, error_pb2
from mailraft.wire import errors, tokens

from . import convert
from .base import Call, Shards

SESSION_WAIT_MS = 200  # for a replica that is behind the session, before the caller tries another

DEFAULT_CONSISTENCY = common_pb2.CONSISTENCY_SESSION
DEFAULT_ACK = common_pb2.ACK_LEVEL_QUORUM
CONSISTENCIES = (
    common_pb2.CONSISTENCY_LINEARIZABLE,
    common_pb2.CONSISTENCY_SESSION,
    common_pb2.CONSISTENCY_LOCAL,
)
ACK_LEVELS = (common_pb2.ACK_LEVEL_QUORUM,)


@dataclass(frozen=True, slots=True)
class Reading:
    """One account at one moment. Valid until the handler next awaits."""

    replica: Replica
    view: View
    state: str
    served: common_pb2.Served


# ---- options -------------------------------------------------------------------------------------


def consistency_of(options: common_pb2.ReadOptions) -> common_pb2.Consistency.ValueType:
    """The level that is asked for, the default filled in."""
    asked = options.consistency or DEFAULT_CONSISTENCY
    if asked not in common_pb2.Consistency.values():
        raise _bad("read_options.consistency", f"{asked} is no level")
    name = common_pb2.Consistency.Name(asked)
    if asked not in CONSISTENCIES:
        raise errors.UnimplementedError(f"{name} is not there yet: ask for another level")
    if options.replicas:
        raise _bad("read_options.replicas", f"must be 0 with {name}")
    if options.max_staleness_ms:
        raise _bad("read_options.max_staleness_ms", f"must be 0 with {name}")
    return asked


def check_write(options: common_pb2.WriteOptions) -> None:
    asked = options.ack or DEFAULT_ACK
    if asked not in common_pb2.AckLevel.values():
        raise _bad("write_options.ack", f"{asked} is no level")
    name = common_pb2.AckLevel.Name(asked)
    if asked not in ACK_LEVELS:
        raise errors.UnimplementedError(f"{name} is not there yet: ask for another level")
    if options.replicas:
        raise _bad("write_options.replicas", f"must be 0 with {name}")


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
    asked = consistency_of(options)
    wanted = _state("read_options.min_state", options.min_state) if options.min_state else None
    replica = _replica(shards, account_id, options.require_replica)
    point = await replica.read(asked, deadline_s=call.deadline_s)
    if wanted is not None and not _reached(point, account_id, wanted):
        point = await _wait_for(shards, replica, account_id, wanted, asked, call)
    state = queries.account_state(point.view, account_id)
    return Reading(
        replica,
        point.view,
        convert.state_token(state),
        served_read(shards, replica, point, asked),
    )


def served_read(
    shards: Shards,
    replica: Replica,
    point: ReadPoint,
    asked: common_pb2.Consistency.ValueType,
) -> common_pb2.Served:
    return common_pb2.Served(
        consistency_asked=asked,
        consistency_met=asked,
        shard=replica.group,
        replica_id=replica.replica,
        node=shards.node_name,
        index=point.index,
        age_ms=point.age_ms,
        complete=True,
        map_epoch=shards.cluster.epoch,
    )


def served_write(shards: Shards, replica: Replica, committed: Committed) -> common_pb2.Served:
    """Of a committed command. `replicas` is 0: nobody counts beyond the majority."""
    return common_pb2.Served(
        ack_asked=DEFAULT_ACK,
        ack_met=DEFAULT_ACK,
        level_met=common_pb2.LEVEL_MET_YES,
        committed=True,
        shard=replica.group,
        replica_id=replica.replica,
        node=shards.node_name,
        index=committed.index,
        complete=True,
        map_epoch=shards.cluster.epoch,
    )


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
    asked: common_pb2.Consistency.ValueType,
    call: Call,
) -> ReadPoint:
    # A linearizable view has every state that was ever told: one that is not in it is not of here.
    if asked == common_pb2.CONSISTENCY_LINEARIZABLE:
        raise _too_old()
    deadline_s = min(call.deadline_s, shards.now_s() + SESSION_WAIT_MS / 1000)
    while await replica.wait_applied(deadline_s=deadline_s):
        point = await replica.read(asked, deadline_s=call.deadline_s)
        if _reached(point, account_id, wanted):
            return point
    if replica.leadership.leading:  # nobody is ahead of it: with a quorum it can tell for certain
        point = await replica.read(common_pb2.CONSISTENCY_LINEARIZABLE, deadline_s=call.deadline_s)
        if _reached(point, account_id, wanted):
            return point
        raise _too_old()
    raise errors.ReplicaLaggingError(
        "this replica has not seen min_state yet",
        detail=error_pb2.ReplicaLagging(
            shard=replica.group,
            replica_id=replica.replica,
            applied_index=replica.applied_index,
            age_ms=replica.age_ms(),
        ),
    )


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
        raise _too_old()
    return (wanted.incarnation, wanted.modseq) <= (state.incarnation, state.modseq)


def _too_old() -> errors.StateTooOldError:
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

"""What a replica refuses calls with: each error with the detail that says where to turn."""

from __future__ import annotations

from mailraft.node.durability import Shortfall
from mailraft.node.interfaces import GroupId, ReplicaId, node_of
from mailraft.v1 import error_pb2
from mailraft.wire import errors


def not_leader(
    group: GroupId, replica: ReplicaId, leader: ReplicaId, term: int
) -> errors.MailraftError:
    """This replica does not lead; `leader` does, if that is known."""
    if not leader or leader == replica:
        return errors.NoLeaderError(f"shard {group} has no leader now")
    return errors.NotLeaderError(
        f"replica {replica} of shard {group} does not lead",
        detail=error_pb2.NotLeader(
            shard=group, term=term, leader_replica_id=leader, leader_node_id=node_of(leader)
        ),
    )


def no_quorum(group: GroupId, short: Shortfall | None = None) -> errors.MailraftError:
    """A majority, or more that a level needs, is not in contact."""
    if short is None:
        detail = error_pb2.QuorumUnavailable(shard=group)
        return errors.QuorumUnavailableError(
            f"shard {group} found no quorum to order the read", detail=detail
        )
    missing = f", none in zone {', '.join(short.zones)}" if short.zones else ""
    return errors.QuorumUnavailableError(
        f"shard {group} is in contact with {short.there} of {short.needed} that the level needs"
        f"{missing}",
        detail=error_pb2.QuorumUnavailable(
            shard=group, needed=short.needed, reachable=short.there, missing_zones=short.zones
        ),
    )


def commit_unknown(group: GroupId, why: str) -> errors.MailraftError:
    """Only the request_id can tell."""
    return errors.CommitUnknownError(
        f"shard {group}: {why}", detail=error_pb2.CommitUnknown(shard=group)
    )

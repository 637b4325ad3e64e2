"""How durable a write has to be before it is answered (mailraft.v1.AckLevel).

The level tunes the waiting, never the order: all writes go through one log a shard.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from mailraft.node.durability import Count, EachZone, Everyone, Need
from mailraft.node.interfaces import ReplicaId, node_of
from mailraft.node.proposals import Committed
from mailraft.node.shard import Replica
from mailraft.v1 import cluster_pb2, common_pb2
from mailraft.wire import errors

from . import validate
from .base import Call, Shards

DEFAULT = common_pb2.ACK_LEVEL_QUORUM


@dataclass(frozen=True, slots=True)
class WriteLevel:
    """What a write asked for. `need` is what it takes beyond a majority, None: nothing."""

    asked: common_pb2.AckLevel.ValueType
    need: Need | None = None

    @property
    def accepted(self) -> bool:
        """Whether it is answered before it is committed."""
        return self.asked == common_pb2.ACK_LEVEL_ACCEPTED

    def check(self, replica: Replica) -> None:
        """Refuse on arrival what cannot be met now. Raises as Replica.check_contact."""
        if self.need is not None:
            replica.check_contact(self.need)

    async def reached(
        self, shards: Shards, replica: Replica, committed: Committed, call: Call
    ) -> common_pb2.Served:
        """How a committed command was served, once its level is met, or cannot be in time."""
        served = _served(shards, replica, self.asked)
        served.committed, served.index = True, committed.index
        if self.accepted:
            served.ack_met = common_pb2.ACK_LEVEL_QUORUM  # and more than was asked for
        if self.need is None:
            return served
        index, deadline_s = committed.index, call.deadline_s
        served.level_met = await replica.wait_on_disks(index, self.need, deadline_s=deadline_s)
        served.replicas = replica.disks_with(index)
        if served.level_met != common_pb2.LEVEL_MET_YES:
            served.ack_met = common_pb2.ACK_LEVEL_QUORUM
        return served


def allowed(policy: cluster_pb2.LevelPolicy) -> list[common_pb2.AckLevel.ValueType]:
    """As GetCapabilities tells."""
    known = [level for level in common_pb2.AckLevel.values() if level]
    if not policy.allow_accepted:
        known.remove(common_pb2.ACK_LEVEL_ACCEPTED)
    return known


def default(policy: cluster_pb2.LevelPolicy) -> common_pb2.AckLevel.ValueType:
    return policy.default_ack or DEFAULT


def check(options: common_pb2.WriteOptions) -> None:
    """The form of it: BAD_FIELD for a level that nobody knows, and for replicas of another."""
    if options.ack not in common_pb2.AckLevel.values():
        raise validate.bad("write_options.ack", f"{options.ack} is no level")
    name = common_pb2.AckLevel.Name(options.ack)
    if (options.ack == common_pb2.ACK_LEVEL_REPLICAS) != bool(options.replicas):
        what = "how many" if not options.replicas else f"must be 0 with {name}"
        raise validate.bad("write_options.replicas", what)


def level_of(shards: Shards, options: common_pb2.WriteOptions) -> WriteLevel:
    """The level that is asked for, the cluster's default filled in. Raises LEVEL_NOT_ALLOWED."""
    policy = shards.policy()
    asked = options.ack or default(policy)
    match asked:
        case common_pb2.ACK_LEVEL_ACCEPTED if not policy.allow_accepted:
            raise errors.LevelNotAllowedError("the cluster's settings do not allow ACCEPTED")
        case common_pb2.ACK_LEVEL_REPLICAS:
            return WriteLevel(asked, Count(options.replicas))
        case common_pb2.ACK_LEVEL_EACH_ZONE:
            return WriteLevel(asked, EachZone(lambda replica: _zone_of(shards, replica)))
        case common_pb2.ACK_LEVEL_ALL:
            return WriteLevel(asked, Everyone())
        case _:
            return _plain(asked)


_plain = functools.lru_cache(maxsize=16)(WriteLevel)  # of nearly every write


def served_accepted(shards: Shards, replica: Replica) -> common_pb2.Served:
    """Of a command that is on this disk, and not committed yet."""
    served = _served(shards, replica, common_pb2.ACK_LEVEL_ACCEPTED)
    served.replicas = 1
    return served


def _served(
    shards: Shards, replica: Replica, asked: common_pb2.AckLevel.ValueType
) -> common_pb2.Served:
    served = common_pb2.Served()
    served.ack_asked = served.ack_met = asked
    served.level_met, served.complete = common_pb2.LEVEL_MET_YES, True
    served.shard, served.replica_id = replica.group, replica.replica
    served.node, served.map_epoch = shards.node_name, shards.cluster.epoch
    return served


def _zone_of(shards: Shards, replica: ReplicaId) -> str:
    """A node without a zone is one of its own."""
    number = node_of(replica)
    for peer in shards.cluster.peers():
        if peer.node == number:
            return peer.zone or peer.name
    return f"node {number}"

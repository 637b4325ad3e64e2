"""The meta group as this node reaches it: propose a command, read the state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from google.protobuf.message import Message

from mailraft.cluster.maps import ClusterMaps
from mailraft.cluster.meta import machine
from mailraft.internal.v1 import meta_pb2
from mailraft.node.interfaces import META_GROUP, View, node_of
from mailraft.node.mailstore.overlay import Overlay
from mailraft.node.services import convert
from mailraft.node.shard import Replica
from mailraft.v1 import common_pb2, error_pb2
from mailraft.wire import errors, feature_levels


class MetaGroup:
    """meta: this node's replica of the meta group, None where it has none."""

    def __init__(
        self,
        maps: ClusterMaps,
        meta: Callable[[], Replica | None],
        *,
        wall_ms: Callable[[], int],
    ) -> None:
        self._maps, self._meta, self._wall_ms = maps, meta, wall_ms

    @property
    def leads(self) -> bool:
        replica = self._meta()
        return replica is not None and not replica.stopped and replica.leadership.leading

    def check_leads(self) -> None:
        """Raises NotLeaderError where it does not, with who may."""
        self._leader()

    @property
    def term(self) -> int:
        replica = self._meta()
        return 0 if replica is None else replica.leadership.term

    async def propose(
        self, command: meta_pb2.MetaCommand, *, deadline_s: float
    ) -> meta_pb2.MetaReply:
        """Have a command decided. Raises what it is refused with, and NotLeaderError."""
        replica = self._leader()
        self._check_level(command)
        command.time_ms = self._wall_ms()
        committed = await replica.propose(command, deadline_s=deadline_s)
        return _accepted(committed.reply)

    async def preview(
        self, command: meta_pb2.MetaCommand, *, deadline_s: float
    ) -> meta_pb2.MetaReply:
        """What the command would answer now. Changes nothing."""
        view = await self.read(deadline_s=deadline_s)
        self._check_level(command)
        command.time_ms = self._wall_ms()
        return _accepted(machine.run(Overlay(view), command))

    async def read(self, *, deadline_s: float) -> View:
        """The state with everything that was decided before; valid until the next await."""
        replica = self._leader()
        point = await replica.read(common_pb2.CONSISTENCY_LINEARIZABLE, deadline_s=deadline_s)
        return point.view

    def local(self) -> View | None:
        """The state as it is applied here, which may be old."""
        replica = self._meta()
        return None if replica is None or replica.stopped else replica.view

    async def wait_applied(self, *, deadline_s: float) -> bool:
        """Wait for a change of the state here. False: none came, or there is no replica."""
        replica = self._meta()
        if replica is None or replica.stopped:
            return False
        return await replica.wait_applied(deadline_s=deadline_s)

    def _check_level(self, command: meta_pb2.MetaCommand) -> None:
        settings = (f"mailraft.v1.Settings.{each}" for each in command.change_settings.fields)
        feature_levels.check(command, self._maps.feature_level, settings)

    def _leader(self) -> Replica:
        replica = self._meta()
        if replica is not None and not replica.stopped:
            if replica.leadership.leading:
                return replica
            raise replica.not_leader()
        members = self._maps.current().meta.replicas
        if not members:
            raise errors.UnimplementedError("this cluster has no meta group: its map is a file")
        somebody = members[0].replica_id  # who knows better
        raise errors.NotLeaderError(
            "the meta group is on other nodes",
            detail=error_pb2.NotLeader(
                shard=META_GROUP, leader_replica_id=somebody, leader_node_id=node_of(somebody)
            ),
        )


def fingerprint(request: Message) -> bytes:
    """Of what a caller asks for: all but request_id and validate_only."""
    asked = type(request)()
    asked.CopyFrom(request)
    for name in {"request_id", "validate_only"} & set(asked.DESCRIPTOR.fields_by_name):
        asked.ClearField(name)
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).digest()


def _accepted(reply: object) -> meta_pb2.MetaReply:
    assert isinstance(reply, meta_pb2.MetaReply)
    if reply.HasField("refusal"):
        raise convert.refusal(reply.refusal)
    return reply

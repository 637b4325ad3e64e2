"""What the admin service refuses before the meta group is asked to decide."""

from __future__ import annotations

from typing import cast

import pytest

from mailraft.cluster.control.admin import Admin
from mailraft.cluster.control.driver import Controller
from mailraft.cluster.control.jobs import Jobs
from mailraft.cluster.control.metagroup import MetaGroup
from mailraft.internal.v1 import meta_pb2
from mailraft.node.engine import keys
from mailraft.node.services.base import Call
from mailraft.v1 import admin_pb2, cluster_pb2
from mailraft.wire import errors


class _Meta:
    """A meta group with one node, that counts what it is asked to decide."""

    deadline_s = 1.0  # stands in for the call, too
    decided = 0

    def __init__(self, state: cluster_pb2.NodeState.ValueType) -> None:
        node = meta_pb2.MetaNodeRecord(node=cluster_pb2.Node(id=3, name="n3", state=state))
        self._rows = {keys.cluster_node(3): node.SerializeToString()}

    async def read(self, *, deadline_s: float) -> _Meta:
        return self

    def get(self, key: object) -> bytes | None:
        return self._rows.get(key)  # type: ignore[call-overload, no-any-return]

    async def propose(self, command: object, *, deadline_s: float) -> meta_pb2.MetaReply:
        self.decided += 1
        return meta_pb2.MetaReply()


async def _undrain(meta: _Meta) -> None:
    admin = Admin(cast(MetaGroup, meta), cast(Controller, None), cast(Jobs, None))
    await admin.UndrainNode(admin_pb2.UndrainNodeRequest(node_id=3), cast(Call, meta))


async def test_undrain_does_not_end_a_decommission() -> None:
    """Its job would be cancelled by the way; a drained node is let lead again."""
    leaving = _Meta(cluster_pb2.NODE_STATE_DECOMMISSIONING)
    with pytest.raises(errors.JobConflictError, match="decommissioned"):
        await _undrain(leaving)
    assert leaving.decided == 0
    drained = _Meta(cluster_pb2.NODE_STATE_DRAINED)
    await _undrain(drained)
    assert drained.decided == 1

"""Commands about nodes: admit, describe, and the states that lead out of a cluster."""

from __future__ import annotations

import re

from mailraft.cluster.addresses import split_address
from mailraft.cluster.meta.state import FINISHED
from mailraft.internal.v1 import meta_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import node_of
from mailraft.node.mailstore.errors import Refused, bad_field, limit_reached
from mailraft.node.mailstore.overlay import Overlay
from mailraft.v1 import cluster_pb2, error_pb2

NODES_MAX = 4_096  # that have not left
WEIGHT_MAX_MILLI = 100_000
LABEL_MAX_CHARS = 63
ADDRESS_MAX_CHARS = 261  # a name of 253, and a port; or less
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ACTIVE, _DRAINING = cluster_pb2.NODE_STATE_ACTIVE, cluster_pb2.NODE_STATE_DRAINING
_DRAINED, _REMOVED = cluster_pb2.NODE_STATE_DRAINED, cluster_pb2.NODE_STATE_REMOVED
_LEAVING = cluster_pb2.NODE_STATE_DECOMMISSIONING
# From which states each can be reached; setting the state that is in force changes nothing.
_BEFORE = {
    _ACTIVE: {cluster_pb2.NODE_STATE_UNSPECIFIED, _DRAINING, _DRAINED, _LEAVING},
    _DRAINING: {_ACTIVE, _DRAINED},
    _DRAINED: {_DRAINING},
    _LEAVING: {_ACTIVE, _DRAINING, _DRAINED},
    _REMOVED: {_ACTIVE, _DRAINING, _DRAINED, _LEAVING},
}


def head_of(overlay: Overlay) -> meta_pb2.MetaHeadRecord:
    """The head, to change in place. Raises NO_LEADER's refusal before the bootstrap."""
    found = overlay.edit(keys.CLUSTER_HEAD, meta_pb2.MetaHeadRecord)
    if found is None:
        raise Refused(error_pb2.ERROR_REASON_NO_LEADER, "the cluster is not bootstrapped yet")
    return found


def put(overlay: Overlay, node: cluster_pb2.Node) -> None:
    overlay.edit_or_new(keys.cluster_node(node.id), meta_pb2.MetaNodeRecord).node.CopyFrom(node)


def read(overlay: Overlay, number: int) -> cluster_pb2.Node:
    """Raises NODE_NOT_FOUND's refusal, also for a node that has left."""
    found = overlay.read(keys.cluster_node(number), meta_pb2.MetaNodeRecord)
    if found is None or found.node.state == _REMOVED:
        raise Refused(error_pb2.ERROR_REASON_NODE_NOT_FOUND, f"there is no node {number}")
    return found.node


def admit(overlay: Overlay, command: meta_pb2.MetaCommand, _: int) -> meta_pb2.MetaReply:
    asked = command.admit_node.node
    _check_form(asked)
    head = head_of(overlay)
    there = _there(overlay)
    for known in there:
        if known.name == asked.name and known.address == asked.address:
            return meta_pb2.MetaReply(node=known)
        _refuse_same(known, "name", asked.name)
        _refuse_same(known, "address", asked.address)
    if len(there) >= NODES_MAX:
        raise limit_reached("nodes", NODES_MAX)
    admitted = cluster_pb2.Node(
        id=head.next_node_id,
        name=asked.name,
        address=asked.address,
        zone=asked.zone,
        host=asked.host,
        state=_ACTIVE,
        weight_milli=asked.weight_milli or 1_000,
        version=asked.version,
    )
    head.next_node_id += 1
    head.epoch += 1
    put(overlay, admitted)
    return meta_pb2.MetaReply(node=admitted)


def describe(overlay: Overlay, command: meta_pb2.MetaCommand, _: int) -> meta_pb2.MetaReply:
    told = command.describe_node
    known = read(overlay, told.node_id)
    address = told.address or known.address
    if (known.version, known.address) == (told.version, address):
        return meta_pb2.MetaReply(node=known)
    _check_address(address)
    for other in _there(overlay):
        if other.id != known.id:
            _refuse_same(other, "address", address)
    record = overlay.edit(keys.cluster_node(told.node_id), meta_pb2.MetaNodeRecord)
    assert record is not None
    record.node.version, record.node.address = told.version, address
    head_of(overlay).epoch += 1
    return meta_pb2.MetaReply(node=record.node)


def set_state(overlay: Overlay, command: meta_pb2.MetaCommand, _: int) -> meta_pb2.MetaReply:
    asked = command.set_node_state
    return meta_pb2.MetaReply(node=move_to(overlay, asked.node_id, asked.state))


def move_to(
    overlay: Overlay, number: int, state: cluster_pb2.NodeState.ValueType
) -> cluster_pb2.Node:
    """Raises BAD_FIELD's refusal where the state in force does not lead there."""
    known = read(overlay, number)
    if known.state == state:
        return known
    if state not in _BEFORE or known.state not in _BEFORE[state]:
        now = cluster_pb2.NodeState.Name(known.state).removeprefix("NODE_STATE_")
        raise bad_field(f"node_id: node {number} is {now}")
    if state == _REMOVED:
        _check_empty(overlay, number)
    record = overlay.edit(keys.cluster_node(number), meta_pb2.MetaNodeRecord)
    assert record is not None
    record.node.state = state
    head_of(overlay).epoch += 1
    return record.node


def _check_empty(overlay: Overlay, number: int) -> None:
    """Nothing is on a node that leaves, nor on its way there."""
    for _, value in overlay.scan(*keys.CLUSTER_SHARDS):
        shard = meta_pb2.MetaShardRecord.FromString(value).shard
        if any(replica.node_id == number for replica in shard.replicas):
            raise _in_use(f"node {number} still has a replica of shard {shard.id}")
    for _, value in overlay.scan(*keys.CLUSTER_JOBS):
        record = meta_pb2.MetaJobRecord.FromString(value)
        if record.job.state not in FINISHED and node_of(record.new_replica_id) == number:
            raise _in_use(f"job {record.job.id} brings a replica to node {number}")


def _in_use(message: str) -> Refused:
    return Refused(error_pb2.ERROR_REASON_JOB_CONFLICT, message)


def _there(overlay: Overlay) -> list[cluster_pb2.Node]:
    every = (
        meta_pb2.MetaNodeRecord.FromString(value).node
        for _, value in overlay.scan(*keys.CLUSTER_NODES)
    )
    return [node for node in every if node.state != _REMOVED]


def _refuse_same(known: cluster_pb2.Node, what: str, value: str) -> None:
    if getattr(known, what) == value:
        raise Refused(error_pb2.ERROR_REASON_NODE_EXISTS, f"node {known.id} has {what} {value}")


def _check_address(address: str) -> None:
    try:
        split_address(address)
    except ValueError as error:
        raise bad_field(f"node.address: {error}") from None
    if len(address) > ADDRESS_MAX_CHARS or any(each.isspace() for each in address):
        raise bad_field(f"node.address: at most {ADDRESS_MAX_CHARS} characters, no space")


def _check_form(node: cluster_pb2.Node) -> None:
    if not _NAME.fullmatch(node.name):
        raise bad_field("node.name: 1 to 63 characters of a-z 0-9 and -")
    _check_address(node.address)
    if len(node.zone) > LABEL_MAX_CHARS or len(node.host) > LABEL_MAX_CHARS:
        raise bad_field(f"node.zone: zone and host have at most {LABEL_MAX_CHARS} characters")
    if node.weight_milli > WEIGHT_MAX_MILLI:
        raise bad_field(f"node.weight_milli: at most {WEIGHT_MAX_MILLI}")

"""The state machine of the meta group: decodes log entries and runs their commands in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mailraft.cluster.meta import jobs, levels, nodes, settings
from mailraft.internal.v1 import meta_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import (
    META_GROUP,
    Applied,
    Entry,
    EntryKind,
    Proposal,
    View,
    node_of,
)
from mailraft.node.mailstore import shard_clock
from mailraft.node.mailstore.errors import Refused, UnknownFormatError, bad_field
from mailraft.node.mailstore.overlay import Overlay
from mailraft.v1 import cluster_pb2, error_pb2

FORMAT = 1
# What was decided and is known to nobody that is left, at most: record_forced jumps over it.
EPOCHS_LOST_MAX = 1_000_000
NODES_LOST_MAX = 16
INCARNATIONS_LOST_MAX = 65_536
_CALLER = b""  # requests of the meta group are of nobody in particular

Run = Callable[[Overlay, meta_pb2.MetaCommand, int], meta_pb2.MetaReply]


class MetaStateMachine:
    """Implements StateMachine. Commands are MetaCommand, replies MetaReply: a refusal is one too.

    What raises is what must stop the replica: UnknownFormatError, or damaged bytes.
    """

    def apply(self, view: View, entry: Entry) -> Applied:
        if entry.kind is not EntryKind.COMMAND:
            return Applied(())
        batch = meta_pb2.MetaBatch.FromString(entry.payload)
        if batch.format != FORMAT:
            raise UnknownFormatError(f"entry {entry.index}: meta command format {batch.format}")
        overlay = Overlay(view)
        replies = [run(overlay, command) for command in batch.commands]
        return Applied(overlay.effects(), tuple(replies))

    def encode(self, commands: Sequence[Proposal]) -> tuple[bytes, tuple[bytes, ...]]:
        batch = meta_pb2.MetaBatch(format=FORMAT)
        for proposal in commands:
            command = proposal.command
            if not isinstance(command, meta_pb2.MetaCommand) or proposal.bodies:
                raise TypeError("a proposal of the meta group is a MetaCommand without bodies")
            if command.WhichOneof("action") not in _ACTIONS:
                raise ValueError("a command says what to do")
            batch.commands.add().CopyFrom(command)
        return batch.SerializeToString(deterministic=True), ()


def run(overlay: Overlay, command: meta_pb2.MetaCommand) -> meta_pb2.MetaReply:
    """What one command answers; its changes are in the overlay afterwards."""
    action = command.WhichOneof("action") or ""
    if action not in _ACTIONS:
        raise UnknownFormatError("a meta command that this version does not know")
    now_ms = shard_clock.advance(overlay, command.time_ms)
    layer = overlay.child()
    try:
        shard_clock.check_request_id(command.request_id, now_ms)
        known = shard_clock.recall(layer, command.request_id, _CALLER, command.fingerprint)
        if known is not None:
            return meta_pb2.MetaReply.FromString(known.reply)
        _check_epoch(layer, command.if_epoch)
        reply = _ACTIONS[action](layer, command, now_ms)
    except Refused as refused:
        return meta_pb2.MetaReply(
            format=FORMAT, epoch=_epoch(overlay), refusal=refused.to_refusal()
        )
    reply.format, reply.epoch = FORMAT, _epoch(layer)
    if command.request_id:
        record = record_pb2.RequestRecord(
            format=FORMAT, fingerprint=command.fingerprint, reply=reply.SerializeToString()
        )
        shard_clock.remember(layer, command.request_id, _CALLER, record)
    layer.commit()
    return reply


def _epoch(overlay: Overlay) -> int:
    found = overlay.read(keys.CLUSTER_HEAD, meta_pb2.MetaHeadRecord)
    return 0 if found is None else found.epoch


def _check_epoch(overlay: Overlay, wanted: int) -> None:
    epoch = _epoch(overlay)
    if wanted and wanted != epoch:
        raise Refused(
            error_pb2.ERROR_REASON_EPOCH_MISMATCH, f"the epoch is {epoch}", {"epoch": epoch}
        )


def _bootstrap(overlay: Overlay, command: meta_pb2.MetaCommand, _: int) -> meta_pb2.MetaReply:
    """The map that every process began with becomes the first state. Once."""
    done = meta_pb2.MetaReply(done=meta_pb2.MetaDone())
    if overlay.get(keys.CLUSTER_HEAD) is not None:
        return done
    first = command.bootstrap.map
    incarnations = [each.replica_id & 0xFFFFFFFF for each in first.meta.replicas]
    for shard in first.shards:
        incarnations.extend(each.replica_id & 0xFFFFFFFF for each in shard.replicas)
    head = overlay.edit_or_new(keys.CLUSTER_HEAD, meta_pb2.MetaHeadRecord)
    head.cluster_id, head.epoch = first.cluster_id, first.epoch
    head.next_node_id = max(node.id for node in first.nodes) + 1
    head.next_incarnation = max(incarnations) + 1
    head.next_job = 1
    head.slots.extend(first.slots)
    head.settings.CopyFrom(settings.DEFAULTS)
    head.settings_version = 1
    head.feature_level = first.feature_level
    for node in first.nodes:
        nodes.put(overlay, node)
        if not node.state:  # a map of 0.1.0
            nodes.move_to(overlay, node.id, cluster_pb2.NODE_STATE_ACTIVE)
    for shard in (first.meta, *first.shards):
        _put_shard(overlay, shard)
    return done


def _record_shard(overlay: Overlay, command: meta_pb2.MetaCommand, _: int) -> meta_pb2.MetaReply:
    told = command.record_shard.shard
    _check_replicas(overlay, told)
    known = overlay.read(keys.cluster_shard(told.id), meta_pb2.MetaShardRecord)
    if known is None:
        raise Refused(error_pb2.ERROR_REASON_SHARD_NOT_FOUND, f"there is no shard {told.id}")
    if told.configuration_version > known.shard.configuration_version:
        _put_shard(overlay, told)
        nodes.head_of(overlay).epoch += 1
    return meta_pb2.MetaReply(done=meta_pb2.MetaDone())


def _record_forced(overlay: Overlay, command: meta_pb2.MetaCommand, _: int) -> meta_pb2.MetaReply:
    """The meta group lost its majority, and this state may be older than what others were told."""
    told = command.record_forced.shard
    known = overlay.read(keys.cluster_shard(told.id), meta_pb2.MetaShardRecord)
    if told.id != META_GROUP or known is None:
        raise bad_field("shard.id: it is for the meta group")
    if told.configuration_version > known.shard.configuration_version:
        _check_replicas(overlay, told)
        _put_shard(overlay, told)
        head = nodes.head_of(overlay)
        head.epoch += EPOCHS_LOST_MAX
        head.next_node_id += NODES_LOST_MAX
        head.next_incarnation += INCARNATIONS_LOST_MAX
        head.next_job += INCARNATIONS_LOST_MAX
    return meta_pb2.MetaReply(done=meta_pb2.MetaDone())


def _check_replicas(overlay: Overlay, told: cluster_pb2.Shard) -> None:
    """No map tells what no process would take: the next configuration may be better."""
    holders = [each.node_id for each in told.replicas]
    if not holders or len(set(holders)) != len(holders):
        raise bad_field(f"shard.replicas: {holders} is not a node each")
    for each in told.replicas:
        if nodes.read(overlay, each.node_id).id != node_of(each.replica_id):
            raise bad_field(f"shard.replicas: {each.replica_id:#x} is not of node {each.node_id}")


def _put_shard(overlay: Overlay, shard: cluster_pb2.Shard) -> None:
    assert shard.id != META_GROUP or shard.replicas, "the meta group has replicas"
    record = overlay.edit_or_new(keys.cluster_shard(shard.id), meta_pb2.MetaShardRecord)
    record.shard.CopyFrom(shard)
    record.shard.ClearField("leader")


_ACTIONS: dict[str, Run] = {
    "bootstrap": _bootstrap,
    "admit_node": nodes.admit,
    "set_node_state": nodes.set_state,
    "describe_node": nodes.describe,
    "record_shard": _record_shard,
    "record_forced": _record_forced,
    "begin_job": jobs.begin,
    "advance_job": jobs.advance,
    "change_settings": settings.change,
    "enable_level": levels.enable,
}

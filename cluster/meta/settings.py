"""The command about settings of the whole cluster."""

from __future__ import annotations

from mailraft.cluster.meta.nodes import head_of
from mailraft.cluster.meta.state import level_policy
from mailraft.internal.v1 import meta_pb2
from mailraft.node.mailstore.errors import Refused, bad_field
from mailraft.node.mailstore.overlay import Overlay
from mailraft.v1 import admin_pb2, common_pb2, error_pb2

DEFAULTS = admin_pb2.Settings(
    default_consistency=common_pb2.CONSISTENCY_SESSION,
    default_ack=common_pb2.ACK_LEVEL_QUORUM,
    replicas_per_shard=3,
    concurrent_moves=2,
    replace_after_ms=10 * 60 * 1000,
)
FIELDS = frozenset(each.name for each in admin_pb2.Settings.DESCRIPTOR.fields) - {"etag"}
REPLICAS = frozenset({1, 3, 5, 7})
CONCURRENT_MOVES_MAX = 64


def etag(head: meta_pb2.MetaHeadRecord) -> str:
    return f"s{head.settings_version}"


def told(head: meta_pb2.MetaHeadRecord) -> admin_pb2.Settings:
    """As the API tells them."""
    settings = admin_pb2.Settings()
    settings.CopyFrom(head.settings)
    settings.etag = etag(head)
    return settings


def change(overlay: Overlay, command: meta_pb2.MetaCommand, _: int) -> meta_pb2.MetaReply:
    asked = command.change_settings
    head = head_of(overlay)
    if asked.settings.etag and asked.settings.etag != etag(head):
        raise Refused(error_pb2.ERROR_REASON_ETAG_MISMATCH, f"the settings are {etag(head)} now")
    unknown = set(asked.fields) - FIELDS
    if unknown or not asked.fields:
        raise bad_field(f"update_mask: {', '.join(sorted(unknown)) or 'empty'}")
    before = level_policy(head)
    for name in asked.fields:
        setattr(head.settings, name, getattr(asked.settings, name))
    _check(head.settings)  # a refusal undoes it
    head.settings_version += 1
    head.epoch += level_policy(head) != before  # the map tells it to all nodes
    return meta_pb2.MetaReply(settings=told(head))


def _check(wanted: admin_pb2.Settings) -> None:
    if wanted.replicas_per_shard not in REPLICAS:
        raise bad_field("settings.replicas_per_shard: 1, 3, 5 or 7")
    if not 1 <= wanted.concurrent_moves <= CONCURRENT_MOVES_MAX:
        raise bad_field(f"settings.concurrent_moves: 1 to {CONCURRENT_MOVES_MAX}")
    if wanted.default_ack == common_pb2.ACK_LEVEL_REPLICAS:
        raise bad_field("settings.default_ack: REPLICAS has to be told how many")
    if wanted.default_consistency == common_pb2.CONSISTENCY_BOUNDED:
        raise bad_field("settings.default_consistency: BOUNDED has to be told how old")
    if wanted.default_ack == common_pb2.ACK_LEVEL_ACCEPTED and not wanted.allow_accepted:
        raise Refused(
            error_pb2.ERROR_REASON_LEVEL_NOT_ALLOWED, "ACCEPTED by default needs allow_accepted"
        )

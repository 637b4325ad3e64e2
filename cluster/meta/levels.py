"""The command that enables a feature level (docs/decisions/0018-feature-levels.md)."""

from __future__ import annotations

from mailraft.cluster.meta.nodes import head_of
from mailraft.internal.v1 import meta_pb2
from mailraft.node.mailstore.errors import Refused, UnknownFormatError
from mailraft.node.mailstore.overlay import Overlay
from mailraft.v1 import error_pb2
from mailraft.wire import feature_levels


def enabled(head: meta_pb2.MetaHeadRecord) -> int:
    return head.feature_level or feature_levels.FIRST


def enable(overlay: Overlay, command: meta_pb2.MetaCommand, _: int) -> meta_pb2.MetaReply:
    """A replica that does not understand the level stops here, whoever proposed it: commands that
    it would read otherwise than its peers may follow.
    """
    wanted = command.enable_level.feature_level
    if wanted > feature_levels.LEVEL:
        raise UnknownFormatError(
            f"the cluster is brought to feature level {wanted}, this version understands "
            f"{feature_levels.LEVEL}: start {feature_levels.version_of(wanted)} or newer"
        )
    head = head_of(overlay)
    now = enabled(head)
    if wanted < now:
        raise Refused(
            error_pb2.ERROR_REASON_FEATURE_NOT_ENABLED,
            f"the cluster is at feature level {now}, which never falls",
        )
    if wanted > now:
        head.feature_level = wanted
        head.epoch += 1  # the map tells it to all nodes
    return meta_pb2.MetaReply(done=meta_pb2.MetaDone())

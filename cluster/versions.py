"""Where an upgrade stands, and whether there is a way back (docs/upgrade.md). Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from mailraft.cluster.picture import Picture
from mailraft.v1 import cluster_pb2
from mailraft.wire import feature_levels

_ALARMS = ("no-leader", "under-replicated", "replica-stopped", "replica-differs")


def enabled(picture: Picture) -> int:
    """The feature level of the cluster; a version that tells none knows the first alone."""
    return picture.told.feature_level or feature_levels.FIRST


def understood(node: cluster_pb2.NodeStatus) -> int | None:
    """The level that a node's version knows; None: nobody tells."""
    return node.feature_level or None


def versions(picture: Picture) -> str:
    """How many nodes run which: 0.3.0 on 2, 0.2.0 on 1."""
    counts = Counter(each.node.version or "unknown" for each in picture.nodes)
    return ", ".join(f"{version} on {count}" for version, count in counts.most_common())


def next_step(picture: Picture) -> str:
    """What is to be done in an upgrade; empty: nothing."""
    now = enabled(picture)
    levels = [understood(each) for each in picture.nodes]
    highest = max((each for each in levels if each), default=None)
    if highest is None:
        return "go on with the nodes: who leads the meta group is too old to tell levels"
    silent = [each.node.name for each in picture.nodes if not each.reachable]
    behind = [
        each.node.name
        for each in picture.nodes
        if each.reachable and (understood(each) or feature_levels.FIRST) < highest
    ]
    if behind:
        return f"bring {_listed(behind)} to {feature_levels.version_of(highest)} or newer"
    if len({each.node.version for each in picture.nodes if each.reachable}) > 1:
        return "bring all nodes to one version"
    if highest <= now:
        return ""
    if silent:
        return f"{_listed(silent)} cannot be asked: every node has to tell, or to leave"
    return f"mailraft upgrade finalize: enables feature level {highest}"


def obstacles(picture: Picture) -> Sequence[str]:
    """Why no node can be brought back to the version before this one now; empty: each can."""
    now = enabled(picture)
    if now >= feature_levels.LEVEL:
        since = feature_levels.version_of(now)
        return [f"feature level {now} is enabled, and no version before {since} understands it"]
    silent = [f"{each.node.name} is silent" for each in picture.nodes if not each.reachable]
    wrong = [each.message for each in picture.told.alarms if each.id.partition("/")[0] in _ALARMS]
    # One node after the other is away: each shard needs all its replicas before.
    return [*silent, *wrong]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)

"""Whether a feature level can be enabled now, by what the nodes tell. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from mailraft.cluster.control.observed import Observed
from mailraft.v1 import cluster_pb2
from mailraft.wire import errors, feature_levels


def enabled(seen: Observed) -> int:
    """The feature level that is in force."""
    return seen.map.feature_level or feature_levels.FIRST


def level_to_enable(seen: Observed, asked: int) -> int:
    """The level that may be enabled: `asked`, or the highest that every node understands (0).

    The one in force where there is nothing to raise. Every node counts that has not left, and so
    every replica of the meta group.

    Raises QuorumUnavailableError: a node is silent, FeatureNotEnabledError: one is too old.
    """
    now = enabled(seen)
    if asked and asked <= now:
        return now
    there = [each for each in seen.map.nodes if each.state != cluster_pb2.NODE_STATE_REMOVED]
    silent = [each.name for each in there if not seen.heard(each.id)]
    if silent:
        raise errors.QuorumUnavailableError(
            f"{_listed(silent)} cannot be asked what it understands: every node has to tell, or to "
            "leave the cluster"
        )
    levels = [(each, seen.reports[each.id].feature_level) for each in there]
    common = min(level for _, level in levels)
    # Asked for none, and nothing to raise: who is in the way of what this version has.
    wanted = asked or max(common, now)
    if not asked and wanted == now:
        wanted = max(now, feature_levels.LEVEL)
    _check_old(levels, wanted, seen)
    if wanted > feature_levels.LEVEL:
        raise errors.FeatureNotEnabledError(
            f"the node that leads the meta group understands feature level {feature_levels.LEVEL}"
        )
    return wanted


def _check_old(levels: Iterable[tuple[cluster_pb2.Node, int]], wanted: int, seen: Observed) -> None:
    old = [
        f"{each.name} ({seen.reports[each.id].version}, level {level})"
        for each, level in levels
        if level < wanted
    ]
    if old:
        raise errors.FeatureNotEnabledError(
            f"feature level {wanted} needs {feature_levels.version_of(wanted)} or newer on every "
            f"node; too old: {_listed(old)}"
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)

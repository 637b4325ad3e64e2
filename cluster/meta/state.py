"""What the meta group keeps, read from its view: rows by key, and the cluster map made of them."""

from __future__ import annotations

from collections.abc import Iterator

from mailraft.internal.v1 import meta_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import View
from mailraft.v1 import cluster_pb2, job_pb2
from mailraft.wire import feature_levels
from mailraft.wire.slots import SLOTS

FINISHED = frozenset(
    {job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED}
)


def head(view: View) -> meta_pb2.MetaHeadRecord | None:
    """None until the cluster is bootstrapped."""
    stored = view.get(keys.CLUSTER_HEAD)
    return None if stored is None else meta_pb2.MetaHeadRecord.FromString(stored)


def node(view: View, number: int) -> cluster_pb2.Node | None:
    stored = view.get(keys.cluster_node(number))
    return None if stored is None else meta_pb2.MetaNodeRecord.FromString(stored).node


def nodes(view: View) -> Iterator[cluster_pb2.Node]:
    """All that ever were, by number."""
    for _, value in view.scan(*keys.CLUSTER_NODES):
        yield meta_pb2.MetaNodeRecord.FromString(value).node


def shard(view: View, number: int) -> cluster_pb2.Shard | None:
    stored = view.get(keys.cluster_shard(number))
    return None if stored is None else meta_pb2.MetaShardRecord.FromString(stored).shard


def shards(view: View) -> Iterator[cluster_pb2.Shard]:
    """By number; the first is the meta group itself."""
    for _, value in view.scan(*keys.CLUSTER_SHARDS):
        yield meta_pb2.MetaShardRecord.FromString(value).shard


def job(view: View, job_id: str) -> meta_pb2.MetaJobRecord | None:
    number = job_number(job_id)
    stored = view.get(keys.cluster_job(number)) if number else None
    return None if stored is None else meta_pb2.MetaJobRecord.FromString(stored)


def jobs(view: View, *, newest_first: bool = False) -> Iterator[meta_pb2.MetaJobRecord]:
    for _, value in view.scan(*keys.CLUSTER_JOBS, reverse=newest_first):
        yield meta_pb2.MetaJobRecord.FromString(value)


def open_jobs(view: View) -> list[meta_pb2.MetaJobRecord]:
    """Those that are not finished, oldest first."""
    return [each for each in jobs(view) if each.job.state not in FINISHED]


def job_id(number: int) -> str:
    return f"j{number}"


def job_number(text: str) -> int:
    """0 for what is no job id."""
    digits = text.removeprefix("j")
    if not text.startswith("j") or not digits.isascii() or not digits.isdigit():
        return 0
    return min(int(digits), (1 << 64) - 1)


def cluster_map(view: View) -> cluster_pb2.ClusterMap | None:
    """The map as clients get it, without leader hints; None before the bootstrap."""
    found = head(view)
    if found is None:
        return None
    meta, *mail = shards(view)
    return cluster_pb2.ClusterMap(
        cluster_id=found.cluster_id,
        epoch=found.epoch,
        slot_count=SLOTS,
        slots=found.slots,
        shards=mail,
        nodes=nodes(view),
        meta=meta,
        policy=level_policy(found),
        feature_level=found.feature_level,
    )


def level_policy(found: meta_pb2.MetaHeadRecord) -> cluster_pb2.LevelPolicy:
    """The part of the settings that every node has to know."""
    told = cluster_pb2.LevelPolicy(
        default_consistency=found.settings.default_consistency,
        default_ack=found.settings.default_ack,
        allow_accepted=found.settings.allow_accepted,
    )
    # Below that 0.2.0 may be here: it lets the setting change without a new epoch, and cannot read
    # a copy of a map that tells it.
    if found.feature_level >= feature_levels.UNDELETE_WINDOW:
        told.undelete_window_ms = found.settings.undelete_window_ms
    return told

"""Removes backups, and what no kept one needs."""

from __future__ import annotations

from dataclasses import dataclass

from mailraft.cluster.backup.archive import read_segment, segment_names
from mailraft.cluster.backup.manifest import Manifest, backups
from mailraft.cluster.backup.sealed import DamagedBackupError
from mailraft.cluster.backup.store import BackupStore, NotStoredError
from mailraft.internal.v1 import backup_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was, or would be, removed."""

    backups: tuple[str, ...]
    chunks: int
    segments: int
    freed_bytes: int
    kept: int


def prune(store: BackupStore, cluster_id: str, keep: int, *, dry_run: bool = False) -> Pruned:
    """Keep the newest `keep` backups (at least one), what they consist of, and the log behind the
    oldest of them.

    Raises StoreBusyError; DamagedBackupError when a manifest cannot be read: then nothing is
    removed, since it cannot be known what it needs.
    """
    with store.lock():
        everything = backups(store)  # of other clusters too: chunks are shared
        own = [each for each in everything if each.cluster_id == cluster_id]
        gone = own[: -max(1, keep)]
        kept = [each for each in everything if each not in gone]
        sizes = dict(store.list("chunks/"))
        needed = {chunk.name for each in kept for chunk in each.chunks()}
        chunks = [name for name in sizes if name not in needed]
        segments = _segments(store, cluster_id, [each for each in own if each not in gone])
        manifest_sizes = dict(store.list("clusters/"))
        freed = sum(sizes[name] for name in chunks)
        freed += sum(manifest_sizes[name] for name in [*segments, *(each.name for each in gone)])
        if not dry_run:
            # Manifests first: what is left of a prune that broke off is found by the next one.
            for name in [*(each.name for each in gone), *segments, *chunks]:
                store.delete(name)
    return Pruned(
        tuple(each.id for each in gone), len(chunks), len(segments), freed, len(own) - len(gone)
    )


def _segments(store: BackupStore, cluster_id: str, kept: list[Manifest]) -> list[str]:
    """Those that lie wholly below the oldest kept backup. The last one says how far all reach."""
    if not kept:
        return []
    floor = {shard.group: shard.index for shard in kept[0].shards}
    found = []
    for name in segment_names(store, cluster_id)[:-1]:
        try:
            segment = read_segment(store, name)
        except (DamagedBackupError, NotStoredError):
            break
        if not all(_below(shard, floor.get(shard.group, 0)) for shard in segment.shards):
            break
        found.append(name)
    return found


def _below(shard: pb.ShardLog, index: int) -> bool:
    return not shard.entries or shard.last_index <= index

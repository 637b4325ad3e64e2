"""The log of a cluster in a backup store: segments, and how far it reaches."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import zstandard
from google.protobuf.message import DecodeError

from mailraft.cluster.backup.manifest import head_of, log_of
from mailraft.cluster.backup.sealed import DamagedBackupError, Kind, seal, unseal
from mailraft.cluster.backup.store import BackupStore
from mailraft.internal.v1 import backup_service_pb2 as pb
from mailraft.internal.v1 import raft_pb2
from mailraft.node.consensus.messages import DamagedEntryError, entries_from_wire
from mailraft.node.interfaces import Entry

# What bodies there are is compressed already.
ZSTD_LEVEL = 1
SEGMENT_BYTES_MAX = 1 << 30  # when it is opened: it is closed far below


@dataclass(frozen=True, slots=True)
class Reach:
    """Everything acknowledged before time_ms is archived: that is what lies up to `index`."""

    index: int
    time_ms: int = 0  # 0: not known


@dataclass(slots=True)
class Archive:
    """Of one cluster. One process adds to it at a time."""

    store: BackupStore
    cluster_id: str
    reach: dict[int, Reach] = field(default_factory=dict)
    _last_name: str = ""

    def open(self) -> None:
        """Find out how far it reaches: the last segment was perhaps put without a head."""
        self.reach = read_head(self.store, self.cluster_id)
        names = segment_names(self.store, self.cluster_id)
        if names:
            self._last_name = names[-1]
            for shard in read_segment(self.store, names[-1]).shards:
                known = self.reach.get(shard.group)
                if known is None or known.index < shard.last_index:
                    self.reach[shard.group] = Reach(shard.last_index)

    def add(
        self, entries: Mapping[int, list[raft_pb2.LogEntry]], reach: Mapping[int, Reach]
    ) -> int:
        """Put entries of any shards as a segment, then how far all reach now; bytes stored."""
        self.reach |= reach
        stored = 0
        if any(entries.values()):
            segment = pb.LogSegment(
                shards=[
                    pb.ShardLog(
                        group=group, entries=entries.get(group, ()), last_index=reached.index
                    )
                    for group, reached in sorted(self.reach.items())
                ]
            )
            small = zstandard.compress(segment.SerializeToString(), ZSTD_LEVEL)
            sealed = seal(Kind.SEGMENT, small)
            self._last_name = self._next_name()
            self.store.put(self._last_name, sealed)
            stored = len(sealed)
        head = {str(group): [each.index, each.time_ms] for group, each in self.reach.items()}
        self.store.put(head_of(self.cluster_id), seal(Kind.HEAD, json.dumps(head).encode()))
        return stored

    def _next_name(self) -> str:
        """Behind the last one, also where a clock was set back."""
        prefix = log_of(self.cluster_id)
        last_ms = int(self._last_name[len(prefix) :].split("-")[0]) if self._last_name else 0
        time_ms = max(time.time_ns() // 1_000_000, last_ms + 1)
        return f"{prefix}{time_ms:015}-{secrets.token_hex(4)}"


def read_head(store: BackupStore, cluster_id: str) -> dict[int, Reach]:
    """How far each shard is archived; empty: nothing is. Raises DamagedBackupError."""
    name = head_of(cluster_id)
    if not store.has(name):
        return {}
    told = json.loads(unseal(Kind.HEAD, name, store.get(name)))
    return {int(group): Reach(index, time_ms) for group, (index, time_ms) in told.items()}


def segment_names(store: BackupStore, cluster_id: str) -> list[str]:
    """In the order in which they were archived."""
    return [name for name, _ in store.list(log_of(cluster_id))]


def read_segment(store: BackupStore, name: str) -> pb.LogSegment:
    """Raises DamagedBackupError, NotStoredError."""
    small = unseal(Kind.SEGMENT, name, store.get(name))
    try:
        return pb.LogSegment.FromString(
            zstandard.decompress(small, max_output_size=SEGMENT_BYTES_MAX)
        )
    except (zstandard.ZstdError, DecodeError) as error:
        raise DamagedBackupError(f"{name}: {error}") from error


def entries_after(store: BackupStore, cluster_id: str, group: int, index: int) -> Iterator[Entry]:
    """A shard's archived entries behind an index, in order, up to where one is missing.

    Raises DamagedBackupError, NotStoredError.
    """
    for name in segment_names(store, cluster_id):
        for shard in read_segment(store, name).shards:
            if shard.group != group:
                continue
            for entry in proven(name, shard):
                if entry.index > index + 1:
                    return
                if entry.index == index + 1:
                    index += 1
                    yield entry


def proven(name: str, shard: pb.ShardLog) -> list[Entry]:
    """Raises DamagedBackupError."""
    try:
        entries = entries_from_wire(shard.entries)
    except DamagedEntryError as error:
        raise DamagedBackupError(f"{name}, shard {shard.group}: {error}") from error
    indexes = [entry.index for entry in entries]
    if indexes and indexes != list(range(indexes[0], shard.last_index + 1)):
        raise DamagedBackupError(f"{name}, shard {shard.group}: entries are missing")
    return entries

"""What a backup says of itself, and where it lies. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from mailraft.cluster.backup.sealed import DamagedBackupError, Kind, seal, unseal
from mailraft.cluster.backup.store import BackupStore
from mailraft.cluster.errors import ClusterError, ExitCode


class BackupNotFoundError(ClusterError):
    """No backup of that id, or none at all."""

    exit_code = ExitCode.NOT_FOUND
    reason = "BACKUP_NOT_FOUND"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one family that lie in one file. `last_index`: of bodies, the last entry's."""

    sha256: str
    rows: int
    size_bytes: int
    first_index: int = 0
    last_index: int = 0

    @property
    def name(self) -> str:
        return f"chunks/{self.sha256[:2]}/{self.sha256}"


@dataclass(frozen=True, slots=True)
class ShardBackup:
    """One shard at one applied index."""

    group: int
    index: int
    term: int
    digest: str
    clock_ms: int  # of the state: the highest time of any command in it
    accounts: int
    messages: int
    bodies: int  # that the state knows
    state: tuple[Chunk, ...]
    body_chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A backup of a whole cluster."""

    id: str
    cluster_id: str
    release: str
    began_ms: int
    ended_ms: int
    parent: str  # whose bodies it takes over; empty: a full one
    new_bytes: int  # stored for it
    cluster_map: dict[str, Any] = field(default_factory=dict)  # as protobuf's JSON
    settings: dict[str, Any] = field(default_factory=dict)
    shards: tuple[ShardBackup, ...] = ()

    @property
    def name(self) -> str:
        return f"{backups_of(self.cluster_id)}{self.id}"

    @property
    def size_bytes(self) -> int:
        """Of all rows."""
        return sum(chunk.size_bytes for chunk in self.chunks())

    def chunks(self) -> Iterator[Chunk]:
        for shard in self.shards:
            yield from shard.state
            yield from shard.body_chunks

    def shard(self, group: int) -> ShardBackup | None:
        return next((each for each in self.shards if each.group == group), None)

    def encode(self) -> bytes:
        return seal(Kind.MANIFEST, json.dumps(asdict(self), indent=1).encode())


def decode(name: str, sealed: bytes) -> Manifest:
    """Raises DamagedBackupError, NewerBackupError."""
    told = json.loads(unseal(Kind.MANIFEST, name, sealed))
    told["shards"] = tuple(_shard(each) for each in told["shards"])
    found = Manifest(**told)
    if found.name != name:
        raise DamagedBackupError(f"{name} holds the manifest {found.name}")
    return found


def backups_of(cluster_id: str) -> str:
    return f"clusters/{cluster_id}/backups/"


def log_of(cluster_id: str) -> str:
    return f"clusters/{cluster_id}/log/"


def head_of(cluster_id: str) -> str:
    return f"clusters/{cluster_id}/head"


def backups(store: BackupStore, cluster_id: str = "") -> list[Manifest]:
    """Of one cluster, or of all in the store; oldest first. Raises DamagedBackupError."""
    found = [decode(name, store.get(name)) for name in manifest_names(store, cluster_id)]
    return sorted(found, key=lambda each: (each.began_ms, each.id))


def manifest_names(store: BackupStore, cluster_id: str = "") -> list[str]:
    names = store.list(backups_of(cluster_id) if cluster_id else "clusters/")
    return [name for name, _ in names if name.split("/")[2:3] == ["backups"]]


def only_cluster(store: BackupStore) -> str:
    """The cluster whose backups the store holds. Raises BackupNotFoundError if it is not one."""
    ids = sorted({name.split("/")[1] for name, _ in store.list("clusters/")})
    if len(ids) == 1:
        return ids[0]
    if not ids:
        raise BackupNotFoundError("the store holds no backup", "make one: mailraft backup create")
    raise BackupNotFoundError(
        f"the store holds backups of {len(ids)} clusters", f"name one with --of: {', '.join(ids)}"
    )


def _shard(told: dict[str, Any]) -> ShardBackup:
    for name in ("state", "body_chunks"):
        told[name] = tuple(Chunk(**each) for each in told[name])
    return ShardBackup(**told)

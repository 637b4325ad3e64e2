"""Reads everything that a store holds, and counts it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mailraft.cluster.backup.archive import proven, read_head, read_segment, segment_names
from mailraft.cluster.backup.chunks import packs, rows_in
from mailraft.cluster.backup.manifest import Manifest, ShardBackup, decode, manifest_names
from mailraft.cluster.backup.sealed import DamagedBackupError, NewerBackupError
from mailraft.cluster.backup.store import BackupStore, NotStoredError
from mailraft.node.engine import keys
from mailraft.node.engine.snapshot import BODY_FAMILY
from mailraft.wire import bodies

_WRONG = (DamagedBackupError, NewerBackupError, NotStoredError)


@dataclass(slots=True)
class Verified:
    """What was read, and what is wrong with it."""

    backups: int = 0
    shards: int = 0
    segments: int = 0
    entries: int = 0
    rows: int = 0
    bodies: int = 0
    size_bytes: int = 0
    problems: list[str] = field(default_factory=list)


def verify(
    store: BackupStore,
    cluster_id: str,
    ids: tuple[str, ...] = (),
    tell: Callable[[int], None] = lambda _: None,
) -> Verified:
    """Every backup (or these), and all of the log. Goes on behind what is damaged."""
    found = Verified()
    for manifest in _manifests(store, cluster_id, found):
        if ids and manifest.id not in ids:
            continue
        found.backups += 1
        for shard in manifest.shards:
            where = f"{manifest.id} shard {shard.group}"
            try:
                found.problems += [f"{where}: {why}" for why in _shard(store, shard, found, tell)]
            except _WRONG as error:
                found.problems.append(f"{where}: {error}")
    _log(store, cluster_id, found)
    return found


def _manifests(store: BackupStore, cluster_id: str, found: Verified) -> Iterator[Manifest]:
    for name in manifest_names(store, cluster_id):
        try:
            yield decode(name, store.get(name))
        except _WRONG as error:
            found.problems.append(str(error))


def _shard(
    store: BackupStore, shard: ShardBackup, found: Verified, tell: Callable[[int], None]
) -> Iterator[str]:
    """What does not match. Bodies come behind the state, which says which there must be."""
    found.shards += 1
    accounts = messages = 0
    wanted: set[tuple[int, int]] = set()
    live = 0
    last: tuple[int, bytes] = (0, b"")
    for pack in packs(store, shard, tell):
        found.size_bytes += pack.size_bytes
        for key, value in rows_in(f"pack {pack.number}", pack):
            if (pack.family, key) <= last:
                yield f"row {key.hex()} is out of order"
            last = (pack.family, key)
            found.rows += 1
            if pack.family == BODY_FAMILY:
                found.bodies += 1
                wanted.discard(keys.relative_body_position(key))
                try:
                    bodies.check(value)
                except bodies.BodyCorruptError as error:
                    yield f"body {key.hex()}: {error}"
                continue
            accounts += keys.is_account_record(key)
            messages += keys.is_message_record(key)
            if keys.is_blob(key):
                live += 1
                wanted.add(keys.blob_of(key))
    counted, said = (accounts, messages, live), (shard.accounts, shard.messages, shard.bodies)
    if counted != said:
        yield f"(accounts, messages, bodies) are {counted}, the manifest says {said}"
    if wanted:
        yield f"{len(wanted)} bodies are missing, the first {min(wanted)}"


def _log(store: BackupStore, cluster_id: str, found: Verified) -> None:
    for name in segment_names(store, cluster_id):
        try:
            for shard in read_segment(store, name).shards:
                entries = proven(name, shard)
                found.entries += len(entries)
                found.size_bytes += sum(entry.size_bytes for entry in entries)
            found.segments += 1
        except _WRONG as error:
            found.problems.append(str(error))
    try:
        read_head(store, cluster_id)
    except _WRONG as error:
        found.problems.append(str(error))

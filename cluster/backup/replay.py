"""A shard as it was at a time: a backup in a temporary engine, and the archived log applied to it
by the state machine that the nodes have.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import google_crc32c

from mailraft.cluster.backup.archive import entries_after, read_head
from mailraft.cluster.backup.chunks import packs
from mailraft.cluster.backup.manifest import ShardBackup, backups
from mailraft.cluster.backup.sealed import DamagedBackupError
from mailraft.cluster.backup.store import BackupStore
from mailraft.cluster.errors import ClusterError
from mailraft.internal.v1 import command_pb2
from mailraft.node.engine.records import AppliedPosition
from mailraft.node.engine.snapshot import SnapshotDamagedError, Totals
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import (
    AppendEntries,
    ApplyWrite,
    Configuration,
    Entry,
    EntryKind,
    InstallSnapshot,
    LogBase,
    View,
    Write,
    replica_id,
)
from mailraft.node.mailstore.machine import MailStateMachine

# The temporary engine is that of a node on its own.
_NODE = 1
_REPLICA = replica_id(_NODE, 1)
_ALONE = Configuration(1, (_REPLICA,))


class NotArchivedError(ClusterError):
    """The time is not covered: before the first backup, or behind what is archived."""

    reason = "TIME_NOT_COVERED"


class ShardAt:
    """One shard, to be read."""

    def __init__(self, store: Store, group: int, clock_ms: int) -> None:
        self._store, self.group = store, group
        self.clock_ms = clock_ms
        self._machine = MailStateMachine()

    @property
    def view(self) -> View:
        return self._store.view(self.group)

    @property
    def last_index(self) -> int:
        """Of the last entry that is in it, whether it changed anything or not."""
        return self._store.load(self.group).last_index

    @property
    def position(self) -> tuple[int, int, bytes]:
        """Index, term and digest, as the replicas have at that index."""
        return self._store.applied(self.group)

    def body(self, index: int, ordinal: int) -> bytes | None:
        """Packed."""
        return self._store.body(self.group, index, ordinal)

    def apply(self, entries: Iterable[Entry], until_ms: int | None) -> bool:
        """Apply entries while the clock stays at or below until_ms; whether it would pass it."""
        view = self.view
        for whole in entries:
            entry, self.clock_ms = cut(whole, self.clock_ms, until_ms)
            if entry is None:
                return True
            writes: list[Write] = [AppendEntries(self.group, (entry,))]
            if entry.kind is EntryKind.COMMAND:
                effects = self._machine.apply(view, entry).effects
                writes.append(ApplyWrite(self.group, entry.index, entry.term, effects))
            self._store.write(writes)
            if entry is not whole:
                return True
        return False


@contextmanager
def shard_at(
    store: BackupStore,
    cluster_id: str,
    group: int,
    at_ms: int | None,
    *,
    backup: str = "",
    folder: Path | None = None,
    tell: Callable[[int], None] = lambda _: None,
) -> Iterator[ShardAt]:
    """A shard at a time; None: as far as the archive goes. backup: begin with this one.

    folder: where the temporary engine lies while the block runs.

    Raises NotArchivedError, DamagedBackupError, NotStoredError.
    """
    base = _base(store, cluster_id, group, at_ms, backup)
    reach = read_head(store, cluster_id).get(group)
    with tempfile.TemporaryDirectory(prefix="mailraft-restore-", dir=folder) as name:
        engine = Store.open(Path(name), cluster_id=cluster_id, node=_NODE)
        try:
            found = _load(engine, store, base, tell)
            passed = found.apply(entries_after(store, cluster_id, group, base.index), at_ms)
            index = found.last_index
            if at_ms is not None and not passed:
                proven = reach is not None and index >= reach.index and reach.time_ms >= at_ms
                if not proven:
                    raise NotArchivedError(
                        f"shard {group} is not archived up to that time",
                        "see how far it goes: mailraft backup list",
                    )
            yield found
        finally:
            engine.close()


def _base(
    store: BackupStore, cluster_id: str, group: int, at_ms: int | None, backup: str
) -> ShardBackup:
    """What to begin with: the newest one whose clock is not above the time."""
    for each in reversed(backups(store, cluster_id)):
        shard = each.shard(group) if not backup or each.id == backup else None
        if shard is not None and (at_ms is None or shard.clock_ms <= at_ms):
            return shard
    raise NotArchivedError(
        f"there is no backup of shard {group} from before that time",
        "see what there is: mailraft backup list",
    )


def _load(
    engine: Store, store: BackupStore, base: ShardBackup, tell: Callable[[int], None]
) -> ShardAt:
    group = base.group
    engine.create_group(group, _REPLICA, _ALONE)
    generation = engine.burn_generation(group)
    engine.flush()
    sink = engine.receive(group, generation)
    applied = AppliedPosition(base.index, base.term, bytes.fromhex(base.digest))
    rows = checksum = 0
    try:
        for pack in packs(store, base, tell):
            sink.add(pack)
            rows += pack.row_count
            checksum = google_crc32c.extend(checksum, pack.crc32c.to_bytes(4, "little"))
        sink.finish(Totals(sink.packs_held, rows, checksum), applied)
    except SnapshotDamagedError as error:
        raise DamagedBackupError(f"the backup of shard {group}: {error}") from error
    log_base = LogBase(base.index, base.term, _ALONE)
    engine.write([InstallSnapshot(group, generation, log_base, applied.digest)])
    return ShardAt(engine, group, base.clock_ms)


def cut(entry: Entry, clock_ms: int, until_ms: int | None) -> tuple[Entry | None, int]:
    """What of an entry leaves the clock at or below until_ms, and the clock behind that.

    None: nothing of it. The entry itself: all of it. Bodies keep their ordinals.
    """
    if entry.kind is not EntryKind.COMMAND or until_ms is None:
        return entry, clock_ms
    batch = command_pb2.CommandBatch.FromString(entry.payload)
    for number, command in enumerate(batch.commands):
        if max(clock_ms, command.time_ms) > until_ms:
            if not number:
                return None, clock_ms
            del batch.commands[number:]
            payload = batch.SerializeToString(deterministic=True)
            return Entry(entry.index, entry.term, entry.kind, payload, entry.bodies), clock_ms
        clock_ms = max(clock_ms, command.time_ms)
    return entry, clock_ms

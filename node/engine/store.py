"""The storage engine of a node: logs, bodies and state of all its groups in one RocksDB.

All writes go into one stream in program order, unsynced; one flush makes everything before it
durable, for all groups. So what was applied can never be ahead of the log after a crash.

Threads: flush() belongs to a disk thread (it blocks on the disk and releases the GIL), everything
else to the event loop's. Neither imports asyncio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from mailraft.node import failpoints
from mailraft.node.engine import keys, records
from mailraft.node.engine.backend import Backend, Batch, DiskUsage, Watermark
from mailraft.node.engine.errors import (
    CorruptionError,
    DiskError,
    FileDamagedError,
    GroupExistsError,
    LostWritesError,
)
from mailraft.node.engine.folder import check_identity, make_folder
from mailraft.node.engine.generations import Generations, sweep, sweep_all
from mailraft.node.engine.groups import FIRST_GENERATION, GroupState, load_group, newborn
from mailraft.node.engine.log import GroupLog, configurations_in, estimate_bytes
from mailraft.node.engine.options import StoreOptions
from mailraft.node.engine.records import AppliedPosition, GroupBirth, Identity
from mailraft.node.engine.rocks import RocksBackend
from mailraft.node.engine.snapshot import SnapshotSink, SnapshotSource
from mailraft.node.engine.view import StateView
from mailraft.node.engine.watermark import FileWatermark
from mailraft.node.engine.writes import carry_out, put_group
from mailraft.node.interfaces import (
    ApplyWrite,
    Configuration,
    GroupId,
    LogBase,
    ReplicaId,
    StoredLog,
    Write,
)

# Raft's log begins behind a first entry that every replica is born with (pysyncobj's index 1).
BIRTH_INDEX: Final = 1
BIRTH_TERM: Final = 0

DATABASE_FOLDER: Final = "db"
WATERMARK_FILE: Final = "watermark"
COPY_FOLDER: Final = "db-copy"


class Store:
    """One node's folder, open. Made by Store.open()."""

    def __init__(self, backend: Backend, watermark: Watermark) -> None:
        self._backend = backend
        self._watermark = watermark
        self._groups: dict[GroupId, GroupState] = {}
        self._generations = Generations(backend)
        self._failed: DiskError | None = None
        self._owner = Identity("", 0)

    @property
    def feature_level(self) -> int:
        """The cluster's, as this folder was told."""
        return self._owner.feature_level

    @classmethod
    def open(
        cls, path: Path, *, cluster_id: str, node: int, options: StoreOptions | None = None
    ) -> Self:
        """Open a node's folder, or make a new one.

        Everything that is found is durable when this returns.

        Raises:
            StoreLockedError: another process has it open.
            WrongClusterError, WrongNodeError: it is somebody else's.
            LostWritesError, CorruptionError: every replica in it has to step aside.
            UnknownFormatError: a newer release wrote it.
            DiskError, DiskFullError: the disk does not do its work.
            OSError: the folder cannot be made.
        """
        make_folder(path / DATABASE_FOLDER)
        backend = RocksBackend(path / DATABASE_FOLDER, options or StoreOptions())
        try:
            watermark = FileWatermark(path / WATERMARK_FILE)
            store = cls(backend, watermark)
            store.claim(Identity(cluster_id, node), where=str(path))
        except BaseException:
            backend.close()
            raise
        return store

    def claim(self, identity: Identity, *, where: str) -> None:
        """Check whose folder it is and that nothing durable is missing; a new one becomes ours."""
        data = self._backend.get(keys.META, keys.NODE)
        self._owner = identity
        if data is not None:
            self._owner = records.decode_identity(data)
            check_identity(self._owner, identity, where)
        self._check_nothing_lost(known=data is not None, where=where)
        if data is None:
            # The mark first: a folder that has an identity has had a mark ever since.
            self._watermark.record(self._backend.sequence, force=True)
            batch = self._backend.batch()
            batch.put(keys.META, keys.NODE, records.encode_identity(identity))
            self._write(batch)
        self._sweep()
        self._watermark.record(self._sync(), force=True)

    def raise_feature_level(self, level: int) -> None:
        """No version that does not understand it opens this folder any more, from when this
        returns: what the level allows may be in it from now on.
        """
        if level <= self.feature_level:
            return
        self._owner = replace(self._owner, feature_level=level)
        batch = self._backend.batch()
        batch.put(keys.META, keys.NODE, records.encode_identity(self._owner))
        self._write(batch)
        self._sync()

    # ---- groups ----------------------------------------------------------------------------------

    def create_group(
        self,
        group: GroupId,
        replica: ReplicaId,
        configuration: Configuration,
        *,
        amnesic: bool = False,
        lost: bool = False,
    ) -> None:
        """A new replica with an empty log, on disk when this returns. Again with the same: nothing.

        `amnesic`: it may have lived before, on a disk that is lost, and does not vote until it has
        found out. `lost`: it has lived, for certain.

        Raises GroupExistsError when another replica, or another birth of this one, is there.
        """
        if self._backend.get(keys.META, keys.group_record(group)) is not None:
            found = self._state(group).birth
            # Once its log was compacted the birth is forgotten, and the replica's id has to do.
            same_birth = found.base.index > BIRTH_INDEX or (
                found.base.configuration == configuration
            )
            if found.replica != replica or not same_birth:
                raise GroupExistsError(
                    f"group {group} has replica {found.replica:#x} here (configuration "
                    f"{found.base.configuration.version}), not {replica:#x} "
                    f"(configuration {configuration.version})"
                )
            return
        gone = self._backend.get(keys.META, keys.gone_group(group))
        generation = FIRST_GENERATION if gone is None else keys.U32.unpack(gone)[0] + 1
        birth = GroupBirth(
            replica,
            LogBase(BIRTH_INDEX, BIRTH_TERM, configuration),
            generation,
            generation,
            amnesic,
            lost=lost,
        )
        batch = self._backend.batch()
        batch.put(keys.META, keys.group_record(group), records.encode_group(birth))
        self._write(batch)
        self._sync()
        self._groups[group] = newborn(group, birth)

    def remove_group(self, group: GroupId) -> None:
        """Forget a replica that is a member no more; its rows go once nobody reads them.

        Nothing where there is none. Durable with the next flush: until then it may come back.
        """
        if self._backend.get(keys.META, keys.group_record(group)) is None:
            return
        birth = self._state(group).birth
        batch = self._backend.batch()
        batch.delete(keys.META, keys.group_record(group))
        batch.delete(keys.META, keys.hard_state(group))
        batch.put(keys.META, keys.gone_group(group), keys.U32.pack(birth.burnt_generation))
        batch.delete_range(
            keys.LOG, keys.log_entry(group, 0), keys.log_entry(group, keys.INDEX_END)
        )
        self._write(batch)
        del self._groups[group]
        self._generations.retire(group, birth.generation)
        self.drop_retired()

    def groups(self) -> list[tuple[GroupId, ReplicaId]]:
        """Every group with a replica here, by ascending number."""
        rows = self._backend.scan(keys.META, *keys.GROUP_RECORDS)
        return [
            (keys.group_of_record(key), records.decode_group(value).replica) for key, value in rows
        ]

    def load(self, group: GroupId) -> StoredLog:
        """What a replica starts from. Verifies both ends of its log, not all that is between.

        Raises UnknownGroupError, LogCorruptError, CorruptionError.
        """
        state = self._state(group)
        if state.birth.diverged:
            raise CorruptionError(f"the state of group {group} is not that of its other replicas")
        base, last_term = state.birth.base, state.birth.base.term
        if state.last_index > base.index:
            log = self.log(group)
            log.term(base.index + 1)
            last_term = log.entries(state.last_index, state.last_index, 0)[0].term
        if state.applied.index > state.last_index:
            raise records.log_corrupt(
                group,
                state.applied.index,
                f"it was applied, but the log ends at {state.last_index}",
            )
        return StoredLog(
            replica=state.birth.replica,
            base=base,
            hard_state=state.hard_state,
            last_index=state.last_index,
            last_term=last_term,
            applied_index=state.applied.index,
            log_bytes=estimate_bytes(self._backend, state),
            amnesic=state.birth.amnesic,
            lost=state.birth.lost,
            configurations=configurations_in(self._backend, state),
        )

    def log(self, group: GroupId) -> GroupLog:
        self._state(group)
        return GroupLog(self._backend, self._groups, group)

    def view(self, group: GroupId) -> StateView:
        """Of the generation that is live now; holding it keeps that generation on disk."""
        return self._generations.view(self._state(group))

    def body(self, group: GroupId, index: int, ordinal: int) -> bytes | None:
        """A packed body, or None. Its own header proves it (mailraft.wire.bodies)."""
        generation = self._state(group).birth.generation
        return self._backend.get(keys.BODY, keys.body(group, generation, index, ordinal))

    def bodies(self, group: GroupId, *, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys and bytes of all bodies of applied entries, by position, as they are now; behind a
        key. Past the cache.
        """
        state = self._state(group)
        number, generation = state.group, state.birth.generation
        end = keys.body(number, generation, state.applied.index + 1)
        start = max(keys.body(number, generation, 0), after + b"\0" * bool(after))
        return self._backend.scan(keys.BODY, start, end, cache=False)

    def log_range(self, group: GroupId) -> tuple[int, int]:
        """Index of the entry that the log begins behind, and of its last one."""
        state = self._state(group)
        return state.birth.base.index, state.last_index

    def rows(self, group: GroupId, *, after: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of all that the state machine keeps, behind a key, past the cache."""
        prefix = self._state(group).state_prefix
        start, end = prefix + after + b"\0" * bool(after), keys.after(prefix)
        for key, value in self._backend.scan(keys.STATE, start, end, cache=False):
            yield key[len(prefix) :], value

    def is_lost(self, group: GroupId) -> bool:
        """Whether the replica began again after damage, and does not know yet what it promised."""
        return self._state(group).birth.lost

    def on_damage(self, told: Callable[[FileDamagedError], None]) -> None:
        """Have it told at once that a damaged file was met, whoever catches the error."""
        self._backend.on_damage = told

    def copy_to(self, folder: Path) -> None:
        """Keep what is in this store now in `folder`, for as long as that is there. Raises
        DiskError.
        """
        self._backend.copy_to(folder / COPY_FOLDER)

    def applied(self, group: GroupId) -> tuple[int, int, bytes]:
        """(index, term, digest) of the last applied entry; the base's when none was."""
        found = self._state(group).applied
        return found.index, found.term, found.digest

    def digests(self, group: GroupId) -> tuple[AppliedPosition, ...]:
        """Of the newest applied entry, and before it of some that every replica keeps, ascending.

        A digest covers all that was applied before it. So only the newest is on disk, and a
        replica that starts, or was just installed, has no others yet.
        """
        state = self._state(group)
        return tuple(dict.fromkeys((*state.marks, state.applied)))

    def is_set_aside(self, group: GroupId) -> bool:
        """Whether set_aside() was ever called on this replica."""
        return self._state(group).birth.diverged

    def set_aside(self, group: GroupId) -> None:
        """This replica's state is not that of its peers: load() refuses it from now on. Durable
        with the next flush.
        """
        state = self._state(group).copy()
        state.birth = replace(state.birth, diverged=True)
        batch = self._backend.batch()
        put_group(batch, state)
        self._write(batch)
        self._groups[group] = state

    # ---- writes ----------------------------------------------------------------------------------

    def write(self, writes: Iterable[Write]) -> int:
        """Carry out writes in order, together or not at all, and visible at once.

        Answers a sequence number: durable when flush() has answered that or more.

        Raises:
            InvalidWriteError: a bug of the caller; nothing was written.
            DiskError, DiskFullError: the store takes no more writes; end the process.
        """
        batch = self._backend.batch()
        changed: dict[GroupId, GroupState] = {}
        applied: list[tuple[GroupState, ApplyWrite]] = []
        for write in writes:
            state = changed.get(write.group)
            if state is None:
                state = changed[write.group] = self._state(write.group).copy()
            carry_out(self._backend, self._generations, batch, state, write)
            if isinstance(write, ApplyWrite):
                applied.append((state, write))
        sequence = self._write(batch)
        for state, applying in applied:
            self._generations.changed(state, applying.effects)
        for group, state in changed.items():  # tidy: a plain dict
            before, self._groups[group] = self._groups[group].birth, state
            if before.generation != state.birth.generation:
                failpoints.hit("snapshot.after_flip")
                self._generations.retire(group, before.generation)
            elif before.base != state.birth.base:
                failpoints.hit("compaction.after")
        return sequence

    # ---- snapshots (snapshot.py) -----------------------------------------------------------------

    def snapshot(self, group: GroupId, *, bodies_above: int = 0) -> SnapshotSource:
        """What a group has applied, pinned now: what is written later does not show in it. Without
        the bodies of entries up to `bodies_above`.
        """
        return SnapshotSource(self._backend, self._state(group), bodies_above)

    def burn_generation(self, group: GroupId) -> int:
        """A new generation to receive a snapshot into. Flush before its first row is ingested:
        a number that is not on disk could be given again, and rows of two tries would mix.
        """
        state = self._state(group).copy()
        number = state.burn()
        batch = self._backend.batch()
        put_group(batch, state)
        self._write(batch)
        self._groups[group] = state
        return number

    def receive(self, group: GroupId, generation: int) -> SnapshotSink:
        """Where the packs of a snapshot go; `generation` was burnt and flushed."""
        state = self._state(group)
        assert state.birth.generation < generation <= state.birth.burnt_generation
        return SnapshotSink(self._backend, group, generation)

    def drop_generation(self, group: GroupId, generation: int) -> None:
        """Remove what a snapshot left that never came to life, of a replica that may be gone."""
        if group in self._groups and generation == self._groups[group].birth.generation:
            raise AssertionError(f"generation {generation} of group {group} is live")
        self._generations.retire(group, generation)
        self.drop_retired()

    def drop_retired(self) -> None:
        """Remove generations that are live no more, once their last view is gone."""
        batch = self._backend.batch()
        if self._generations.drop_unread(batch):
            failpoints.hit("snapshot.before_drop")
            self._write(batch)
            failpoints.hit("snapshot.after_drop")

    def flush(self) -> int:
        """Make durable whatever was written before the call; answers its sequence number.

        Blocks on the disk: for the disk thread only. Raises DiskError, DiskFullError; then what
        is durable is unknown, and every later write and flush fails too.
        """
        sequence = self._sync()
        try:
            self._watermark.record(sequence)
        except DiskError as error:
            self._failed = error
            raise
        return sequence

    @property
    def sequence(self) -> int:
        """Of the latest write."""
        return self._backend.sequence

    @property
    def watermark_pending(self) -> bool:
        """True when the last flush is not in the watermark yet.

        The runtime flushes once more after watermark.INTERVAL_SECONDS, so that a burst before a
        silence is covered as well.
        """
        return self._watermark.pending

    # ---- the disk --------------------------------------------------------------------------------

    def disk_usage(self) -> DiskUsage:
        """Of the file system that the folder is on."""
        return self._backend.usage()

    def free_bytes(self) -> int:
        return self.disk_usage().free_bytes

    def approximate_bytes(self) -> int:
        """What this store's files take of the disk. Walks the folder: not for every request."""
        return self._backend.approximate_bytes()

    def figures(self, names: Sequence[str]) -> dict[str, dict[str, int]]:
        """RocksDB's own figures, by its names and by family. Of a store that is closed: none."""
        return {} if self._backend.closed else self._backend.figures(names)

    def close(self) -> None:
        """Flush and let go of the folder; the disk thread has to be idle. Again: nothing.

        Raises DiskError, DiskFullError. After a failed write or flush nothing is flushed.
        """
        backend = self._backend
        try:
            if self._failed is None and not backend.closed:
                self._watermark.record(self._sync(), force=True)
        finally:
            self._watermark.close()
            backend.close()

    # ---- inside ----------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Remove what an earlier process left of snapshots: half received, or replaced."""
        self._backend.drop_tables()
        batch = self._backend.batch()
        rows = self._backend.scan(keys.META, *keys.GROUP_RECORDS)
        for key, value in rows:
            sweep(self._backend, batch, keys.group_of_record(key), records.decode_group(value))
        for key, value in self._backend.scan(keys.META, *keys.GONE_GROUPS):
            group = keys.group_of_record(key)
            if self._backend.get(keys.META, keys.group_record(group)) is None:
                sweep_all(self._backend, batch, group, keys.U32.unpack(value)[0])
        self._write(batch)

    def _state(self, group: GroupId) -> GroupState:
        state = self._groups.get(group)
        if state is None:
            state = self._groups[group] = load_group(self._backend, group)
        return state

    def _write(self, batch: Batch) -> int:
        self._check_failed()
        try:
            return self._backend.write(batch)
        except DiskError as error:
            self._failed = error
            raise

    def _sync(self) -> int:
        self._check_failed()
        try:
            return self._backend.flush()
        except DiskError as error:
            self._failed = error
            raise

    def _check_failed(self) -> None:
        # A failed sync may have dropped dirty pages: one that succeeds later proves nothing.
        if self._failed is not None:
            raise type(self._failed)(f"an earlier write failed: {self._failed}")

    def _check_nothing_lost(self, *, known: bool, where: str) -> None:
        mark, found = self._watermark.sequence, self._backend.sequence
        if mark is None and not known:
            return
        if mark is None:
            reason = f"its {WATERMARK_FILE} file is missing"
        elif found < mark:
            reason = f"change {mark} was durable, but the last one found is {found}"
        else:
            return
        raise LostWritesError(
            f"{where} has lost writes: {reason}. Acknowledged mail may be missing from it, so it "
            "may not vote. Move the folder away and let the node be rebuilt from its peers"
        )

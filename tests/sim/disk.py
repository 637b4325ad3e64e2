"""A disk for the deterministic simulator: forgets what was not flushed, and lies when told to.

SimDisk is the real Store over a sorted dict instead of RocksDB, so records, keys, checksums and
the rules of a write are those that run in production; tests/unit/test_engine.py holds both to the
same promises. No clock, no randomness, no I/O: a simulator draws its faults itself.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mailraft.node.engine import keys, records
from mailraft.node.engine.backend import Batch, DiskUsage, Table
from mailraft.node.engine.errors import (
    CorruptionError,
    DiskError,
    FileDamagedError,
    StoreClosedError,
)
from mailraft.node.engine.generations import Generations
from mailraft.node.engine.records import Identity
from mailraft.node.engine.store import Store

CAPACITY_BYTES = 1 << 40


class SimDisk(Store):
    """A Store that survives crash() with what its disk had. Synchronous and in memory."""

    def __init__(self, *, cluster_id: str = "sim", node: int = 1) -> None:
        self._identity = Identity(cluster_id, node)
        self._memory = MemoryBackend()
        super().__init__(self._memory, MemoryWatermark())
        self.claim(self._identity, where=f"disk of node {node}")

    # ---- what a simulator does to it -------------------------------------------------------------

    @property
    def unflushed_bytes(self) -> int:
        """How much a crash can take: the bound to draw survive_bytes from."""
        return self._memory.unflushed_bytes

    def flush(self, upto: int | None = None) -> int:
        """As Store.flush; with `upto` only writes to that sequence number become durable.

        A flush takes time: take `sequence` where it begins, and call this where it ends.
        """
        self._memory.flush_limit = upto
        try:
            return super().flush()
        finally:
            self._memory.flush_limit = None

    def crash(self, *, survive_bytes: int = 0) -> None:
        """Lose what was not flushed, and start again as a new process would.

        The operating system may have written some of it by itself: the first survive_bytes are
        kept. A write that is cut there is torn, and recovery drops the whole of it. Logs and
        views from before raise StoreClosedError. After close() it is a restart: nothing is lost.
        """
        crashed, self._memory = self._memory, self._memory.after_crash(survive_bytes)
        crashed.close()
        self._backend = self._memory
        self._groups = {}
        self._generations = Generations(self._memory)
        self._failed = None
        self.claim(self._identity, where=f"disk of node {self._identity.node}")

    def holds_durably(self, group: int, index: int, term: int) -> bool:
        """Whether a power cut at this moment would leave this very entry in the group's log.

        What was compacted away was committed, so it counts as held.
        """
        durable = self._memory.durable
        birth = durable[keys.META].values.get(keys.group_record(group))
        if birth is not None and records.decode_group(birth).base.index >= index:
            return True
        row = durable[keys.LOG].values.get(keys.log_entry(group, index))
        return row is not None and records.parse_entry(group, index, row).term == term

    def term(self, group: int, index: int) -> int | None:
        """The term of an entry of the log, or of the one that the log begins behind."""
        base = self._state(group).birth.base
        return base.term if index == base.index else self.log(group).term(index)

    def damage(self, family: str, key: bytes) -> None:
        """Reading this row raises CorruptionError from now on, as RocksDB's block checksums do."""
        self._memory.damaged.add((family, key))

    def flip_bit(self, family: str, key: bytes, bit: int) -> None:
        """Change a row behind every checksum but the engine's own."""
        self._memory.flip_bit(family, key, bit)

    def fail_with(self, error: DiskError | None) -> None:
        """Every write and flush raises this, until crash()."""
        self._memory.failure = error


class MemoryWatermark:
    """As backend.Watermark: on a disk of its own that never fails."""

    def __init__(self) -> None:
        self.sequence: int | None = None
        self.pending = False

    def record(self, sequence: int, *, force: bool = False) -> None:
        self.sequence = max(sequence, self.sequence or 0)

    def close(self) -> None:
        """Nothing to let go of."""


class MemoryBatch:
    def __init__(self) -> None:
        self.steps: list[tuple[str, str, bytes, bytes]] = []

    def put(self, family: str, key: bytes, value: bytes) -> None:
        self.steps.append(("put", family, key, value))

    def into(self, family: str) -> Callable[[bytes, bytes], None]:
        return lambda key, value: self.put(family, key, value)

    def delete(self, family: str, key: bytes) -> None:
        self.steps.append(("delete", family, key, b""))

    def delete_range(self, family: str, start: bytes, end: bytes) -> None:
        if start < end:
            self.steps.append(("delete_range", family, start, end))

    @property
    def size_bytes(self) -> int:
        return sum(len(key) + len(value) + 8 for _, _, key, value in self.steps)


class Rows:
    """One column family: a dict with its keys in order."""

    def __init__(self, values: dict[bytes, bytes] | None = None) -> None:
        self.values = dict(values or {})
        self.order = sorted(self.values)

    def carry_out(self, step: str, key: bytes, value: bytes) -> None:
        if step == "put":
            if key not in self.values:
                insort(self.order, key)
            self.values[key] = value
        elif step == "delete":
            if self.values.pop(key, None) is not None:
                del self.order[bisect_left(self.order, key)]
        else:
            low, high = bisect_left(self.order, key), bisect_left(self.order, value)
            for gone in self.order[low:high]:
                del self.values[gone]
            del self.order[low:high]


class MemoryTable:
    """As backend.Table: gone with the process unless it was ingested."""

    def __init__(self) -> None:
        self.rows: list[tuple[bytes, bytes]] = []
        self.size_bytes = 0
        self.finished = False

    def put(self, key: bytes, value: bytes) -> None:
        assert not self.finished
        assert not self.rows or key > self.rows[-1][0]
        self.rows.append((key, value))
        self.size_bytes += len(key) + len(value)

    def finish(self) -> None:
        assert self.rows
        self.finished = True

    def discard(self) -> None:
        self.rows.clear()


Families = dict[str, Rows]


def _carry_out(families: Families, batch: MemoryBatch) -> None:
    for step, family, key, value in batch.steps:
        families[family].carry_out(step, key, value)


def _copy(families: Families) -> Families:
    return {family: Rows(families[family].values) for family in keys.COLUMN_FAMILIES}


class MemoryBackend:
    """As backend.Backend: `live` is what readers see, `durable` what a crash leaves."""

    def __init__(self) -> None:
        self.live: Families = {family: Rows() for family in keys.COLUMN_FAMILIES}
        self.durable = _copy(self.live)
        self.damaged: set[tuple[str, bytes]] = set()
        self.on_damage: Callable[[FileDamagedError], None] = lambda _: None
        self.failure: DiskError | None = None
        self.flush_limit: int | None = None
        self.closed = False
        self._sequence = 0
        self._durable_sequence = 0
        self._unflushed: list[tuple[int, MemoryBatch]] = []

    @property
    def sequence(self) -> int:
        self._check_open()
        return self._sequence

    @property
    def unflushed_bytes(self) -> int:
        return sum(batch.size_bytes for _, batch in self._unflushed)

    def get(self, family: str, key: bytes) -> bytes | None:
        self._check_open()
        self._check_whole(family, key)
        return self.live[family].values.get(key)

    def get_many(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.get(family, key) for key in keys]

    def scan(
        self, family: str, start: bytes, end: bytes, *, reverse: bool = False, cache: bool = True
    ) -> Iterator[tuple[bytes, bytes]]:
        self._check_open()
        rows = self.live[family]
        found = rows.order[bisect_left(rows.order, start) : bisect_left(rows.order, end)]
        if reverse:
            found.reverse()
        return self._walk(family, [(key, rows.values[key]) for key in found])

    def batch(self) -> MemoryBatch:
        self._check_open()
        return MemoryBatch()

    def write(self, batch: Batch) -> int:
        assert isinstance(batch, MemoryBatch)
        self._check_open()
        self._check_works()
        if batch.steps:
            self._sequence += len(batch.steps)
            self._unflushed.append((self._sequence, batch))
            _carry_out(self.live, batch)
            self.damaged.difference_update(
                (family, key) for step, family, key, _ in batch.steps if step == "put"
            )
        return self._sequence

    def flush(self) -> int:
        self._check_open()
        self._check_works()
        limit = self._sequence if self.flush_limit is None else self.flush_limit
        kept = [(sequence, batch) for sequence, batch in self._unflushed if sequence > limit]
        for sequence, batch in self._unflushed[: len(self._unflushed) - len(kept)]:
            _carry_out(self.durable, batch)
            self._durable_sequence = sequence
        self._unflushed = kept
        return self._durable_sequence

    def copy_to(self, path: Path) -> None:
        raise AssertionError(f"there is no folder to keep {path} in")

    def table(self, family: str) -> MemoryTable:
        self._check_open()
        self._check_works()
        return MemoryTable()

    def ingest(self, family: str, tables: Sequence[Table]) -> None:
        """Durable at once, past the log, as RocksDB's: only what is written later can need it."""
        self._check_open()
        self._check_works()
        for table in tables:
            assert isinstance(table, MemoryTable)
            assert table.finished
            for key, value in table.rows:
                assert key not in self.live[family].values, "a generation is never given twice"
                self.live[family].carry_out("put", key, value)
                self.durable[family].carry_out("put", key, value)

    def drop_tables(self) -> None:
        """They are in memory: gone already."""

    def usage(self) -> DiskUsage:
        return DiskUsage(CAPACITY_BYTES, CAPACITY_BYTES - self.approximate_bytes())

    def figures(self, names: Sequence[str]) -> dict[str, dict[str, int]]:
        return {}

    def approximate_bytes(self) -> int:
        return sum(
            len(key) + len(value)
            for rows in self.live.values()  # tidy: a plain dict
            for key, value in rows.values.items()  # tidy: a plain dict
        )

    def close(self) -> None:
        self.closed = True

    def after_crash(self, survive_bytes: int) -> MemoryBackend:
        """What a new process finds: flushed writes, and whole ones of the first survive_bytes."""
        found = MemoryBackend()
        found.live = _copy(self.durable)
        found.damaged = set(self.damaged)
        found._sequence = self._durable_sequence
        for sequence, batch in self._unflushed:
            survive_bytes -= batch.size_bytes
            if survive_bytes < 0:
                break
            found._sequence = sequence
            _carry_out(found.live, batch)
        found._durable_sequence = found._sequence
        # Recovery writes what it found into tables, synced: durable before anyone reads it.
        found.durable = _copy(found.live)
        return found

    def flip_bit(self, family: str, key: bytes, bit: int) -> None:
        for rows in (self.live[family], self.durable[family]):
            if key in rows.values:
                value = bytearray(rows.values[key])
                value[bit // 8] ^= 1 << bit % 8
                rows.values[key] = bytes(value)

    def _walk(self, family: str, pairs: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        for key, value in pairs:
            self._check_open()
            self._check_whole(family, key)
            yield key, value

    def _check_open(self) -> None:
        if self.closed:
            raise StoreClosedError("the store was closed, or its machine has crashed")

    def _check_whole(self, family: str, key: bytes) -> None:
        if (family, key) in self.damaged:
            raise CorruptionError(f"damaged row {key.hex()} in {family}")

    def _check_works(self) -> None:
        if self.failure is not None:
            raise self.failure

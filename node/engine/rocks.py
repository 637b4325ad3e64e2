"""RocksDB behind backend.Backend. With options.py the only code that knows rocksdict's ways.

Every call but flush() holds the GIL: calls other than flush() belong to the event loop's thread,
flush() to the disk thread. rocksdict raises bare Exception with RocksDB's status as its text.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

from rocksdict import (
    Checkpoint,
    ColumnFamily,
    DbClosedError,
    IngestExternalFileOptions,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    SstFileWriter,
    WriteBatch,
)

from mailraft.node import failpoints
from mailraft.node.engine import keys
from mailraft.node.engine.backend import Batch, DiskUsage, Table
from mailraft.node.engine.errors import (
    CorruptionError,
    DiskError,
    DiskFullError,
    EngineError,
    FileDamagedError,
    StoreClosedError,
    StoreLockedError,
)
from mailraft.node.engine.folder import check_manifest
from mailraft.node.engine.options import StoreOptions, database_options, family_options

INCOMING_FOLDER = "incoming"  # tables of a snapshot that is being received

_FULL = ("No space left on device", "Disk quota exceeded")
_UNREADABLE = "Input/output error"


class RocksBatch:
    def __init__(self, handles: dict[str, ColumnFamily]) -> None:
        self.raw = WriteBatch(raw_mode=True)
        self._handles = handles

    def put(self, family: str, key: bytes, value: bytes) -> None:
        self.raw.put(key, value, self._handles[family])

    def into(self, family: str) -> Callable[[bytes, bytes], None]:
        put, handle = self.raw.put, self._handles[family]
        # By position: rocksdict takes twice as long with an argument that is named.
        return lambda key, value: put(key, value, handle)

    def delete(self, family: str, key: bytes) -> None:
        self.raw.delete(key, self._handles[family])

    def delete_range(self, family: str, start: bytes, end: bytes) -> None:
        # A reversed range is an error that RocksDB latches: every later write would fail.
        if start < end:
            self.raw.delete_range(start, end, self._handles[family])


class RocksTable:
    """A table file beside the database, on the same file system, so that it is moved in."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self._bytes = 0
        self._writer = SstFileWriter(options)
        try:
            self._writer.open(str(path))
        except Exception as error:
            raise _write_error("open a table", error) from error

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def put(self, key: bytes, value: bytes) -> None:
        try:
            self._writer[key] = value
        except Exception as error:
            raise _write_error("write a table", error) from error
        self._bytes += len(key) + len(value)

    def finish(self) -> None:
        try:
            self._writer.finish()
        except Exception as error:
            raise _write_error("finish a table", error) from error

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


class RocksBackend:
    """One open RocksDB. Families are its column families of keys.COLUMN_FAMILIES."""

    def __init__(self, path: Path, options: StoreOptions) -> None:
        """Open or create. Raises StoreLockedError, CorruptionError, DiskError, DiskFullError."""
        self._path = path
        self.on_damage: Callable[[FileDamagedError], None] = lambda _: None
        self._incoming = path.with_name(INCOMING_FOLDER)
        self._tables = 0
        self._options = family_options(options)
        check_manifest(path)
        try:
            db = Rdict(str(path), database_options(options), self._options)
            self._families = {name: db.get_column_family(name) for name in keys.COLUMN_FAMILIES}
            self._handles = {
                name: db.get_column_family_handle(name) for name in keys.COLUMN_FAMILIES
            }
        except Exception as error:
            raise _open_error(path, error) from error
        self._db: Rdict | None = db

    @property
    def sequence(self) -> int:
        return self._open().latest_sequence_number()

    @property
    def closed(self) -> bool:
        return self._db is None

    def get(self, family: str, key: bytes) -> bytes | None:
        try:
            failpoints.hit("disk.read")
            return cast("bytes | None", self._families[family].get(key))
        except Exception as error:
            raise self._unread(error) from error

    def get_many(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        try:
            failpoints.hit("disk.read")
            return cast("list[bytes | None]", self._families[family].get(list(keys)))
        except Exception as error:
            raise self._unread(error) from error

    def scan(
        self, family: str, start: bytes, end: bytes, *, reverse: bool = False, cache: bool = True
    ) -> Iterator[tuple[bytes, bytes]]:
        if start >= end:
            return iter(())
        # set_iterate_lower_bound sets the *upper* bound (rocksdict 0.3.29): never used here.
        bounds = ReadOptions()
        bounds.set_iterate_upper_bound(end)
        bounds.fill_cache(cache)  # type: ignore[call-arg]  # its stub lacks the argument
        try:
            failpoints.hit("disk.read")
            cursor = self._families[family].iter(bounds)
        except Exception as error:
            raise self._unread(error) from error
        walk = _descend if reverse else _ascend
        return walk(cursor, bounds, start, self._unread)

    def batch(self) -> RocksBatch:
        self._open()
        return RocksBatch(self._handles)

    def write(self, batch: Batch) -> int:
        assert isinstance(batch, RocksBatch)
        db = self._open()
        try:
            if not batch.raw.is_empty():
                db.write(batch.raw)
            return db.latest_sequence_number()
        except Exception as error:
            raise self._unwritten("write", error) from error

    def flush(self) -> int:
        db = self._open()
        try:
            sequence = db.latest_sequence_number()
            failpoints.hit("disk.sync")
            db.flush_wal(sync=True)
            return sequence
        except Exception as error:
            raise self._unwritten("flush", error) from error

    def table(self, family: str) -> RocksTable:
        self._open()
        self._incoming.mkdir(exist_ok=True)
        self._tables += 1
        path = self._incoming / f"{self._tables:06}-{family}.sst"
        return RocksTable(path, self._options[family])

    def ingest(self, family: str, tables: Sequence[Table]) -> None:
        """Holds the loop for about 15 ms: once a snapshot, at its receiver."""
        self._open()
        options = IngestExternalFileOptions()
        options.set_move_files(True)
        paths = [str(table.path) for table in tables if isinstance(table, RocksTable)]
        try:
            self._families[family].ingest_external_file(paths, options)
        except Exception as error:
            if "Corruption" in str(error):
                raise CorruptionError(str(error)) from error
            raise _write_error("ingest", error) from error

    def drop_tables(self) -> None:
        shutil.rmtree(self._incoming, ignore_errors=True)

    def usage(self) -> DiskUsage:
        found = os.statvfs(self._path)
        return DiskUsage(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    def approximate_bytes(self) -> int:
        return sum(map(_allocated_bytes, self._path.iterdir()))

    def figures(self, names: Sequence[str]) -> dict[str, dict[str, int]]:
        self._open()
        families = list(self._families)
        return {
            name: {each: self._families[each].property_int_value(name) or 0 for each in families}
            for name in names
        }

    def copy_to(self, path: Path) -> None:
        db = self._open()
        try:
            Checkpoint(db).create_checkpoint(str(path))
        except Exception as error:
            raise _write_error("copy", error) from error

    def close(self) -> None:
        """Let go of the folder. RocksDB writes its memtables out first, so it may take a while.

        Its lock is released when the last scan is dropped too. Raises DiskError.
        """
        db, self._db = self._db, None
        families = list(self._families.values())  # tidy: a plain dict
        # Emptied, not replaced: a batch that somebody kept would hold the lock through them.
        self._families.clear()
        self._handles.clear()
        if db is None:
            return
        try:
            for family in families:
                family.close()
            db.close()
        except Exception as error:
            raise _write_error("close", error) from error

    def _open(self) -> Rdict:
        if self._db is None:
            raise StoreClosedError(f"{self._path} was closed")
        return self._db

    def _unread(self, error: Exception) -> EngineError:
        """What a read failed with; damage is told at once, whoever catches it."""
        told = _read_error(error)
        if isinstance(told, FileDamagedError):
            self.on_damage(told)
        return told

    def _unwritten(self, what: str, error: Exception) -> DiskError:
        """RocksDB takes no writes any more once a compaction has read something damaged."""
        if "Corruption" in str(error):
            self.on_damage(FileDamagedError(str(error)))
        return _write_error(what, error)


# rocksdict copies the address of a bound, not its bytes: `bounds` has to live as long as the
# cursor seeks and steps, or the scan ends anywhere. Hence the parameter that nothing reads.


_Told = Callable[[Exception], EngineError]


def _ascend(
    cursor: RdictIter, bounds: ReadOptions, start: bytes, told: _Told
) -> Iterator[tuple[bytes, bytes]]:
    try:
        cursor.seek(start)
        while cursor.valid():
            yield cursor.key(), cursor.value()
            cursor.next()
        cursor.status()
    except Exception as error:
        raise told(error) from error
    finally:
        del cursor, bounds  # in this order


def _descend(
    cursor: RdictIter, bounds: ReadOptions, start: bytes, told: _Told
) -> Iterator[tuple[bytes, bytes]]:
    try:
        cursor.seek_to_last()
        while cursor.valid():
            key = cursor.key()
            if key < start:
                return
            yield key, cursor.value()
            cursor.prev()
        cursor.status()
    except Exception as error:
        raise told(error) from error
    finally:
        del cursor, bounds  # in this order


def _allocated_bytes(path: Path) -> int:
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:  # RocksDB deleted it meanwhile
        return 0


def _open_error(path: Path, error: Exception) -> EngineError:
    text = " ".join(str(error).split())  # RocksDB's may be several lines
    if "/LOCK:" in text:
        return StoreLockedError(
            f"{path} is in use: another process (or an unfinished scan of this one) has it open. "
            "Stop the other mailraft node, or give this one a folder of its own"
        )
    # CURRENT may name a file that is not there, or never was.
    names_nothing = "/MANIFEST-" in text and "No such file" in text
    if "Corruption" in text or names_nothing or _UNREADABLE in text:
        return FileDamagedError(
            f"{path} does not open: {text}. Move the folder away and let the node be rebuilt "
            "from its peers"
        )
    return _write_error("open", error)


def _read_error(error: Exception) -> EngineError:
    if isinstance(error, DbClosedError | KeyError):
        return StoreClosedError("the store was closed")
    # A sector that cannot be read is as lost as one that reads as something else.
    if "Corruption" in str(error) or _UNREADABLE in str(error):
        return FileDamagedError(str(error))
    return DiskError(f"read: {error}")


def _write_error(what: str, error: Exception) -> DiskError:
    text = f"{what}: {error}"
    return DiskFullError(text) if any(reason in text for reason in _FULL) else DiskError(text)

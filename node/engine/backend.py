"""What the engine asks of the thing that keeps its bytes: ordered keys in families. Pure.

RocksDB is one (rocks.py), the disk of the deterministic simulator another: both carry the same
records under the same keys, so what the simulator tests is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mailraft.node.engine.errors import FileDamagedError


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Of the whole file system, which others may fill too."""

    total_bytes: int
    free_bytes: int  # what this process may still take

    @property
    def used_ratio(self) -> float:
        return 1 - self.free_bytes / self.total_bytes if self.total_bytes else 1.0


class Batch(Protocol):
    """Changes that are written together or not at all, carried out in order."""

    def put(self, family: str, key: bytes, value: bytes) -> None: ...

    def into(self, family: str) -> Callable[[bytes, bytes], None]:
        """What puts key and value into one family: for many of them."""

    def delete(self, family: str, key: bytes) -> None: ...

    def delete_range(self, family: str, start: bytes, end: bytes) -> None:
        """Remove start <= key < end; nothing when the range is empty or reversed."""


class Table(Protocol):
    """Rows of one family that are made beside the store and come into it at once."""

    def put(self, key: bytes, value: bytes) -> None:
        """Keys ascend."""

    @property
    def size_bytes(self) -> int: ...

    def finish(self) -> None:
        """No more rows; there is at least one. On disk when this returns. Raises DiskError."""

    def discard(self) -> None:
        """It will not be ingested."""


class Backend(Protocol):
    """Reads see every write made before them, flushed or not.

    on_damage: called once a damaged file is met, before the call that met it raises.
    """

    on_damage: Callable[[FileDamagedError], None]

    @property
    def sequence(self) -> int:
        """Number of the latest change. Rises with every write; only a crash makes it fall."""

    @property
    def closed(self) -> bool: ...

    def get(self, family: str, key: bytes) -> bytes | None:
        """Raises CorruptionError on damaged data."""

    def get_many(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """As get for each key, in order, and cheaper."""

    def scan(
        self, family: str, start: bytes, end: bytes, *, reverse: bool = False, cache: bool = True
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < end, pinned when called. cache: keep in memory what was read.

        Raises CorruptionError; never ends early.
        """

    def batch(self) -> Batch: ...

    def write(self, batch: Batch) -> int:
        """Write without waiting for the disk, in the order of the calls; answers the new sequence.

        Raises DiskError.
        """

    def flush(self) -> int:
        """Make everything written before the call durable; answers its sequence number.

        Raises DiskError.
        """

    def table(self, family: str) -> Table:
        """A new one. Raises DiskError."""

    def ingest(self, family: str, tables: Sequence[Table]) -> None:
        """Take finished tables of one family in, durable when this returns.

        Nothing may lie in their range, or have lain there. Raises DiskError, CorruptionError.
        """

    def drop_tables(self) -> None:
        """Remove every table that was not ingested."""

    def usage(self) -> DiskUsage: ...

    def approximate_bytes(self) -> int:
        """What the files take of the disk."""

    def copy_to(self, path: Path) -> None:
        """Make another store of what is in this one now, in a new folder beside it; what lies in
        files that are whole already is shared. Raises DiskError.
        """

    def figures(self, names: Sequence[str]) -> dict[str, dict[str, int]]:
        """What it tells of itself under these names, by family; in memory, without the disk."""

    def close(self) -> None: ...


class Watermark(Protocol):
    """Remembers, outside the backend, how much of it was durable."""

    @property
    def sequence(self) -> int | None:
        """The highest durable sequence number remembered; None when nothing was ever kept."""

    @property
    def pending(self) -> bool:
        """True when what was flushed last is not remembered yet: record again, after a while."""

    def record(self, sequence: int, *, force: bool = False) -> None:
        """Remember it, unless that was done a moment ago and force is not set. Raises DiskError."""

    def close(self) -> None: ...

"""Where backups lie: names and bytes. A folder is one place; an object store can be another."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from mailraft.cluster.errors import ClusterError, ExitCode

_HIDDEN = "."  # what is being written, and the lock


class StoreBusyError(ClusterError):
    """Something else changes the same store."""

    reason = "BACKUP_STORE_BUSY"


class NotStoredError(ClusterError):
    """A file of a backup is not there."""

    reason = "BACKUP_DAMAGED"


class NoStoreError(ClusterError):
    """There are no backups where they were looked for."""

    exit_code = ExitCode.USAGE
    reason = "NO_BACKUP_STORE"


class BackupStore(Protocol):
    """Names are paths with slashes. A file is there whole or not at all, and never changes unless
    it is put again.
    """

    def put(self, name: str, data: bytes) -> None:
        """Durable when this returns. Replaces what is there."""

    def get(self, name: str) -> bytes:
        """Raises NotStoredError."""

    def has(self, name: str) -> bool: ...

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Names that begin with it, in their order, and sizes in bytes."""

    def delete(self, name: str) -> None:
        """Nothing where there is none."""

    def lock(self) -> AbstractContextManager[None]:
        """For what adds backups or removes some: one at a time. Raises StoreBusyError."""


class Folder:
    """Implements BackupStore on a file system."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Raises NoStoreError unless it is there or may be made."""
        self._root = path
        if create:
            _make(path)
        elif not path.is_dir():
            raise NoStoreError(f"{path} is no folder", "name the folder of backups with --store")

    def put(self, name: str, data: bytes) -> None:
        path = self._root / name
        _make(path.parent)
        partial = path.parent / f"{_HIDDEN}{secrets.token_hex(8)}"
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync(path.parent)

    def get(self, name: str) -> bytes:
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            raise NotStoredError(f"{name} is missing", "look: mailraft backup verify") from None

    def has(self, name: str) -> bool:
        return (self._root / name).is_file()

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        start = self._root / prefix.rpartition("/")[0]
        for path in sorted(start.rglob("*")):
            name = path.relative_to(self._root).as_posix()
            if name.startswith(prefix) and path.is_file() and not path.name.startswith(_HIDDEN):
                yield name, path.stat().st_size

    def delete(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        descriptor = os.open(self._root / f"{_HIDDEN}lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreBusyError(
                    "another backup or prune works on this store", "wait until it has ended"
                ) from None
            yield
        finally:
            os.close(descriptor)


def _make(path: Path) -> None:
    """Make a folder and what leads to it, so that a power cut takes none of it away."""
    if not path.is_dir():
        _make(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Looks for changed bytes in the files of a store, past RocksDB and its caches.

Tables and blobs never change once they are whole: what they were when first seen is remembered, and
compared with what they are. Logs and manifests grow: each of their records has a checksum. What was
written wrong at first is found by reading rows (node/scrub.py), where RocksDB proves each block.

Reads block on the disk: for a worker thread.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xxhash

from mailraft.node.engine import log_blocks
from mailraft.node.engine.store import DATABASE_FOLDER, WATERMARK_FILE
from mailraft.node.engine.watermark import is_whole

CHUNK_BYTES: Final = 1 << 20
# A file is whole once nothing was done to it for so long (a table that was ingested may be given
# its sequence number in place) and its end is there.
SETTLED_S: Final = 5.0

# Formats of RocksDB: block_based_table (footer), blob_log_format (footer).
_TABLE_MAGIC: Final = (0x88E241B785F4CFF7).to_bytes(8, "little")
_BLOB_MAGIC: Final = (2395959).to_bytes(4, "little")
_BLOB_FOOTER_BYTES: Final = 32
_CURRENT = re.compile(rb"MANIFEST-\d{6,}\n")
# Nothing reads these: RocksDB writes them, each start a new OPTIONS.
UNREAD: Final = ("OPTIONS-", "IDENTITY", "rocksdict-config.json")


@dataclass(frozen=True, slots=True)
class Seen:
    """A whole file, as it was."""

    inode: int
    size_bytes: int
    digest: str


class FileLook:
    """One look at one file. `steps` reads it; then `wrong` says what is wrong with it, if anything,
    and `seen` what to remember.
    """

    def __init__(self, path: Path, before: Seen | None, *, settled_s: float = SETTLED_S) -> None:
        self._path, self._before, self._settled_s = path, before, settled_s
        self.wrong = ""
        self.seen: Seen | None = None

    def steps(self) -> Iterator[int]:
        """Yields bytes read. Nothing where the file is gone: RocksDB removes what it needs no more.

        Raises nothing: what cannot be read is wrong.
        """
        try:
            with self._path.open("rb", buffering=0) as file:
                # What the kernel has in memory says nothing of the disk; it drops what is clean.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                yield from self._look(file.fileno())
        except FileNotFoundError:
            return
        except OSError as error:
            self.wrong = f"cannot be read: {error.strerror}"

    def _look(self, file: int) -> Iterator[int]:
        name = self._path.name
        if name.endswith(".log") or name.startswith("MANIFEST-"):
            yield from self._records(file)
        elif name == WATERMARK_FILE:
            data = os.pread(file, CHUNK_BYTES, 0)
            yield len(data)
            self.wrong = "" if is_whole(data) else "a mark in it is damaged"
        else:
            yield from self._whole(file)

    def _whole(self, file: int) -> Iterator[int]:
        status = os.fstat(file)
        before = self._before
        if before is not None and before.inode != status.st_ino:
            before = None  # another one that took its name
        if before is None and not (
            self._is_settled(file) and _ended(self._path.name, file, status.st_size)
        ):
            return
        digest, at = xxhash.xxh3_128(), 0
        while data := os.pread(file, CHUNK_BYTES, at):
            digest.update(data)
            at += len(data)
            yield len(data)
        self.seen = Seen(status.st_ino, at, digest.hexdigest())
        if self._path.name == "CURRENT" and not _CURRENT.fullmatch(os.pread(file, 64, 0)):
            self.wrong = "it names no manifest"
        if before is not None and before != self.seen:
            self.wrong = "its bytes are not what they were"
        if self.wrong:
            self.seen = before

    def _records(self, file: int) -> Iterator[int]:
        """Its end may be being written, or was when its process was killed."""
        at, end = 0, os.fstat(file).st_size
        open_ended = not self._is_settled(file) or not self._is_newest()
        while data := os.pread(file, CHUNK_BYTES, at):
            for begin in range(0, len(data), log_blocks.BLOCK_BYTES):
                last = open_ended and at + begin + log_blocks.BLOCK_BYTES >= end
                if not log_blocks.is_whole(data[begin : begin + log_blocks.BLOCK_BYTES], last=last):
                    self.wrong = f"a record of it is damaged, in the block at {at + begin}"
                    return
            at += len(data)
            yield len(data)

    def _is_settled(self, file: int) -> bool:
        status = os.fstat(file)
        return time.time() - max(status.st_ctime, status.st_mtime) >= self._settled_s

    def _is_newest(self) -> bool:
        kind = "MANIFEST-*" if self._path.name.startswith("MANIFEST-") else "*.log"
        return self._path == max(self._path.parent.glob(kind))


def files_of(folder: Path) -> list[Path]:
    """What is looked at in a node's folder, in an order that stays."""
    kept = ("LOCK", "LOG")  # nothing in it; RocksDB's diary
    found = [
        path for path in (folder / DATABASE_FOLDER).iterdir() if not path.name.startswith(kept)
    ]
    return [*sorted(found), folder / WATERMARK_FILE]


def _ended(name: str, file: int, size_bytes: int) -> bool:
    if name.endswith(".sst"):
        return os.pread(file, len(_TABLE_MAGIC), size_bytes - len(_TABLE_MAGIC)) == _TABLE_MAGIC
    if name.endswith(".blob"):
        at = max(0, size_bytes - _BLOB_FOOTER_BYTES)
        return os.pread(file, len(_BLOB_MAGIC), at) == _BLOB_MAGIC
    return True

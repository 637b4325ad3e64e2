"""What is imported: an mbox, a folder of them, a Maildir, a tree of .eml or a packed corpus."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mailraft.cluster import mailfiles
from mailraft.cluster.corpus import MBOX_FROM, MESSAGE_SUFFIX, PACKED_SUFFIX, Corpus
from mailraft.cluster.errors import CorpusError
from mailraft.cluster.mailfiles import INBOX, INDEX_NAME, MBOX_SUFFIX, Entry, Index


@dataclass(frozen=True, slots=True)
class Record:
    """One message of a source, or why it cannot be had. `name` finds it again."""

    name: str
    raw: bytes = b""
    problem: str = ""
    mailbox: tuple[str, ...] = ()  # names from the top; empty: not told
    role: int = 0
    keywords: tuple[str, ...] = ()
    deleted: bool = False
    internal_time_ms: int = 0
    original_id: str = ""  # where it comes from: the same for each mailbox that it was in


class Source:
    """Mail in files, in an order that is the same each time. Iterating reads them again.

    Raises CorpusError if there is no mail at the path. What cannot be read is a Record with a
    problem, and what follows it is read on.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path, self._max_bytes = path, max_bytes
        self._folder = path if path.is_dir() else path.parent
        self.index = Index.read(self._folder / INDEX_NAME)
        self.kind, self._read = self._reader()

    def __iter__(self) -> Iterator[Record]:
        for record in self._read():
            yield self._checked(record)

    def size_bytes(self) -> int:
        """About how much there is to read, for a progress bar."""
        if self.path.is_file():
            return self.path.stat().st_size
        return sum(each.stat().st_size for each in self.path.rglob("*") if each.is_file())

    def _checked(self, record: Record) -> Record:
        if record.problem:
            return record
        if not record.raw:
            return replace(record, problem="empty")
        if len(record.raw) > self._max_bytes:
            return replace(record, raw=b"", problem=f"larger than {self._max_bytes} bytes")
        return record

    def _reader(self) -> tuple[str, Callable[[], Iterator[Record]]]:
        path = self.path
        if not path.exists():
            raise CorpusError(f"there is no mail at {path}", "name a file or a folder")
        if path.is_file():
            if path.name.endswith(PACKED_SUFFIX):
                return "packed corpus", self._read_corpus
            with path.open("rb") as file:
                if file.read(len(MBOX_FROM)) != MBOX_FROM:
                    raise CorpusError(f"{path} is no mbox: it does not begin with a From line")
            return "mbox", lambda: self._read_mbox(path)
        if any(path.glob(f"*{PACKED_SUFFIX}")):
            return "packed corpus", self._read_corpus
        if any(path.glob(f"*{MBOX_SUFFIX}")):
            return "mbox folder", self._read_mboxes
        if (path / "cur").is_dir() or (path / "new").is_dir():
            return "Maildir", self._read_maildir
        if next(path.rglob(f"*{MESSAGE_SUFFIX}"), None) is not None:
            return "folder of messages", self._read_tree
        hint = f"expected *{MBOX_SUFFIX}, a Maildir, or *{MESSAGE_SUFFIX} at any depth"
        raise CorpusError(f"there is no mail in {path}", hint)

    # ---- formats

    def _read_corpus(self) -> Iterator[Record]:
        messages = iter(Corpus(self.path))
        while True:
            try:
                message = next(messages, None)
            except CorpusError as error:
                yield Record(self.path.name, problem=error.message)
                return
            if message is None:
                return
            yield Record(message.name, message.raw)

    def _read_mboxes(self) -> Iterator[Record]:
        for path in sorted(self.path.glob(f"*{MBOX_SUFFIX}")):
            yield from self._read_mbox(path)

    def _read_mbox(self, path: Path) -> Iterator[Record]:
        number = 0
        try:
            with path.open("rb") as file:
                for number, found in enumerate(mailfiles.read_mbox(file, self._max_bytes), 1):
                    name = f"{path.name}#{number}"
                    if isinstance(found, str):
                        yield Record(name, problem=found)
                    else:
                        yield self._indexed(Record(name, found), path, number)
        except OSError as error:
            yield Record(f"{path.name}#{number + 1}", problem=f"cannot be read: {error.strerror}")

    def _read_maildir(self) -> Iterator[Record]:
        found: list[Path] = []
        for folder in (self.path, *sorted(self.path.glob(".[!.]*"))):
            files = [each for state in ("new", "cur") for each in (folder / state).glob("*")]
            found += sorted(files, key=self._maildir_order)
        for path in found:
            if path.is_file():
                record = self._read_file(path)
                keywords, deleted = mailfiles.flags_of(path.name)
                folder = path.parent.parent
                mailbox: tuple[str, ...] = (INBOX,)
                if folder != self.path:
                    mailbox = mailfiles.mailbox_of_folder(folder.name)
                record = replace(record, keywords=keywords, deleted=deleted, mailbox=mailbox)
                yield self._indexed(record, path, 0)

    def _maildir_order(self, path: Path) -> tuple[int, str]:
        """As in the mailbox that it was exported from, where the index tells; else by name."""
        entry = self._entry(path, 0)
        return (0 if entry is None else entry.uid), path.name

    def _read_tree(self) -> Iterator[Record]:
        for path in sorted(self.path.rglob(f"*{MESSAGE_SUFFIX}")):
            if path.is_file():
                yield self._indexed(self._read_file(path), path, 0)

    def _read_file(self, path: Path) -> Record:
        name = path.relative_to(self.path).as_posix()
        try:
            status = path.stat()
            if status.st_size > self._max_bytes:
                return Record(name, problem=f"larger than {self._max_bytes} bytes")
            raw = path.read_bytes()
        except OSError as error:
            return Record(name, problem=f"cannot be read: {error.strerror}")
        return Record(name, raw, internal_time_ms=int(status.st_mtime * 1000))

    def _indexed(self, record: Record, path: Path, number: int) -> Record:
        """With what the index tells; bytes that are not what it names are damaged."""
        entry = self._entry(path, number)
        if entry is None or record.problem:
            return record
        if hashlib.sha256(record.raw).hexdigest() != entry.sha256:
            return replace(record, raw=b"", problem="damaged: other bytes than the index says")
        return replace(
            record,
            mailbox=entry.mailbox,
            role=entry.role,
            keywords=entry.keywords,
            deleted=entry.deleted,
            internal_time_ms=entry.internal_time_ms,
            original_id=entry.message_id,
        )

    def _entry(self, path: Path, number: int) -> Entry | None:
        return self.index.entries.get((path.relative_to(self._folder).as_posix(), number))

"""Mail to deliver: a packed corpus, a tree of .eml files, a Maildir or an mbox file.

The bytes are as found. Only mbox framing is taken off, since it is no part of a message; ">From "
quoting stays as it is, because an mbox file does not say whether it quotes.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import zstandard

from mailraft.cluster.errors import CorpusError

PACKED_SUFFIX = ".tar.zst"
MESSAGE_SUFFIX = ".eml"
MBOX_FROM = b"From "
# RFC 4155 appendix A: sender and asctime. A line of text that begins with "From " has no such time.
_MBOX_SEPARATOR = re.compile(rb"From .*\d:\d\d.*\d{4}")
_EMPTY_LINES = (b"\n", b"\r\n")


@dataclass(frozen=True, slots=True)
class CorpusMessage:
    """One message. `name` finds it again in the corpus."""

    name: str
    raw: bytes


Reader = Callable[[Path], Iterator[CorpusMessage]]


class Corpus:
    """Messages in a fixed order. Iterating reads them again: a corpus may exceed the memory.

    Raises CorpusError if there is no mail at the path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind, self._read = _reader(path)

    def __iter__(self) -> Iterator[CorpusMessage]:
        """Raises CorpusError for a damaged archive or an unreadable file."""
        try:
            yield from self._read(self.path)
        except (OSError, tarfile.TarError, zstandard.ZstdError, EOFError) as error:
            raise CorpusError(f"cannot read the corpus {self.path}: {error}") from error


def default_path() -> Path:
    """The messages that come with the repository."""
    return Path(__file__).resolve().parents[1] / "tests" / "data"


def _reader(path: Path) -> tuple[str, Reader]:
    if not path.exists():
        raise CorpusError(f"there is no corpus at {path}", "name a folder or an mbox file")
    if path.is_file():
        if path.name.endswith(PACKED_SUFFIX):
            return "packed corpus", _read_archive
        with path.open("rb") as file:
            if file.read(len(MBOX_FROM)) == MBOX_FROM:
                return "mbox file", _read_mbox
        raise CorpusError(f"{path} is neither a {PACKED_SUFFIX} archive nor an mbox file")
    if any(path.glob(f"*{PACKED_SUFFIX}")):
        return "packed corpus", _read_packed
    if (path / "cur").is_dir() and (path / "new").is_dir():
        return "Maildir", _read_maildir
    if next(path.rglob(f"*{MESSAGE_SUFFIX}"), None) is not None:
        return "folder of messages", _read_tree
    raise CorpusError(
        f"there is no mail in {path}",
        f"expected *{PACKED_SUFFIX}, *{MESSAGE_SUFFIX} at any depth, a Maildir or an mbox file",
    )


def _read_packed(folder: Path) -> Iterator[CorpusMessage]:
    for path in sorted(folder.glob(f"*{PACKED_SUFFIX}")):
        yield from _read_archive(path)


def _read_archive(path: Path) -> Iterator[CorpusMessage]:
    """The .eml members, streamed. Whole mbox files beside them hold mail that is split out too."""
    with (
        zstandard.open(path, "rb") as unpacked,
        tarfile.open(fileobj=unpacked, mode="r|") as archive,
    ):
        for member in archive:
            if member.isfile() and member.name.endswith(MESSAGE_SUFFIX):
                content = archive.extractfile(member)
                assert content is not None  # it is a file
                yield CorpusMessage(member.name, content.read())


def _read_tree(folder: Path) -> Iterator[CorpusMessage]:
    yield from _read_files(folder, folder.rglob(f"*{MESSAGE_SUFFIX}"))


def _read_maildir(folder: Path) -> Iterator[CorpusMessage]:
    """Messages in new and cur, of this Maildir and of the folders below it (Maildir++)."""
    yield from _read_files(
        folder, (path for state in ("new", "cur") for path in folder.rglob(f"{state}/*"))
    )


def _read_files(folder: Path, paths: Iterator[Path]) -> Iterator[CorpusMessage]:
    for path in sorted(paths):
        if path.is_file():
            yield CorpusMessage(path.relative_to(folder).as_posix(), path.read_bytes())


def _read_mbox(path: Path) -> Iterator[CorpusMessage]:
    """Messages without their separator line, and without the empty line that ends each."""
    lines: list[bytes] = []
    number = 0
    with path.open("rb") as file:
        for line in file:
            # RFC 4155: the first line, and then each such line after an empty one.
            after_empty = bool(lines) and lines[-1] in _EMPTY_LINES
            if not number or (after_empty and _MBOX_SEPARATOR.match(line)):
                if number:
                    yield _mbox_message(path, number, lines)
                number += 1
                lines = []
            else:
                lines.append(line)
    yield _mbox_message(path, number, lines)


def _mbox_message(path: Path, number: int, lines: list[bytes]) -> CorpusMessage:
    if lines and lines[-1] in _EMPTY_LINES:
        lines.pop()
    return CorpusMessage(f"{path.name}#{number}", b"".join(lines))

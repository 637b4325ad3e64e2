"""Mail as files: mbox, Maildir and trees of .eml, with an index.jsonl beside them.

What goes out and in again is the same, byte for byte. So nothing is written into a message: what
the store knows of it (keywords, dates, ids) goes into the index, one JSON object a line.

mbox is mboxrd: a separator line before each message, one more ">" before each line of it that
begins with any number of ">" and "From ", and exactly one newline behind it. Reading takes off what
writing put on: a message that ends without a newline comes back without one.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, unquote

from mailraft.cluster.corpus import MBOX_FROM

INDEX_NAME = "index.jsonl"
MBOX_SUFFIX = ".mbox"
INBOX = "INBOX"
NAME_MAX_CHARS = 200  # of a file; most file systems have 255
SEPARATOR_SENDER = "MAILER-DAEMON"

# RFC 4155 appendix A: sender and asctime. Other lines that begin with "From " are text.
_SEPARATOR = re.compile(rb"From .*\d:\d\d.*\d{4}")
_TO_QUOTE = re.compile(rb"^(?=>*From )", re.MULTILINE)
_QUOTED = re.compile(rb"^>(?=>*From )", re.MULTILINE)
# https://cr.yp.to/proto/maildir.html; T is the flag Deleted.
_FLAGS = {"D": "$draft", "F": "$flagged", "P": "$forwarded", "R": "$answered", "S": "$seen"}
_INFO = ":2,"
# What a file system or Maildir++ would take for something else.
_SAFE_IN_NAMES = " !#$&'()+,;=@[]^_`{}~-"


class Format(enum.StrEnum):
    """As what mail is exported."""

    MBOX = "mbox"
    MAILDIR = "maildir"
    EML = "eml"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the index: what is known of one message beside its bytes.

    file: below the index; number: in an mbox, from 1; end_bytes: where that message ends there.
    """

    file: str
    size_bytes: int
    sha256: str
    mailbox: tuple[str, ...]  # names from the top
    role: int = 0
    number: int = 0
    end_bytes: int = 0
    keywords: tuple[str, ...] = ()
    deleted: bool = False
    internal_time_ms: int = 0
    message_id: str = ""
    thread_id: str = ""
    mailbox_id: str = ""
    uid_validity: int = 0
    uid: int = 0

    def to_line(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Entry:
        """Raises ValueError or TypeError for what to_line did not make. Fields that a later version
        adds are ignored.
        """
        read = json.loads(line)
        if not isinstance(read, dict):
            raise TypeError("not an object")
        known = {each.name: each for each in dataclasses.fields(cls)}
        values = {name: value for name, value in read.items() if name in known}
        for name in ("mailbox", "keywords"):
            values[name] = tuple(map(str, values.get(name, ())))
        for name in ("file", "sha256", "message_id"):
            if not isinstance(values.get(name, ""), str):
                raise TypeError(f"{name} is no text")
        for name in ("number", "end_bytes", "role", "internal_time_ms", "uid", "size_bytes"):
            if not isinstance(values.get(name, 0), int):
                raise TypeError(f"{name} is no number")
        return cls(**values)


# ---- mbox ----------------------------------------------------------------------------------------


def mbox_message(raw: bytes, internal_time_ms: int) -> bytes:
    """A message as it stands in an mbox."""
    when = time.asctime(time.gmtime(max(0, internal_time_ms) // 1000))
    return b"From %b %b\n" % (SEPARATOR_SENDER.encode(), when.encode()) + quoted(raw) + b"\n"


def quoted(raw: bytes) -> bytes:
    return _TO_QUOTE.sub(b">", raw)


def unquoted(raw: bytes) -> bytes:
    return _QUOTED.sub(b"", raw)


def read_mbox(file: BinaryIO, max_bytes: int) -> Iterator[bytes | str]:
    """Messages in order; a text instead of one that is too large. At most one is in memory."""
    lines: list[bytes] = []
    size_bytes = -1  # before the first separator
    for line in file:
        if line.startswith(MBOX_FROM) and _SEPARATOR.match(line):
            if size_bytes >= 0:
                yield _whole(lines, size_bytes, max_bytes)
            lines, size_bytes = [], 0
        elif size_bytes >= 0:
            size_bytes += len(line)
            if size_bytes <= 2 * max_bytes:
                lines.append(line)
            else:
                lines = []
    if size_bytes >= 0:
        yield _whole(lines, size_bytes, max_bytes)


def _whole(lines: list[bytes], size_bytes: int, max_bytes: int) -> bytes | str:
    raw = unquoted(b"".join(lines))
    raw = raw.removesuffix(b"\n")
    if size_bytes > 2 * max_bytes or len(raw) > max_bytes:
        return f"larger than {max_bytes} bytes"
    return raw


# ---- Maildir -------------------------------------------------------------------------------------


def maildir_name(
    unique: str, internal_time_ms: int, keywords: tuple[str, ...], deleted: bool
) -> str:
    """The name of a message's file in cur, with its flags."""
    flags = "".join(flag for flag, keyword in _FLAGS.items() if keyword in keywords)
    if deleted:
        flags += "T"
    return f"{max(0, internal_time_ms) // 1000}.{unique}.mailraft{_INFO}{flags}"


def flags_of(name: str) -> tuple[tuple[str, ...], bool]:
    """Keywords, and the flag Deleted, that the name of a file tells."""
    _, _, flags = name.rpartition(_INFO) if _INFO in name else ("", "", "")
    return tuple(sorted(_FLAGS[flag] for flag in flags if flag in _FLAGS)), "T" in flags


def maildir_folder(mailbox: tuple[str, ...]) -> str:
    """Where a mailbox lies in a Maildir (Maildir++); the INBOX is the Maildir itself."""
    return "." if mailbox == (INBOX,) else "." + flat_name(mailbox)


def mailbox_of_folder(folder: str) -> tuple[str, ...]:
    """The opposite of maildir_folder."""
    return tuple(unquote(part) for part in folder.removeprefix(".").split("."))


def flat_name(mailbox: tuple[str, ...]) -> str:
    """A mailbox' path as one name of a file: no slash, not hidden, not too long."""
    parts = (quote(name, safe=_SAFE_IN_NAMES).replace(".", "%2E") for name in mailbox)
    name = ".".join(parts)
    if len(name) > NAME_MAX_CHARS:
        digest = hashlib.sha256(repr(mailbox).encode()).hexdigest()[:16]
        name = f"{name[: NAME_MAX_CHARS - 20].rpartition('%')[0]}~{digest}"
    return name


def write_file(path: Path, raw: bytes, temporary: Path) -> None:
    """Whole or not at all: under another name first."""
    temporary.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(raw)
    temporary.replace(path)


# ---- the index -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Index:
    """What an index.jsonl holds. `problems` are lines that cannot be read."""

    entries: dict[tuple[str, int], Entry] = field(default_factory=dict)  # by file and number
    problems: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Index:
        index = cls()
        if not path.is_file():
            return index
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                try:
                    entry = Entry.from_line(line)
                except (ValueError, TypeError) as error:
                    index.problems.append(f"{path.name}:{number}: {error}")
                else:
                    index.entries[entry.file, entry.number] = entry
        return index

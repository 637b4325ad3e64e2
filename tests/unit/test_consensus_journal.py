"""The journal's tail: what it may let go, and when."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mailraft.node.consensus import journal as journal_module
from mailraft.node.consensus.journal import Journal
from mailraft.node.interfaces import (
    AppendEntries,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    LogBase,
    StoredLog,
)


class Disk:
    """A LogReader that has what was carried out, and nothing else."""

    def __init__(self) -> None:
        self.rows: dict[int, Entry] = {}

    def entries(self, first: int, last: int, max_bytes: int) -> Sequence[Entry]:
        """Those that are there."""
        return [self.rows[index] for index in range(first, last + 1) if index in self.rows]

    def term(self, index: int) -> int | None:
        """Of one that is there."""
        return self.rows[index].term if index in self.rows else None


def test_what_is_not_written_yet_is_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn reads what is committed after it took its writes and before they are carried out: a
    follower that gets large entries, committed already, must find them all.
    """
    monkeypatch.setattr(journal_module, "TAIL_BYTES_MAX", 1_000)
    disk = Disk()
    base = LogBase(1, 0, Configuration(1, (1 << 32 | 1,)))
    stored = StoredLog(1 << 32 | 1, base, HardState(), 1, 0, 1)
    journal = Journal(1, stored, disk)
    first = 2
    for _ in range(3):
        for index in range(first, first + 5):
            entry = Entry(index, 1, EntryKind.COMMAND, b"", (bytes(600),))
            journal.add(entry, index, 1)
        writes = journal.take_writes()
        read = journal.entries(2, journal.last_index, 1 << 30)
        assert [each.index for each in read] == list(range(2, first + 5))
        for write in writes:
            assert isinstance(write, AppendEntries)
            disk.rows.update((each.index, each) for each in write.entries)
        first += 5
    journal.take_writes()
    disk_only = [index for index in range(2, first) if index not in journal._tail]
    assert disk_only, "what is written is let go"

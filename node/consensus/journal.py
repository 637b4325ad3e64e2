"""The log of one group as pysyncobj sees it: what the engine holds, plus what this turn adds.

pysyncobj looks at indexes and terms only (its replication and apply loops are corrected), so that
is all it gets; entries travel past it. Writes collect here until the host takes them for Ready.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import overload

from mailraft.node.consensus.compaction import LogSizes
from mailraft.node.engine.records import configuration_of
from mailraft.node.interfaces import (
    AppendEntries,
    CompactLog,
    Configuration,
    EndAmnesia,
    Entry,
    EntryKind,
    GroupId,
    HardState,
    InstallSnapshot,
    LogBase,
    LogCorruptError,
    LogReader,
    LogWrite,
    SaveHardState,
    StoredLog,
    TruncateLog,
)

# Entries kept in memory behind the end of the log, for followers that keep up and for apply.
TAIL_BYTES_MAX = 4 * 1024 * 1024

# What pysyncobj gets for an entry: (in place of its command) the index, the index, the term.
Stub = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry that has no place in the log yet."""

    kind: EntryKind
    payload: bytes
    bodies: tuple[bytes, ...] = ()


class Journal:
    """Implements pysyncobj's journal protocol (its journal.Journal) over LogReader and a tail.

    Positions in __getitem__ count from the base entry, which is always there, as pysyncobj expects.
    """

    def __init__(self, group: GroupId, stored: StoredLog, reader: LogReader) -> None:
        self._group = group
        self._reader = reader
        self._base_index, self._base_term = stored.base.index, stored.base.term
        self._last: Stub = (stored.last_index, stored.last_index, stored.last_term)
        self._hard_state = stored.hard_state
        self._start_commit = max(stored.applied_index, stored.base.index)
        self._tail: OrderedDict[int, Entry] = OrderedDict()
        self._tail_bytes = 0
        self._written_index = stored.last_index  # by the writes of the turns before
        self.sizes = LogSizes(stored.base.index, stored.last_index, stored.log_bytes)
        # Configurations in the log, the one at the base first.
        self._configurations = [(stored.base.index, stored.base.configuration)]
        self._configurations.extend(stored.configurations)
        self.amnesic, self.lost = stored.amnesic, stored.lost
        self._writes: list[LogWrite] = []
        self._later: list[LogWrite] = []  # only ever filled by a mutant
        self._appending: list[Entry] = []
        self._truncated = False

    # ---- what mailraft asks ---------------------------------------------------------------------

    @property
    def base_index(self) -> int:
        return self._base_index

    @property
    def last_index(self) -> int:
        return self._last[1]

    @property
    def is_newborn(self) -> bool:
        """Nothing was ever in this log, nor in one before it that is lost."""
        return not self.lost and self._last[1] == self._base_index and self._base_term == 0

    @property
    def base_configuration(self) -> Configuration:
        return self._configurations[0][1]

    @property
    def configuration(self) -> Configuration:
        """The latest in the log, committed or not (thesis section 4.1)."""
        return self._configurations[-1][1]

    @property
    def configuration_index(self) -> int:
        return self._configurations[-1][0]

    def configuration_at(self, index: int) -> Configuration:
        """In force at an index that is not below the base."""
        return next(found for at, found in reversed(self._configurations) if at <= index)

    def term(self, index: int) -> int | None:
        """Term of an entry; None below the base, above the end."""
        if index == self._last[1]:
            return self._last[2]
        if index == self._base_index:
            return self._base_term
        if not self._base_index < index < self._last[1]:
            return None
        entry = self._tail.get(index)
        return entry.term if entry is not None else self._reader.term(index)

    def entries(self, first: int, last: int, max_bytes: int) -> list[Entry]:
        """Entries first..last, from memory or disk, cut after the one that passes max_bytes."""
        found: list[Entry] = []
        size_bytes, index = 0, first
        while index <= last and size_bytes < max_bytes:
            entry = self._tail.get(index)
            if entry is None:
                # The tail is contiguous up to the end: what is missing lies below it, on disk.
                below_tail = min(last, next(iter(self._tail), last + 1) - 1)
                read = self._reader.entries(index, below_tail, max_bytes - size_bytes)
                if not read:
                    raise LogCorruptError(f"group {self._group} has no entry {index}")
                found.extend(read)
                size_bytes += sum(e.size_bytes for e in read)
                index += len(read)
                continue
            found.append(entry)
            size_bytes += entry.size_bytes
            index += 1
        return found

    def take_writes(self) -> tuple[LogWrite, ...]:
        """This turn's writes, in program order. The engine has those of the turns before, so the
        tail lets go only what was in them: what is committed in this turn is read after this, and
        before its writes are carried out.
        """
        self._close_append()
        writes, self._writes, self._later = tuple(self._writes), self._later, []
        while self._tail_bytes > TAIL_BYTES_MAX and next(iter(self._tail)) <= self._written_index:
            _, entry = self._tail.popitem(last=False)
            self._tail_bytes -= entry.size_bytes
        self._written_index = self.last_index
        return writes

    def take_truncated(self) -> bool:
        """Whether the log got shorter since this was last asked."""
        truncated, self._truncated = self._truncated, False
        return truncated

    def compact(self, base: LogBase) -> None:
        """Move the start of the log up to an entry that is applied."""
        self._close_append()
        self._writes.append(CompactLog(self._group, base))
        above = [known for known in self._configurations if known[0] > base.index]
        self._configurations = [(base.index, base.configuration), *above]
        self._base_index, self._base_term = base.index, base.term
        self.sizes.compact(base.index)
        while self._tail and next(iter(self._tail)) <= base.index:
            _, entry = self._tail.popitem(last=False)
            self._tail_bytes -= entry.size_bytes

    def end_amnesia(self) -> None:
        self._close_append()
        self.amnesic = self.lost = False
        self._writes.append(EndAmnesia(self._group))

    def rewrite(self, first: int) -> None:
        """The fault of row 14, for its mutant: what is kept is removed and written again."""
        kept = tuple(entry for index, entry in self._tail.items() if index >= first)
        if kept:
            self._writes.append(TruncateLog(self._group, first))
            self._later.append(AppendEntries(self._group, kept))

    def install(self, generation: int, base: LogBase, digest: bytes) -> None:
        """Begin anew, empty, behind a snapshot."""
        self._close_append()
        self._writes.append(InstallSnapshot(self._group, generation, base, digest))
        self._base_index, self._base_term = base.index, base.term
        self._last = (base.index, base.index, base.term)
        self._written_index = base.index
        self._configurations = [(base.index, base.configuration)]
        self._tail.clear()
        self._tail_bytes = 0
        self.sizes = LogSizes(base.index, base.index, 0)

    # ---- what pysyncobj asks --------------------------------------------------------------------

    def add(self, command: Draft | Entry | bytes, index: int, term: int) -> None:
        if index != self._last[1] + 1:
            raise AssertionError(f"entry {index} cannot follow {self._last[1]}")
        match command:
            case Entry():
                entry = command
            case Draft(kind, payload, bodies):
                entry = Entry(index, term, kind, payload, bodies)
            case _:  # pysyncobj's own no-op, at the start of a leader's term
                entry = Entry(index, term, EntryKind.NOOP)
        if entry.kind is EntryKind.CONFIGURATION:
            self._configurations.append((index, configuration_of(entry)))
        self._appending.append(entry)
        self._tail[index] = entry
        self.sizes.add(index, entry.skeleton_bytes)
        self._tail_bytes += entry.size_bytes
        self._last = (index, index, term)

    def deleteEntriesFrom(self, position: int) -> None:  # noqa: N802  # pysyncobj's name
        first = self._base_index + position
        previous_term = self.term(first - 1)
        if previous_term is None:
            raise AssertionError(f"cannot truncate at {first}: nothing before it")
        self._close_append()
        self._writes.append(TruncateLog(self._group, first))
        self._truncated = True
        self.sizes.truncate(first)
        while self.configuration_index >= first:
            self._configurations.pop()
        while self._tail and next(reversed(self._tail)) >= first:
            _, entry = self._tail.popitem()
            self._tail_bytes -= entry.size_bytes
        self._last = (first - 1, first - 1, previous_term)
        self._written_index = min(self._written_index, first - 1)

    def setCurrentTerm(self, term: int, voted_for: int | None) -> None:  # noqa: N802
        state = HardState(term, voted_for or 0)
        if state != self._hard_state:
            self._close_append()
            self._hard_state = state
            self._writes.append(SaveHardState(self._group, state))

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._hard_state.term

    def getVotedForNodeId(self) -> int | None:  # noqa: N802
        return self._hard_state.voted_for or None

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        # What was applied was committed (row 22): no replay from index 1 after a restart.
        return self._start_commit

    def setRaftCommitIndex(self, _index: int) -> None:  # noqa: N802
        return  # the applied index is durable with its effects; the rest is learnt from the leader

    def onOneSecondTimer(self) -> None:  # noqa: N802
        return

    def _destroy(self) -> None:
        return

    def __len__(self) -> int:
        return self._last[1] - self._base_index + 1

    @overload
    def __getitem__(self, item: int) -> Stub: ...
    @overload
    def __getitem__(self, item: slice) -> list[Stub]: ...
    def __getitem__(self, item: int | slice) -> Stub | list[Stub]:
        if isinstance(item, int):
            if item == -1:
                return self._last
            return self._stub(self._base_index + (item if item >= 0 else len(self) + item))
        start, stop, _ = item.indices(len(self))
        return [self._stub(self._base_index + position) for position in range(start, stop)]

    def _stub(self, index: int) -> Stub:
        term = self.term(index)
        if term is None:
            raise IndexError(index)
        return (index, index, term)

    def _close_append(self) -> None:
        if self._appending:
            self._writes.append(AppendEntries(self._group, tuple(self._appending)))
            self._appending = []

"""What the engine knows of each group, and the rules that a write has to keep. Pure.

Kept in memory so that a write needs no read; loaded from disk when a group is first touched.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mailraft.node.engine import keys, records
from mailraft.node.engine.backend import Backend
from mailraft.node.engine.checksum import EMPTY_DIGEST, chain_digest
from mailraft.node.engine.errors import InvalidWriteError, UnknownGroupError
from mailraft.node.engine.records import AppliedPosition, GroupBirth
from mailraft.node.interfaces import (
    AppendEntries,
    ApplyWrite,
    CompactLog,
    GroupId,
    HardState,
    InstallSnapshot,
    SaveHardState,
    Succeed,
    TruncateLog,
)

FIRST_GENERATION = 1  # 0 is what a record without the field says
# Replicas are never all at one index. What they compare are the digests of the applied indexes that
# MARK_EVERY divides: the same ones everywhere. So many are kept, 1,024 entries' worth.
MARK_EVERY = 32
MARKS_MAX = 32


@dataclass(slots=True)
class GroupState:
    """One group as it is after the latest write, flushed or not."""

    group: GroupId
    birth: GroupBirth
    hard_state: HardState
    last_index: int
    applied: AppliedPosition
    marks: tuple[AppliedPosition, ...] = ()

    @property
    def state_prefix(self) -> bytes:
        return keys.state_prefix(self.group, self.birth.generation)

    def copy(self) -> GroupState:
        return replace(self)

    def append(self, write: AppendEntries) -> None:
        """Entries join the log without a gap and without covering what is there."""
        for entry in write.entries:
            if entry.index != self.last_index + 1:
                raise self._invalid(f"appends entry {entry.index} behind {self.last_index}")
            self.last_index = entry.index

    def truncate(self, write: TruncateLog) -> None:
        """What was applied, or lies at or below the base, was committed: it never goes."""
        floor = max(self.applied.index, self.birth.base.index)
        if write.from_index <= floor:
            raise self._invalid(f"truncates from {write.from_index}, but {floor} is committed")
        self.last_index = min(self.last_index, write.from_index - 1)

    def save(self, write: SaveHardState) -> None:
        """Raft 5.1 and 5.2: terms never fall, and a vote is given once a term."""
        old, new = self.hard_state, write.hard_state
        if new.term < old.term:
            raise self._invalid(f"lowers the term from {old.term} to {new.term}")
        if new.term == old.term and old.voted_for not in {0, new.voted_for}:
            raise self._invalid(
                f"changes its vote in term {new.term} from {old.voted_for} to {new.voted_for}"
            )
        self.hard_state = new

    def apply(self, write: ApplyWrite) -> None:
        """An entry is applied once, in order. Entries that change nothing may be left out."""
        if write.index <= self.applied.index:
            raise self._invalid(f"applies entry {write.index} after {self.applied.index}")
        digest = chain_digest(self.applied.digest, write.effects)
        self.applied = AppliedPosition(write.index, write.term, digest)
        if not write.index % MARK_EVERY:
            self.marks = (*self.marks, self.applied)[-MARKS_MAX:]

    def compact(self, write: CompactLog) -> None:
        """Only what was applied may leave the log; its start never moves back."""
        index, base = write.base.index, self.birth.base
        if not base.index <= index <= self.applied.index:
            applied = self.applied.index
            raise self._invalid(
                f"compacts to {index}: its log begins at {base.index}, {applied} is applied"
            )
        self.birth = replace(self.birth, base=write.base)

    def end_amnesia(self) -> None:
        self.birth = replace(self.birth, amnesic=False, lost=False)

    def succeed(self, write: Succeed) -> None:
        self.birth = replace(self.birth, replica=write.replica, amnesic=False, lost=False)

    def burn(self) -> int:
        """A generation number that was never given before."""
        number = self.birth.burnt_generation + 1
        self.birth = replace(self.birth, burnt_generation=number)
        return number

    def install(self, write: InstallSnapshot, found: AppliedPosition | None) -> None:
        """Go over to another generation, whose applied position was `found` to be what is said.

        Row 16: only forward. What lies behind the snapshot in the log goes: consensus installs
        none whose last entry the log holds.
        """
        base = write.base
        if not self.birth.generation < write.generation <= self.birth.burnt_generation:
            raise self._invalid(f"installs generation {write.generation}, which was never begun")
        if base.index <= self.applied.index:
            raise self._invalid(f"installs a snapshot of {base.index} over {self.applied.index}")
        if found != AppliedPosition(base.index, base.term, write.digest):
            raise self._invalid(f"generation {write.generation} holds {found}, not {base}")
        self.birth = replace(self.birth, base=base, generation=write.generation)
        self.last_index = base.index
        self.applied, self.marks = found, ()

    def _invalid(self, what: str) -> InvalidWriteError:
        return InvalidWriteError(f"group {self.group}: {what}")


def newborn(group: GroupId, birth: GroupBirth) -> GroupState:
    """A group without entries: what lies below its base counts as applied."""
    base = birth.base
    applied = AppliedPosition(base.index, base.term, EMPTY_DIGEST)
    return GroupState(group, birth, HardState(), base.index, applied)


def load_group(backend: Backend, group: GroupId) -> GroupState:
    """Read one group's rows; raises UnknownGroupError, CorruptionError, UnknownFormatError."""
    data = backend.get(keys.META, keys.group_record(group))
    if data is None:
        raise UnknownGroupError(f"group {group} has no replica here")
    state = newborn(group, records.decode_group(data))
    voted = backend.get(keys.META, keys.hard_state(group))
    if voted is not None:
        state.hard_state = records.decode_hard_state(voted)
    newest = backend.scan(
        keys.LOG,
        keys.log_entry(group, state.last_index + 1),
        keys.log_entry(group, keys.INDEX_END),
        reverse=True,
    )
    for key, _ in newest:
        state.last_index = keys.log_index(key)
        break
    applied = backend.get(keys.STATE, state.state_prefix + keys.SHARD_RECORD)
    if applied is not None:
        state.applied = records.decode_applied(applied)
    return state

"""Reads a group's log, and proves each entry before handing it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys, records
from mailraft.node.engine.backend import Backend
from mailraft.node.engine.errors import CorruptionError
from mailraft.node.engine.groups import GroupState
from mailraft.node.interfaces import (
    ENTRY_OVERHEAD_BYTES,
    Configuration,
    Entry,
    EntryKind,
    GroupId,
)

SAMPLES = 16


def estimate_bytes(backend: Backend, state: GroupState) -> int:
    """About what a group's log takes without bodies: so many rows, each as large as some of them.

    Counting all would cost a start 5 µs an entry of every group.
    """
    first, last = state.birth.base.index + 1, state.last_index
    count = last - first + 1
    if count <= 0:
        return 0
    step = max(1, count // SAMPLES)
    wanted = [keys.log_entry(state.group, index) for index in range(first, last + 1, step)]
    found = [row for row in backend.get_many(keys.LOG, wanted) if row is not None]
    sampled_bytes = sum(ENTRY_OVERHEAD_BYTES + len(row) for row in found)
    return sampled_bytes * count // max(1, len(found))


class GroupLog:
    """As interfaces.LogReader. Follows the group: what is appended later is seen too."""

    def __init__(
        self, backend: Backend, groups: Mapping[GroupId, GroupState], group: GroupId
    ) -> None:
        self._backend = backend
        self._groups = groups
        self._group = group

    def entries(self, first: int, last: int, max_bytes: int) -> Sequence[Entry]:
        """As the protocol says; the cut is made before the next entry's bodies are read."""
        state = self._groups[self._group]
        first = max(first, state.birth.base.index + 1)
        last = min(last, state.last_index)
        found: list[Entry] = []
        size_bytes = 0
        expected = first
        rows = self._backend.scan(
            keys.LOG, keys.log_entry(self._group, first), keys.log_entry(self._group, last + 1)
        )
        try:
            for key, value in rows:
                if keys.log_index(key) != expected:
                    break
                entry = self._entry(state, expected, value)
                found.append(entry)
                size_bytes += entry.size_bytes
                expected += 1
                if size_bytes >= max_bytes:
                    return found
        except CorruptionError as error:
            raise records.log_corrupt(self._group, expected, str(error)) from error
        if expected <= last:
            raise records.log_corrupt(self._group, expected, "it is missing")
        return found

    def term(self, index: int) -> int | None:
        """As the protocol says. Without the bodies the entry's checksum cannot be verified."""
        state = self._groups[self._group]
        if not state.birth.base.index < index <= state.last_index:
            return None
        try:
            data = self._backend.get(keys.LOG, keys.log_entry(self._group, index))
        except CorruptionError as error:
            raise records.log_corrupt(self._group, index, str(error)) from error
        if data is None:
            raise records.log_corrupt(self._group, index, "it is missing")
        return records.parse_entry(self._group, index, data).term

    def _entry(self, state: GroupState, index: int, data: bytes) -> Entry:
        record = records.parse_entry(self._group, index, data)
        bodies = self._bodies(state, index, record) if record.body_count else ()
        return records.decode_entry(self._group, index, record, bodies)

    def _bodies(
        self, state: GroupState, index: int, record: record_pb2.LogRecord
    ) -> tuple[bytes, ...]:
        wanted = [
            keys.body(self._group, state.birth.generation, index, ordinal)
            for ordinal in range(record.body_count)
        ]
        found = self._backend.get_many(keys.BODY, wanted)
        bodies = tuple(body for body in found if body is not None)
        if len(bodies) < len(wanted):
            ordinal = found.index(None)
            raise records.log_corrupt(self._group, index, f"its body {ordinal} is missing")
        return bodies


def configurations_in(backend: Backend, state: GroupState) -> tuple[tuple[int, Configuration], ...]:
    """(index, configuration) of every CONFIGURATION entry in the log, proven. Reads no bodies."""
    found: list[tuple[int, Configuration]] = []
    first, last = state.birth.base.index + 1, state.last_index
    start, end = keys.log_entry(state.group, first), keys.log_entry(state.group, last + 1)
    for key, data in backend.scan(keys.LOG, start, end):
        index = keys.log_index(key)
        record = records.parse_entry(state.group, index, data)
        if int(record.kind) == EntryKind.CONFIGURATION:
            entry = records.decode_entry(state.group, index, record, ())
            found.append((index, records.configuration_of(entry)))
    return tuple(found)

"""Reads a group's log, and proves each entry before handing it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys, records
from mailraft.node.engine.backend import Backend
from mailraft.node.engine.errors import CorruptionError
from mailraft.node.engine.groups import GroupState
from mailraft.node.interfaces import Entry, GroupId


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

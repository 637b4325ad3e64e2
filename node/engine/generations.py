"""Generations of a group's state and bodies: who still reads one, and when it may go. Pure.

A snapshot comes in under a generation of its own and is switched to by one write; what it replaces
is removed when its last view is gone. Numbers are never given twice.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from mailraft.node.engine import keys, records
from mailraft.node.engine.backend import Backend, Batch
from mailraft.node.engine.groups import GroupState
from mailraft.node.engine.records import AppliedPosition, GroupBirth
from mailraft.node.engine.view import StateView
from mailraft.node.interfaces import Effect, GroupId

_Key = tuple[GroupId, int]


class Generations:
    """One view per live generation, and the generations that wait to be removed."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._views: weakref.WeakValueDictionary[_Key, StateView] = weakref.WeakValueDictionary()
        self._retired: list[_Key] = []

    def view(self, state: GroupState) -> StateView:
        key = (state.group, state.birth.generation)
        found = self._views.get(key)
        if found is None:
            found = self._views[key] = StateView(self._backend, state.state_prefix)
        return found

    def changed(self, state: GroupState, effects: Sequence[Effect]) -> None:
        """Rows of the live generation were written."""
        view = self._views.get((state.group, state.birth.generation))
        if view is not None:
            view.changed(effects)

    def applied(self, group: GroupId, generation: int) -> AppliedPosition | None:
        """What a generation says that it holds."""
        prefix = keys.state_prefix(group, generation)
        row = self._backend.get(keys.STATE, prefix + keys.SHARD_RECORD)
        return records.decode_applied(row) if row is not None else None

    def retire(self, group: GroupId, generation: int) -> None:
        self._retired.append((group, generation))

    def drop_unread(self, batch: Batch) -> bool:
        """Remove what nobody reads; a scan that has begun is pinned and goes on. True if any is."""
        if not self._retired:
            return False
        unread = [key for key in self._retired if key not in self._views]
        self._retired = [key for key in self._retired if key in self._views]
        for group, generation in unread:
            _delete(batch, group, generation, generation + 1)
        return bool(unread)


def sweep(backend: Backend, batch: Batch, group: GroupId, birth: GroupBirth) -> None:
    """At start: remove the rows of every generation but the live one."""
    live = birth.generation
    for first, end in ((0, live), (live + 1, birth.burnt_generation + 1)):
        if first < end and _holds_anything(backend, group, first, end):
            # No further than what was given: a range that covers generations to come would make
            # RocksDB flush before each ingests.
            _delete(batch, group, first, end)


def sweep_all(backend: Backend, batch: Batch, group: GroupId, last: int) -> None:
    """At start: remove what a replica that was removed from here has left, up to a generation."""
    if _holds_anything(backend, group, 0, last + 1):
        _delete(batch, group, 0, last + 1)


def _holds_anything(backend: Backend, group: GroupId, first: int, end: int) -> bool:
    return any(
        next(backend.scan(family, low, high), None) is not None
        for family, low, high in _ranges(group, first, end)
    )


def _delete(batch: Batch, group: GroupId, first: int, end: int) -> None:
    for family, low, high in _ranges(group, first, end):
        batch.delete_range(family, low, high)


def _ranges(group: GroupId, first: int, end: int) -> tuple[tuple[str, bytes, bytes], ...]:
    return (
        (keys.STATE, keys.state_prefix(group, first), keys.state_prefix(group, end)),
        (keys.BODY, keys.body(group, first, 0), keys.body(group, end, 0)),
    )

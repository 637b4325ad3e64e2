"""A view with writes on top that nobody else sees yet.

One overlay a log entry, on the shard's view; a child of it a command, that is committed into its
parent or dropped: so a refused command leaves nothing behind. Records are kept decoded, copied
once by a child that changes them, and serialized once when the entry is through. (No record has a
map, so that its bytes are the same wherever it is serialized: tests/golden holds that.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import TypeVar

from google.protobuf.message import Message

from mailraft.node.interfaces import Delete, DeleteBody, DeleteRange, Effect, Put, View

from . import rules

M = TypeVar("M", bound=Message)
_Value = bytes | Message | None  # None: deleted
_BELOW = object()
_FIRST = itemgetter(0)


class Overlay:
    """Implements View. Not for use by two callers at once."""

    __slots__ = ("_base", "_bodies", "_decoded", "_parent", "_ranges", "_writes")

    def __init__(self, base: View, parent: Overlay | None = None) -> None:
        self._base = base  # the shard's view: the same one all the way up
        self._parent = parent
        self._writes: dict[bytes, _Value] = {}
        self._ranges: list[DeleteRange] = []  # removed before _writes are made
        self._bodies: list[DeleteBody] = []
        # Records of the view, decoded; of the outermost overlay only.
        self._decoded: dict[bytes, Message | None] = {} if parent is None else parent._decoded

    # ---- reading

    def get(self, key: bytes) -> bytes | None:
        value = self._written(key)
        if value is _BELOW:
            return self._base.get(key)
        return _serialized(value)  # type: ignore[arg-type]  # _BELOW is ruled out

    def get_many(self, wanted: Sequence[bytes]) -> list[bytes | None]:
        return [self.get(key) for key in wanted]

    def read(self, key: bytes, kind: type[M]) -> M | None:
        """The record under key, shared with other readers: not to be changed."""
        value = self._written(key)
        if value is _BELOW:
            value = self._decoded.get(key, _BELOW)
            if value is _BELOW:
                stored = self._base.get(key)
                value = None if stored is None else kind.FromString(stored)
                self._decoded[key] = value
        elif type(value) is bytes:
            value = kind.FromString(value)
        return value  # type: ignore[return-value]  # keys have one kind of record each

    def _own(self, key: bytes, kind: type[M]) -> M | None:
        """A copy of the record under key, written here; None when there is none."""
        value = self._written(key)
        if value is _BELOW:
            value = self._decoded.get(key, _BELOW)
            if value is _BELOW:
                value = self._base.get(key)  # nobody shares it yet: decoded for this overlay alone
        if value is None:
            return None
        own = kind()
        if type(value) is bytes:
            own.ParseFromString(value)
        else:
            own.CopyFrom(value)  # type: ignore[arg-type]  # keys have one kind of record each
        self._writes[key] = own
        return own

    def _written(self, key: bytes) -> object:
        """What this overlay or one above wrote last under key; _BELOW when none did."""
        layer: Overlay | None = self
        while layer is not None:
            value = layer._writes.get(key, _BELOW)
            if value is not _BELOW:
                return value
            if layer._ranges and layer._removes(key):
                return None
            layer = layer._parent
        return _BELOW

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """As View.scan. Writes made after the call are not seen."""
        below: View = self._parent if self._parent is not None else self._base
        changed: dict[bytes, bytes | None] = {}
        for key in sorted((key for key in self._writes if start <= key < end), reverse=reverse):
            changed[key] = _serialized(self._writes[key])
        ranges = tuple(self._ranges)
        return _merged(below.scan(start, end, reverse=reverse), changed, ranges, reverse)

    # ---- writing

    def edit(self, key: bytes, kind: type[M]) -> M | None:
        """The record under key, for this overlay to change in place; None when there is none."""
        own = self._writes.get(key)
        if type(own) is kind:
            return own
        return self._own(key, kind)

    def edit_or_new(self, key: bytes, kind: type[M], *, never_stored: bool = False) -> M:
        """The record under key to change in place, or a new one of the format of today.

        `never_stored` saves the look into the view where the key cannot be in it.
        """
        own = self._writes.get(key)
        if type(own) is kind:
            return own
        if not never_stored or self._written(key) is not _BELOW:
            found = self._own(key, kind)
            if found is not None:
                return found
        made = kind()
        made.format = rules.FORMAT  # type: ignore[attr-defined]  # every record has it
        self._writes[key] = made
        return made

    def put(self, key: bytes, value: bytes | Message) -> None:
        """Writes a value; a record may still be changed in place until the overlay is committed."""
        self._writes[key] = value

    def delete(self, key: bytes) -> None:
        self._writes[key] = None

    def delete_range(self, start: bytes, end: bytes) -> None:
        for key in [key for key in self._writes if start <= key < end]:
            del self._writes[key]
        self._ranges.append(DeleteRange(start, end))

    def delete_body(self, index: int, ordinal: int) -> None:
        """Removes a body itself. Nothing of the state may name it any more."""
        self._bodies.append(DeleteBody(index, ordinal))

    # ---- ending

    def child(self) -> Overlay:
        return Overlay(self._base, self)

    def commit(self) -> None:
        """Hands everything to the parent. The overlay is not used afterwards."""
        parent = self._parent
        assert parent is not None, "only a child has somebody to commit to"
        for removed in self._ranges:
            parent.delete_range(removed.start, removed.end)
        parent._writes.update(self._writes)
        parent._bodies += self._bodies

    def effects(self) -> tuple[Effect, ...]:
        """Ranges in the order they were removed, then single keys in key order, then bodies."""
        found: list[Effect] = list(self._ranges)
        add = found.append
        for key, value in sorted(self._writes.items(), key=_FIRST):
            if type(value) is bytes:
                add(Put(key, value))
            elif value is None:
                add(Delete(key))
            else:
                add(Put(key, value.SerializeToString()))  # type: ignore[union-attr]
        return (*found, *self._bodies)

    def _removes(self, key: bytes) -> bool:
        return any(removed.start <= key < removed.end for removed in self._ranges)


def _serialized(value: _Value) -> bytes | None:
    return value.SerializeToString() if isinstance(value, Message) else value


def _merged(
    below: Iterator[tuple[bytes, bytes]],
    changed: dict[bytes, bytes | None],
    ranges: tuple[DeleteRange, ...],
    reverse: bool,
) -> Iterator[tuple[bytes, bytes]]:
    """Two ordered runs as one; `changed` (in scan order) wins over below, None hides."""
    own = iter(changed)
    mine = next(own, None)
    for key, value in below:
        while mine is not None and (mine > key if reverse else mine < key):
            written = changed[mine]
            if written is not None:
                yield mine, written
            mine = next(own, None)
        if key in changed or any(removed.start <= key < removed.end for removed in ranges):
            continue
        yield key, value
    while mine is not None:
        written = changed[mine]
        if written is not None:
            yield mine, written
        mine = next(own, None)

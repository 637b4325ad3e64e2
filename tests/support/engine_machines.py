"""Stores on a real and on a simulated disk, and short names for what is written to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from tests.sim.disk import SimDisk

from mailraft.node.engine import keys
from mailraft.node.engine.store import Store
from mailraft.node.interfaces import (
    AppendEntries,
    ApplyWrite,
    Configuration,
    Effect,
    Entry,
    EntryKind,
    replica_id,
)

GROUP, OTHER = 7, 8
REPLICA = replica_id(1, 1)
BIRTH = Configuration(1, (replica_id(1, 1), replica_id(2, 1), replica_id(3, 1)))
EVERYTHING = (b"", b"\xff\xff\xff")
NO_LIMIT = 1 << 40
KINDS = ("rocksdb", "simulated")


class Machine(Protocol):
    """A store that can be restarted."""

    @property
    def store(self) -> Store: ...

    def restart(self) -> Store: ...

    def overwrite(self, family: str, key: bytes, value: bytes | None) -> None:
        """Change or remove a stored row behind the engine's back."""


class RocksMachine:
    """A folder on a real disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = self._open()

    def _open(self) -> Store:
        return Store.open(self.path, cluster_id="c1", node=1)

    def restart(self) -> Store:
        self.store.close()
        self.store = self._open()
        return self.store

    def overwrite(self, family: str, key: bytes, value: bytes | None) -> None:
        _overwrite(self.store, family, key, value)


class SimMachine:
    """A disk of the simulator."""

    def __init__(self) -> None:
        self.store: SimDisk = SimDisk()

    def restart(self) -> Store:
        self.store.close()
        self.store.crash()
        return self.store

    def overwrite(self, family: str, key: bytes, value: bytes | None) -> None:
        _overwrite(self.store, family, key, value)


def _overwrite(store: Store, family: str, key: bytes, value: bytes | None) -> None:
    batch = store._backend.batch()
    if value is None:
        batch.delete(family, key)
    else:
        batch.put(family, key, value)
    store._backend.write(batch)


def machine_on(kind: str, path: Path) -> Machine:
    """One of KINDS, with GROUP on it."""
    machine: Machine = RocksMachine(path) if kind == "rocksdb" else SimMachine()
    machine.store.create_group(GROUP, REPLICA, BIRTH)
    return machine


def lives(machine: Machine) -> Iterator[Store]:
    """The store as it is, and then as it is after a restart."""
    yield machine.store
    yield machine.restart()


def command(index: int, *bodies: bytes, term: int = 1, payload: bytes | None = None) -> Entry:
    """A COMMAND entry."""
    said = b"command %d" % index if payload is None else payload
    return Entry(index, term, EntryKind.COMMAND, said, bodies)


def append(*entries: Entry, group: int = GROUP) -> AppendEntries:
    """One AppendEntries."""
    return AppendEntries(group, entries)


def apply(index: int, *effects: Effect, group: int = GROUP, term: int = 1) -> ApplyWrite:
    """One ApplyWrite."""
    return ApplyWrite(group, index, term, effects)


def all_entries(store: Store, group: int = GROUP) -> Sequence[Entry]:
    """Whatever the log of a group holds."""
    return store.log(group).entries(0, keys.INDEX_END - 1, NO_LIMIT)

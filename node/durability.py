"""Write levels above a majority: who must have an entry on disk, and the calls that wait for it.

Pure bookkeeping. A leader knows up to which index each voter's log is on that voter's disk (its
match index, Raft figure 2; acknowledgements leave a voter only after its flush), and a committed
entry keeps its index: so the entry is on the disks of all whose index is at or above its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from mailraft.node.interfaces import ReplicaId

# Calls of one replica that wait; past it callers are told to come back (OVERLOADED).
WAITS_MAX = 8_192


@dataclass(frozen=True, slots=True)
class Shortfall:
    """What a level lacks: it needs so many replicas, and there are so many."""

    needed: int
    there: int
    zones: tuple[str, ...] = ()


class Need(Protocol):
    """What a level needs of the voters, as they are when it is asked."""

    def shortfall(
        self, there: Collection[ReplicaId], voters: Collection[ReplicaId]
    ) -> Shortfall | None:
        """None when those that are `there`, all of them voters, are enough."""


@dataclass(frozen=True, slots=True)
class Count:
    """So many voters."""

    needed: int

    def shortfall(
        self, there: Collection[ReplicaId], voters: Collection[ReplicaId]
    ) -> Shortfall | None:
        needed = max(self.needed, len(voters) // 2 + 1)
        return None if len(there) >= needed else Shortfall(needed, len(there))


@dataclass(frozen=True, slots=True)
class Everyone:
    """All voters."""

    def shortfall(
        self, there: Collection[ReplicaId], voters: Collection[ReplicaId]
    ) -> Shortfall | None:
        enough = bool(voters) and set(voters) <= set(there)
        return None if enough else Shortfall(len(voters), len(there))


@dataclass(frozen=True, slots=True)
class EachZone:
    """One voter at least in every zone that has one."""

    zone_of: Callable[[ReplicaId], str]

    def shortfall(
        self, there: Collection[ReplicaId], voters: Collection[ReplicaId]
    ) -> Shortfall | None:
        zones = {self.zone_of(each) for each in voters}
        missing = zones - {self.zone_of(each) for each in there}
        if zones and not missing:
            return None
        return Shortfall(len(zones), len(zones) - len(missing), tuple(sorted(missing)))


@dataclass(frozen=True, slots=True)
class This:
    """One certain replica."""

    replica: ReplicaId

    def shortfall(self, there: Collection[ReplicaId], _: Collection[ReplicaId]) -> Shortfall | None:
        return None if self.replica in there else Shortfall(1, 0)


@dataclass(frozen=True, slots=True)
class _Wait:
    index: int
    need: Need
    done: asyncio.Future[bool]


class DiskWaits:
    """Calls that wait until an entry of their leader is on the disks that their level needs."""

    def __init__(self) -> None:
        self._waits: list[_Wait] = []

    def __len__(self) -> int:
        return len(self._waits)

    def add(self, index: int, need: Need, done: asyncio.Future[bool]) -> None:
        """Done with True once it is there, with False when nobody can tell any more."""
        self._waits.append(_Wait(index, need, done))

    def told(self, durable: Mapping[ReplicaId, int]) -> None:
        """Up to where the log of each voter is on its disk."""
        waits, self._waits = self._waits, []
        for wait in waits:
            there = [voter for voter, index in durable.items() if index >= wait.index]
            if wait.done.done():
                continue  # its caller has gone
            if wait.need.shortfall(there, durable) is None:
                wait.done.set_result(True)
            else:
                self._waits.append(wait)

    def lost(self) -> None:
        """This replica leads no more in the term of these entries: it hears of no disk now."""
        waits, self._waits = self._waits, []
        for wait in waits:
            if not wait.done.done():
                wait.done.set_result(False)

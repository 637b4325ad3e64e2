"""What was done to a cluster and what it answered: one Operation each, with its times.

An operation whose answer never came may have happened: its end is infinity.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

from mailraft.client import Consistency

NEVER = math.inf


class Kind(Enum):
    DELIVER = "deliver"
    LIST = "list"
    FETCH = "fetch"


class Outcome(Enum):
    UNKNOWN = "unknown"  # a delivery that may have happened, or a read without an answer
    DONE = "done"
    MISSING = "missing"  # a fetch that found no message
    WRONG = "wrong"  # a fetch that answered other bytes


@dataclass(slots=True)
class Operation:
    """number: unique, and what a delivered message is known by, whatever was answered.

    modseq: of the state that was answered. newest_uids: the first page of a list, descending.
    bound_s: how old a BOUNDED read may be. age_s: how old a read's answer says to be at most.
    gave_up_s: when its client had an error instead.
    """

    number: int
    kind: Kind
    account: str
    session: int
    start_s: float
    level: Consistency = Consistency.SESSION
    bound_s: float = NEVER
    age_s: float = NEVER
    end_s: float = NEVER
    outcome: Outcome = Outcome.UNKNOWN
    incarnation: tuple[int, int] = (0, 0)
    modseq: int = 0
    uid: int = 0
    message_id: str = ""
    newest_uids: Sequence[int] = ()
    total: int = 0
    replica: int = 0
    error: str = ""
    gave_up_s: float = NEVER

    @property
    def linearizable(self) -> bool:
        return self.level is Consistency.LINEARIZABLE

    @property
    def shows_s(self) -> float:
        """What was complete before then is in the answer of a read: so much its level promises, and
        so much it says itself.
        """
        return self.start_s if self.linearizable else self.start_s - min(self.age_s, self.bound_s)

    @property
    def over_s(self) -> float:
        """When its client went on."""
        return min(self.end_s, self.gave_up_s)

    @property
    def acknowledged(self) -> bool:
        return self.outcome is Outcome.DONE


@dataclass(slots=True)
class History:
    """All operations in the order of their starts, and when faults were there."""

    operations: list[Operation] = field(default_factory=list)
    faults: list[tuple[float, float]] = field(default_factory=list)

    def begin(
        self,
        kind: Kind,
        account: str,
        session: int,
        *,
        level: Consistency = Consistency.SESSION,
        bound_s: float = NEVER,
        replica: int = 0,
    ) -> Operation:
        operation = Operation(
            len(self.operations) + 1,
            kind,
            account,
            session,
            time.monotonic(),
            level,
            bound_s,
            replica=replica,
        )
        self.operations.append(operation)
        return operation

    @contextmanager
    def fault(self) -> Iterator[None]:
        """A fault is there inside the block."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.faults.append((began_s, time.monotonic()))

    def acknowledged(self) -> list[Operation]:
        return [operation for operation in self.operations if operation.acknowledged]

    def overlapping(self) -> list[Operation]:
        """Acknowledged operations that were under way while a fault was there."""
        return [
            each
            for each in self.acknowledged()
            if any(each.start_s <= end and each.end_s >= start for start, end in self.faults)
        ]

    def longest_silence_s(self) -> float:
        """The longest time in which writes of an account waited and none was acknowledged, of
        those that overlap a fault.
        """
        return self.longest_silence()[0]

    def longest_silence(self) -> tuple[float, float]:
        """The same, and how long after the begin of its fault it began."""
        writes = by_account(each for each in self.operations if each.kind is Kind.DELIVER)
        return max(
            (silence for each in writes.values() for silence in self._silences(each)),
            default=(0.0, 0.0),
        )

    def _silences(self, writes: Sequence[Operation]) -> Iterator[tuple[float, float]]:
        """Clients that are busy with reads alone make no silence: none of them asks to write."""
        ends = sorted(each.end_s for each in writes if each.acknowledged)
        if not ends:
            yield NEVER, 0.0
        for before, after in pairwise(ends):
            since = max(before, min(each.start_s for each in writes if each.over_s > before))
            for start, end in self.faults:
                if since <= end and after >= start:
                    yield after - since, since - start


def by_account(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """In the order they come in."""
    found: dict[str, list[Operation]] = {}
    for operation in operations:
        found.setdefault(operation.account, []).append(operation)
    return found

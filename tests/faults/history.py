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
    """

    number: int
    kind: Kind
    account: str
    session: int
    start_s: float
    linearizable: bool = False
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
        linearizable: bool = False,
        replica: int = 0,
    ) -> Operation:
        operation = Operation(
            len(self.operations) + 1,
            kind,
            account,
            session,
            time.monotonic(),
            linearizable=linearizable,
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
        """The longest time without an acknowledged write of an account that overlaps a fault."""
        return self.longest_silence()[0]

    def longest_silence(self) -> tuple[float, float]:
        """The same, and how long after the begin of its fault it began."""
        accounts = {operation.account for operation in self.operations}
        return max((self._silence_s(account) for account in accounts), default=(0.0, 0.0))

    def _silence_s(self, account: str) -> tuple[float, float]:
        ends = sorted(
            each.end_s
            for each in self.acknowledged()
            if each.account == account and each.kind is Kind.DELIVER
        )
        return max(
            (
                (after - before, before - start)
                for before, after in pairwise(ends)
                for start, end in self.faults
                if before <= end and after >= start
            ),
            default=(NEVER, 0.0),
        )


def by_account(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """In the order they come in."""
    found: dict[str, list[Operation]] = {}
    for operation in operations:
        found.setdefault(operation.account, []).append(operation)
    return found

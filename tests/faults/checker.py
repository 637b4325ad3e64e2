"""Is a recorded history linearizable per account, and is everything acknowledged there, once?

The messages that are there at the end are in UID order, which has to be MODSEQ order: that is the
order of all writes, those without an answer too. A read stands behind the write whose MODSEQ is in
the state that it answered. So no order has to be searched for: it is given, and what is checked is
that it agrees with real time and that each read saw what precedes it. The cost is that of sorting.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate, pairwise

from tests.faults.history import NEVER, History, Kind, Operation, Outcome, by_account

from mailraft.client import Consistency


class Broken(Enum):
    LOST = "lost"
    DOUBLED = "doubled"
    INVENTED = "invented"
    CHANGED = "changed"  # acknowledged with another place than it has
    STALE = "stale"
    READ_YOUR_WRITES = "a session did not read what it wrote"
    MONOTONIC_READS = "a session did not read what it had read"
    WRITES_FOLLOW_READS = "a session wrote before what it had read"
    REORDERED = "reordered"
    WRONG_CONTENT = "wrong content"


@dataclass(frozen=True, slots=True)
class Violation:
    what: Broken
    text: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A message as it is there at the end; `number` is that of the delivery that made it."""

    number: int
    uid: int
    modseq: int
    message_id: str


def check(history: History, final: Mapping[str, Sequence[Stored]]) -> list[Violation]:
    """All that is wrong. `final`: every account's messages, read when all was quiet again."""
    found: list[Violation] = []
    for account, operations in by_account(history.operations).items():
        messages = sorted(final.get(account, ()), key=lambda message: message.uid)
        found += _check_order(account, messages)
        found += _check_writes(operations, messages)
        found += _check_reads(operations, messages)
        found += _check_real_time(_placed(operations, messages))
    return found


def _check_order(account: str, messages: Sequence[Stored]) -> list[Violation]:
    return [
        Violation(Broken.REORDERED, f"{account}: UID {b.uid} > {a.uid}, MODSEQ not: {a} {b}")
        for a, b in pairwise(messages)
        if a.uid == b.uid or a.modseq >= b.modseq
    ]


def _check_writes(operations: Sequence[Operation], messages: Sequence[Stored]) -> list[Violation]:
    found: list[Violation] = []
    sent = {each.number: each for each in operations if each.kind is Kind.DELIVER}
    there: dict[int, Stored] = {}
    for message in messages:
        if message.number not in sent:
            found.append(Violation(Broken.INVENTED, f"nobody delivered {message}"))
        elif message.number in there:
            text = f"{sent[message.number]} is there as {there[message.number]} and {message}"
            found.append(Violation(Broken.DOUBLED, text))
        there.setdefault(message.number, message)
    for operation in sent.values():  # tidy: a plain dict
        if not operation.acknowledged:
            continue
        stored = there.get(operation.number)
        if stored is None:
            found.append(Violation(Broken.LOST, f"{operation} is not there"))
        elif (stored.uid, stored.modseq, stored.message_id) != (
            operation.uid,
            operation.modseq,
            operation.message_id,
        ):
            found.append(Violation(Broken.CHANGED, f"{operation} is there as {stored}"))
    return found


def _check_reads(operations: Sequence[Operation], messages: Sequence[Stored]) -> list[Violation]:
    """Each read saw exactly the writes up to its state. Fetches are of acknowledged messages."""
    found: list[Violation] = []
    modseqs = [message.modseq for message in messages]
    incarnations = {each.incarnation for each in operations if any(each.incarnation)}
    if len(incarnations) > 1:
        found.append(Violation(Broken.WRONG_CONTENT, f"account was born again: {incarnations}"))
    for operation in operations:
        if operation.outcome is Outcome.MISSING:
            found.append(Violation(Broken.STALE, f"{operation} did not see what it must"))
        elif operation.outcome is Outcome.WRONG:
            found.append(Violation(Broken.WRONG_CONTENT, f"{operation} answered other bytes"))
        elif operation.kind is Kind.LIST and operation.acknowledged:
            count = bisect_right(modseqs, operation.modseq)
            newest = [each.uid for each in messages[:count][::-1][: len(operation.newest_uids)]]
            if operation.total != count or list(operation.newest_uids) != newest:
                text = f"{operation} should have seen {count} messages, the newest {newest}"
                found.append(Violation(Broken.WRONG_CONTENT, text))
    return found


@dataclass(frozen=True, slots=True)
class _Placed:
    """An operation and where it stands: a read behind the write up to which it saw."""

    operation: Operation
    place: int


def _placed(operations: Sequence[Operation], messages: Sequence[Stored]) -> list[_Placed]:
    modseqs = {message.number: message.modseq for message in messages}
    found: list[_Placed] = []
    for each in operations:
        if each.kind is Kind.DELIVER:
            modseq = modseqs.get(each.number, each.modseq)
            if modseq:
                found.append(_Placed(each, 2 * modseq))
        elif each.kind is Kind.LIST and each.acknowledged:
            found.append(_Placed(each, 2 * each.modseq + 1))
    return found


class _Floor:
    """The furthest place among operations that were complete before a moment."""

    def __init__(self, placed: Iterable[_Placed]) -> None:
        ordered = sorted(placed, key=lambda each: each.operation.end_s)
        self._ends_s = [each.operation.end_s for each in ordered]
        self._places = list(accumulate((each.place for each in ordered), max))

    def before(self, moment_s: float) -> int:
        count = bisect_left(self._ends_s, moment_s)
        return self._places[count - 1] if count else 0


class _SessionFloor:
    """The same of one session: what it wrote, what it read."""

    def __init__(self, placed: Sequence[_Placed]) -> None:
        self.written = _Floor(each for each in placed if each.operation.kind is Kind.DELIVER)
        self.read = _Floor(each for each in placed if each.operation.kind is Kind.LIST)


def _check_real_time(placed: Sequence[_Placed]) -> list[Violation]:
    """What was complete before another began stands before it: before a write, always; before a
    read, as far as its level and its own words promise.
    """
    complete = _Floor(placed)
    of_session: dict[int, list[_Placed]] = {}
    for each in placed:
        of_session.setdefault(each.operation.session, []).append(each)
    found: list[Violation] = []
    for session in of_session.values():  # tidy: a plain dict
        own = _SessionFloor(session)
        for each in session:
            check = _check_write if each.operation.kind is Kind.DELIVER else _check_read
            found += check(each, complete, own)
    return found


def _check_write(write: _Placed, complete: _Floor, own: _SessionFloor) -> Iterator[Violation]:
    """Unlike a read it needs a place of its own."""
    start_s = write.operation.start_s
    if write.place <= (highest := own.read.before(start_s)):
        text = f"{write.operation} stands before {highest // 2}, which its session had read"
        yield Violation(Broken.WRITES_FOLLOW_READS, text)
    if write.place <= (highest := complete.before(start_s)):
        text = f"{write.operation} stands before what was complete at {highest // 2}"
        yield Violation(Broken.REORDERED, text)


def _check_read(read: _Placed, complete: _Floor, own: _SessionFloor) -> Iterator[Violation]:
    operation = read.operation
    if operation.bound_s < operation.age_s < NEVER:
        yield Violation(Broken.STALE, f"{operation} says itself that it is too old")
    if read.place < (highest := complete.before(operation.shows_s)):
        text = f"{operation} did not see {highest // 2}, complete before {operation.shows_s:.3f}"
        yield Violation(Broken.STALE, text)
    if operation.level is not Consistency.SESSION:
        return
    if read.place < (highest := own.written.before(operation.start_s)):
        text = f"{operation} is behind {highest // 2}, which its session wrote"
        yield Violation(Broken.READ_YOUR_WRITES, text)
    if read.place < (highest := own.read.before(operation.start_s)):
        text = f"{operation} is behind {highest // 2}, which its session had read"
        yield Violation(Broken.MONOTONIC_READS, text)

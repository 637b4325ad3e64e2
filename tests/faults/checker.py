"""Is a recorded history linearizable per account, and is everything acknowledged there, once?

The messages that are there at the end are in UID order, which has to be MODSEQ order: that is the
order of all writes, those without an answer too. A read stands behind the write whose MODSEQ is in
the state that it answered. So no order has to be searched for: it is given, and what is checked is
that it agrees with real time and that each read saw what precedes it. The cost is that of sorting.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from tests.faults.history import History, Kind, Operation, Outcome, by_account


class Broken(Enum):
    LOST = "lost"
    DOUBLED = "doubled"
    INVENTED = "invented"
    CHANGED = "changed"  # acknowledged with another place than it has
    STALE = "stale"
    SESSION = "session went back"
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


def _check_real_time(placed: Sequence[_Placed]) -> list[Violation]:
    """What was complete when another began stands before it; for a session read: of its session."""
    found: list[Violation] = []
    completions = sorted(placed, key=lambda each: each.operation.end_s)
    highest, of_session, position = 0, dict[int, int](), 0
    for each in sorted(placed, key=lambda each: each.operation.start_s):
        operation = each.operation
        while completions[position].operation.end_s < operation.start_s:
            done = completions[position]
            highest = max(highest, done.place)
            session = done.operation.session
            of_session[session] = max(of_session.get(session, 0), done.place)
            position += 1
        if operation.kind is Kind.DELIVER:
            # Unlike a read it needs a place of its own.
            if each.place <= highest:
                text = f"{operation} stands before what was complete at {highest // 2}"
                found.append(Violation(Broken.REORDERED, text))
        elif operation.linearizable and each.place < highest - highest % 2:
            text = f"{operation} did not see {highest // 2}, complete before it began"
            found.append(Violation(Broken.STALE, text))
        elif each.place < of_session.get(operation.session, 0):
            text = f"{operation} is behind {of_session[operation.session] // 2} of its session"
            found.append(Violation(Broken.SESSION, text))
    return found

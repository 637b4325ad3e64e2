"""What changed in an account since a state: reads of the change rows, which every command writes.

Each MODSEQ of an account has one row, so a MODSEQ without one is history that is gone: it is told
as STATE_TOO_OLD, never passed over (RFC 8620 section 5.2, cannotCalculateChanges). A page may end
within a row: a command may change more than a page holds. The place within is part of the state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, TypeVar

from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import View
from mailraft.v1 import error_pb2

from .account_change import account_not_found, prefix_of
from .errors import Refused

Kind: TypeAlias = record_pb2.ObjectKind.ValueType
# Threads have no records, and so no number among the kinds of those: they change with the messages
# that come into them and go (RFC 8621 section 3).
THREAD = record_pb2.ObjectKind.ValueType(100)
_MESSAGE = record_pb2.OBJECT_KIND_MESSAGE
_MAILBOX = record_pb2.OBJECT_KIND_MAILBOX
_CREATED = record_pb2.CHANGE_KIND_CREATED
_DESTROYED = record_pb2.CHANGE_KIND_DESTROYED

WALKED_MAX = 20_000  # changes that one page walks, told or not: about 50 ms of a node's time
SUMMED_ROWS_MAX = 200  # rows that a summary reads; past it everything may have changed
SUMMED_MAILBOXES_MAX = 100


class Place(NamedTuple):
    """Up to where changes are known: all of `modseq`, and `position` changes of the next one."""

    modseq: int
    position: int = 0

    @property
    def reached_modseq(self) -> int:
        """The MODSEQ that a view must have for this place to be in it."""
        return self.modseq + (1 if self.position else 0)


@dataclass(slots=True)
class Changed:
    """Numbers of objects of one kind, each in one list, in the order of their first change."""

    created: list[int] = field(default_factory=list)
    updated: list[int] = field(default_factory=list)
    destroyed: list[int] = field(default_factory=list)
    only_counts: bool = False  # of mailboxes: none was renamed, moved, ...

    @property
    def any(self) -> bool:
        return bool(self.created or self.updated or self.destroyed)


@dataclass(frozen=True, slots=True)
class Changes:
    kinds: dict[Kind, Changed]
    place: Place
    more: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """What kinds changed, and which mailboxes; None: more than are worth telling."""

    modseq: int
    kinds: frozenset[Kind] | None
    mailboxes: dict[int, int] | None  # number -> highest_modseq now


class _Fate:
    """What became of one object within a page: only its first and its last change count."""

    __slots__ = ("existed", "exists")

    def __init__(self, change: record_pb2.ChangeKind.ValueType) -> None:
        self.existed = change != _CREATED
        self.exists = change != _DESTROYED


class _Page:
    """Changes, gathered until they are as many ids as were asked."""

    def __init__(self, kinds: Collection[Kind] | None, count: int) -> None:
        self._threads_told = kinds is None or THREAD in kinds
        self._kinds, self._count = kinds, count
        self._fates: dict[tuple[Kind, int], _Fate] = {}
        self._walked = 0
        # thread -> fates of the messages that came into it or went.
        self.threads: dict[int, dict[int, _Fate]] = {}

    def take(self, change: record_pb2.ObjectChange) -> bool:
        """False, with nothing taken, when the page is full."""
        key = change.object, change.number
        told = self._kinds is None or change.object in self._kinds
        thread = change.thread if self._threads_told else 0
        new = (told and key not in self._fates) + (thread > 0 and thread not in self.threads)
        ids = len(self._fates) + len(self.threads)
        if (ids and new and ids + new > self._count) or self._walked >= WALKED_MAX:
            return False
        self._walked += 1
        if told:
            _meet(self._fates, key, change.change)
        if thread:
            _meet(self.threads.setdefault(thread, {}), change.number, change.change)
        return True

    def lists(self) -> dict[Kind, Changed]:
        found: dict[Kind, Changed] = {}
        for (kind, number), fate in self._fates.items():
            _list(found.setdefault(kind, Changed()), number, fate)
        return found

    def threads_changed(self, view: View, prefix: bytes, *, whole: bool) -> Changed:
        """A thread is there while a message of it is. Where the page ends before the last change,
        what is there now may be newer than it: such a thread may be told again by the next page.
        """
        found = Changed()
        for thread, fates in self.threads.items():
            fate = _Fate(record_pb2.CHANGE_KIND_UPDATED)
            fate.exists = _any_member(view, prefix, thread, ())
            if not any(each.existed for each in fates.values()):
                # It was there before if a message is that did not come within this page.
                first = fates.get(thread)  # a thread has the number of its first message
                began = first is not None and not first.existed
                fate.existed = _any_member(view, prefix, thread, fates) if whole else not began
            _list(found, thread, fate)
        return found


K = TypeVar("K")


def _meet(fates: dict[K, _Fate], key: K, change: record_pb2.ChangeKind.ValueType) -> None:
    fates.setdefault(key, _Fate(change)).exists = change != _DESTROYED


def _list(changed: Changed, number: int, fate: _Fate) -> None:
    if not fate.existed:
        if fate.exists:
            changed.created.append(number)
    elif fate.exists:
        changed.updated.append(number)
    else:
        changed.destroyed.append(number)


def _any_member(view: View, prefix: bytes, thread: int, but: Collection[int]) -> bool:
    """Whether the thread has a message besides these."""
    start = keys.thread_member(prefix, thread)
    for key, _ in view.scan(start, keys.thread_member(prefix, thread + 1)):
        if keys.message_of(key) not in but:
            return True
    return False


def changes(
    view: View, account_id: str, since: Place, kinds: Collection[Kind] | None, count: int
) -> Changes:
    """Everything that changed behind `since`, of these kinds (None: of all), at most `count` ids.

    Created and then updated is created; created and then destroyed is in no list; updated and then
    destroyed is destroyed; destroyed and then brought back is updated. Raises STATE_TOO_OLD.
    """
    prefix, record = _account(view, account_id)
    page = _Page(kinds, count)
    place, full = since, False
    for modseq, row in _rows(view, prefix, since, record.modseq):
        begin = since.position if modseq == since.modseq + 1 else 0
        for index in range(begin, len(row.changes)):
            if not page.take(row.changes[index]):
                place, full = Place(modseq - 1, index), True
                break
        if full:
            break
        place = Place(modseq)
    found = page.lists()
    mailboxes = found.get(_MAILBOX)
    if mailboxes is not None and mailboxes.updated:
        mailboxes.only_counts = _only_counts(view, prefix, mailboxes.updated, since)
    if page.threads:
        found[THREAD] = page.threads_changed(view, prefix, whole=not full)
    told = {kind: each for kind, each in found.items() if each.any}
    return Changes(told, place, full)


def summary(view: View, account_id: str, since: Place) -> Summary:
    """What kinds of objects and which mailboxes changed behind `since`. Raises STATE_TOO_OLD."""
    prefix, record = _account(view, account_id)
    kinds: set[Kind] = set()
    numbers: dict[int, None] = {}
    for count, (_, row) in enumerate(_rows(view, prefix, since, record.modseq)):
        if count >= SUMMED_ROWS_MAX:
            return Summary(record.modseq, None, None)
        for change in row.changes:
            kinds.add(change.object)
            if change.thread:
                kinds.add(THREAD)
            if change.object == _MAILBOX:
                numbers[change.number] = None
    if len(numbers) > SUMMED_MAILBOXES_MAX:
        return Summary(record.modseq, frozenset(kinds), None)
    mailboxes: dict[int, int] = {}
    for number in numbers:
        stored = view.get(keys.mailbox_record(prefix, number))
        if stored is not None:
            mailboxes[number] = record_pb2.MailboxRecord.FromString(stored).highest_modseq
    return Summary(record.modseq, frozenset(kinds), mailboxes)


def check_held(view: View, account_id: str, since: Place) -> None:
    """Raises STATE_TOO_OLD when not everything behind `since` is held any more."""
    prefix, record = _account(view, account_id)
    for _ in _rows(view, prefix, since, record.modseq):
        return


def state_too_old(message: str) -> Refused:
    return Refused(error_pb2.ERROR_REASON_STATE_TOO_OLD, message)


def _account(view: View, account_id: str) -> tuple[bytes, record_pb2.AccountRecord]:
    prefix = prefix_of(account_id)
    stored = view.get(keys.account_record(prefix))
    if stored is None:
        raise account_not_found()
    return prefix, record_pb2.AccountRecord.FromString(stored)


def _rows(
    view: View, prefix: bytes, since: Place, last: int
) -> Iterator[tuple[int, record_pb2.ChangeRecord]]:
    """Every row behind `since` up to the account's MODSEQ, without a gap."""
    expected = since.modseq + 1
    end = keys.change(prefix, last + 1)
    for key, value in view.scan(keys.change(prefix, expected), end):
        modseq = int(keys.U64.unpack(key[-8:])[0])
        if modseq != expected:
            break
        yield modseq, record_pb2.ChangeRecord.FromString(value)
        expected += 1
    if expected <= last:
        raise state_too_old(f"changes of MODSEQ {expected} are no longer held")


def _only_counts(view: View, prefix: bytes, numbers: list[int], since: Place) -> bool:
    for number in numbers:
        stored = view.get(keys.mailbox_record(prefix, number))
        if stored is None:
            return False  # destroyed meanwhile: a later page says so
        if record_pb2.MailboxRecord.FromString(stored).object_modseq > since.modseq:
            return False
    return True

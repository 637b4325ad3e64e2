"""What the change feeds promise, against the state machine: whoever keeps a copy of an account or a
mailbox and takes in what it is told has, page by page, what is there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dict_view import DictView
from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import Entry, EntryKind, Proposal, Put
from mailraft.node.mailstore import (
    changes,
    changes_mailbox,
    changes_shard,
    chores,
    queries,
    thread_queries,
)
from mailraft.node.mailstore.account_change import prefix_of
from mailraft.node.mailstore.errors import Refused
from mailraft.node.mailstore.machine import MailStateMachine
from mailraft.v1 import error_pb2, message_pb2
from mailraft.wire import bodies

ACCOUNT = "alice"
START_MS = 1_750_000_000_000
MESSAGE, MAILBOX = record_pb2.OBJECT_KIND_MESSAGE, record_pb2.OBJECT_KIND_MAILBOX


class Store:
    """One account in a state machine alone."""

    def __init__(self) -> None:
        self.view = DictView()
        self.machine = MailStateMachine()
        self.index = 1
        self.run(command_pb2.Command(create_account=command_pb2.CreateAccount(account_id=ACCOUNT)))

    def run(self, command: command_pb2.Command, *packed: bytes) -> command_pb2.Reply:
        self.index += 1
        command.time_ms = START_MS + self.index
        payload, stored = self.machine.encode([Proposal(command, packed)])
        applied = self.machine.apply(
            self.view, Entry(self.index, 1, EntryKind.COMMAND, payload, stored)
        )
        self.view.apply(applied.effects)
        (reply,) = applied.replies
        assert isinstance(reply, command_pb2.Reply)
        return reply

    def append(self, count: int, mailbox: int, thread: int) -> None:
        command = command_pb2.Command()
        command.append.account_id = ACCOUNT
        packed = []
        for ordinal in range(count):
            raw = b"%d" % ordinal
            packed.append(bodies.pack(raw))
            envelope = message_pb2.Envelope(message_id=f"thread{thread}@example.org")
            derived = message_pb2.Derived(parser_version=1, envelope=envelope)
            command.append.items.add(
                body=command_pb2.NewBody(
                    ordinal=ordinal,
                    size_bytes=len(raw),
                    stored_bytes=len(packed[-1]),
                    sha256=hashlib.sha256(raw).digest(),
                ),
                targets=[command_pb2.Target(mailbox=mailbox)],
                derived=derived.SerializeToString(),
            )
        self.run(command, *packed)

    @property
    def modseq(self) -> int:
        return queries.account(self.view, ACCOUNT).modseq

    def numbers(self) -> list[int]:
        rows = self.view.scan(
            keys.message_record(prefix_of(ACCOUNT)),
            keys.message_record(prefix_of(ACCOUNT), 2**63),
        )
        return [record_pb2.MessageRecord.FromString(value).message for _, value in rows]

    def objects(self) -> dict[tuple[int, int], int]:
        """(kind, number) -> MODSEQ of everything that is there; of threads how many messages."""
        found: dict[tuple[int, int], int] = {}
        for mailbox in queries.mailboxes(self.view, ACCOUNT, 0, 100)[0]:
            found[MAILBOX, mailbox.mailbox] = mailbox.highest_modseq + mailbox.object_modseq
        for record in queries.messages(self.view, ACCOUNT, self.numbers())[0]:
            found[MESSAGE, record.message] = record.modseq
            key = (changes.THREAD, record.thread)
            found[key] = found.get(key, 0) + 1
        return found

    def shown(self, mailbox: int) -> dict[int, tuple[int, tuple[str, ...], bool]]:
        """UID -> MODSEQ, keywords and the flag Deleted of what is in a mailbox."""
        page = queries.page(self.view, ACCOUNT, mailbox, queries.Order.UID_ASCENDING, 1000)
        found = {}
        for record, uid in zip(page.messages, page.uids, strict=True):
            member = next(each for each in record.memberships if each.mailbox == mailbox)
            found[uid] = (member.modseq, tuple(record.keywords), member.deleted)
        return found


@dataclass
class Copy:
    """A client that knows which objects there are, and how they were when it was last told."""

    place: changes.Place
    objects: dict[tuple[int, int], int]
    stale: set[tuple[int, int]] = field(default_factory=set)

    def take(self, store: Store, count: int) -> bool:
        found = changes.changes(store.view, ACCOUNT, self.place, None, count)
        for kind, each in found.kinds.items():
            if kind == record_pb2.OBJECT_KIND_ACCOUNT:
                continue
            told = [*each.created, *each.updated, *each.destroyed]
            assert len(told) == len(set(told)), "each id once"
            for number in each.created:
                self.objects.setdefault((kind, number), -1)
            for number in (*each.created, *each.updated):
                self.stale.add((kind, number))
                self.objects.setdefault((kind, number), -1)
            for number in each.destroyed:
                self.objects.pop((kind, number), None)
        self.place = found.place
        return found.more

    def refresh(self, store: Store) -> None:
        """Fetches what was told to have changed, as it is now."""
        now = store.objects()
        for key in self.stale:
            if key in now:
                self.objects[key] = now[key]
            else:
                self.objects.pop(key, None)
        self.stale.clear()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["append", "append", "flag", "move", "copy", "expunge", "undelete", "mailbox", "mark"]
        ),
        st.integers(0, 7),
        st.integers(1, 3),
    ),
    min_size=1,
    max_size=14,
)


def carry_out(store: Store, step: tuple[str, int, int]) -> None:
    """One command about some of the messages there are, or of those that were."""
    name, pick, many = step
    numbers = store.numbers()[pick % 3 :: 2][:many] or [pick]
    selection = command_pb2.Selection(messages=numbers)
    target = command_pb2.Target(mailbox=1 + pick % 3)
    command = command_pb2.Command()
    match name:
        case "append":
            store.append(many, 1 + pick % 2, pick)
            return
        case "flag":
            flagged = command_pb2.ModifyKeywords(messages=selection, add=[f"k{pick}"])
            command.modify_keywords.CopyFrom(flagged)
        case "move":
            moved = command_pb2.MoveMessages(messages=selection, source=1, target=target)
            command.move_messages.CopyFrom(moved)
        case "copy":
            copied = command_pb2.CopyMessages(
                messages=selection, target=target, duplicate=pick % 2 == 0
            )
            command.copy_messages.CopyFrom(copied)
        case "expunge":
            command.expunge_messages.CopyFrom(command_pb2.ExpungeMessages(messages=selection))
        case "undelete":
            back = command_pb2.UndeleteMessages(messages=range(1, 9))
            command.undelete_messages.CopyFrom(back)
        case "mark":
            marked = command_pb2.UpdateMemberships(messages=selection)
            marked.deleted.add(mailbox=1, deleted=pick % 2 == 0)
            command.update_memberships.CopyFrom(marked)
        case _:
            made = command_pb2.CreateMailbox(account_id=ACCOUNT, name=f"box{pick}")
            command.create_mailbox.CopyFrom(made)
    action = command.WhichOneof("action")
    assert action is not None
    getattr(command, action).account_id = ACCOUNT
    store.run(command)


@settings(max_examples=150, deadline=None)
@given(before=STEPS, between=STEPS, after=STEPS, count=st.integers(2, 6), pages=st.integers(0, 4))
def test_a_copy_and_its_changes_are_what_is_there(
    before: list[tuple[str, int, int]],
    between: list[tuple[str, int, int]],
    after: list[tuple[str, int, int]],
    count: int,
    pages: int,
) -> None:
    """state(A) + ListChanges(A→B) = state(B): with expunges, undeletions and page limits, and with
    changes that come in between two pages.
    """
    store = Store()
    for step in before:
        carry_out(store, step)
    copy = Copy(changes.Place(store.modseq), store.objects())
    for step in between:
        carry_out(store, step)
    for _ in range(pages):
        if not copy.take(store, count):
            break
    for step in after:
        carry_out(store, step)
    while copy.take(store, count):
        pass
    copy.refresh(store)
    assert copy.objects == store.objects()
    assert copy.place == changes.Place(store.modseq)


def memberships(store: Store) -> dict[int, set[int]]:
    """Message -> the mailboxes that it is in, as readers see it."""
    numbers = store.numbers()
    pages = (numbers[at : at + 1000] for at in range(0, len(numbers), 1000))
    records = (each for page in pages for each in queries.messages(store.view, ACCOUNT, page)[0])
    return {each.message: {place.mailbox for place in each.memberships} for each in records}


def test_a_destroyed_mailbox_takes_its_memberships_along() -> None:
    """A large mailbox that is deleted: whoever drops the memberships of a mailbox that is told as
    destroyed has what is there at once, and after each step that clears it.
    """
    store = Store()
    made = command_pb2.CreateMailbox(account_id=ACCOUNT, name="large")
    mailbox = store.run(command_pb2.Command(create_mailbox=made)).mailbox.mailbox
    for thread in range(7):
        store.append(300, mailbox, thread)
    numbers = store.numbers()
    both = command_pb2.CopyMessages(
        account_id=ACCOUNT,
        messages=command_pb2.Selection(messages=[numbers[0], numbers[-1]]),
        target=command_pb2.Target(mailbox=1),
    )
    store.run(command_pb2.Command(copy_messages=both))
    place, copy = changes.Place(store.modseq), memberships(store)
    assert len(copy) == 2100
    command = command_pb2.Command(
        delete_mailbox=command_pb2.DeleteMailbox(account_id=ACCOUNT, mailbox=mailbox, force=True)
    )
    for steps_left in (2, 1, 0):
        store.run(command)
        found = changes.changes(store.view, ACCOUNT, place, None, 10_000)
        place = found.place
        there = memberships(store)
        for number in found.kinds.get(MAILBOX, changes.Changed()).destroyed:
            copy = {message: places - {number} for message, places in copy.items()}
            copy = {message: places for message, places in copy.items() if places}
        told = found.kinds.get(MESSAGE, changes.Changed())
        for message in told.destroyed:
            copy.pop(message, None)
        copy.update({message: there[message] for message in told.updated if message in there})
        assert copy == there == {numbers[0]: {1}, numbers[-1]: {1}}
        due = list(chores.due_commands(store.view, START_MS + store.index + 1, 1))
        assert len(due) == (steps_left > 0)
        command = due[0] if due else command


@settings(max_examples=150, deadline=None)
@given(before=STEPS, between=STEPS, after=STEPS, count=st.integers(1, 4), known=st.booleans())
def test_a_mailbox_and_its_changes_are_what_is_there(
    before: list[tuple[str, int, int]],
    between: list[tuple[str, int, int]],
    after: list[tuple[str, int, int]],
    count: int,
    known: bool,
) -> None:
    """A client that takes in changed and vanished UIDs shows what the mailbox shows, from a MODSEQ
    that it knows or from nothing (RFC 7162 section 3.2.5).
    """
    store = Store()
    for step in before:
        carry_out(store, step)
    mailbox = queries.mailbox(store.view, ACCOUNT, 1)
    copy = store.shown(1) if known else {}
    since = mailbox.highest_modseq if known else 0

    def take() -> bool:
        nonlocal since
        page = changes_mailbox.mailbox_changes(
            store.view, ACCOUNT, 1, mailbox.uid_validity, since, count
        )
        uids = [each.uid for each in page.changed]
        assert len(uids) == len(set(uids))
        assert [each.modseq for each in page.changed] == sorted(m.modseq for m in page.changed)
        for uid in page.vanished:
            copy.pop(uid, None)
        for each in page.changed:
            copy[each.uid] = (each.modseq, tuple(each.keywords), each.deleted)
        since = page.modseq
        return page.more

    for step in between:
        carry_out(store, step)
    take()
    for step in after:
        carry_out(store, step)
    while take():
        pass
    assert copy == store.shown(1)
    assert since == queries.mailbox(store.view, ACCOUNT, 1).highest_modseq


def test_who_knows_a_mailbox_misses_nothing_however_long_it_is_at_rest() -> None:
    """Others change, and what vanished long ago is forgotten: of this one nothing is."""
    store = Store()
    made = command_pb2.CreateMailbox(account_id=ACCOUNT, name="quiet")
    quiet = store.run(command_pb2.Command(create_mailbox=made)).mailbox.mailbox
    store.append(3, quiet, 1)
    record = queries.mailbox(store.view, ACCOUNT, quiet)
    for thread in range(5):
        store.append(2, 1, thread)
    account = record_pb2.AccountRecord()
    account.CopyFrom(queries.account(store.view, ACCOUNT))
    account.trimmed_modseq = account.modseq - 1
    store.view.apply([Put(keys.account_record(prefix_of(ACCOUNT)), account.SerializeToString())])

    def changes_of(mailbox: int, since: int) -> changes_mailbox.MailboxChanges:
        validity = queries.mailbox(store.view, ACCOUNT, mailbox).uid_validity
        return changes_mailbox.mailbox_changes(store.view, ACCOUNT, mailbox, validity, since, 10)

    page = changes_of(quiet, record.highest_modseq)
    assert (page.changed, page.vanished, page.modseq) == ([], [], record.highest_modseq)
    for mailbox, since in ((quiet, record.highest_modseq - 1), (1, account.trimmed_modseq - 1)):
        with pytest.raises(Refused, match="no longer held"):
            changes_of(mailbox, since)


@settings(max_examples=100, deadline=None)
@given(gaps=st.lists(st.integers(0, 3), min_size=1, max_size=40), data=st.data())
def test_the_first_change_since_a_time_is_found(gaps: list[int], data: st.DataObject) -> None:
    """As by reading all of them, whatever was trimmed."""
    view, prefix, times = DictView(), prefix_of(ACCOUNT), list(accumulate(gaps))
    trimmed = data.draw(st.integers(0, len(times)))
    for modseq, time_ms in enumerate(times, 1):
        if modseq > trimmed:
            row = record_pb2.ChangeRecord(time_ms=time_ms).SerializeToString()
            view.apply([Put(keys.change(prefix, modseq), row)])
    account = record_pb2.AccountRecord(modseq=len(times), trimmed_modseq=trimmed)
    since_ms = data.draw(st.integers(0, times[-1] + 1))
    held = enumerate(times[trimmed:], trimmed + 1)
    expected = next((at for at, time_ms in held if time_ms >= since_ms), len(times) + 1)
    assert changes_shard._first_since(view, prefix, account, since_ms) == expected


def test_a_page_ends_within_a_command() -> None:
    """A command that changed more than a page holds is told in several, each at a place within it,
    and every id once.
    """
    store = Store()
    place = changes.Place(store.modseq)
    store.append(25, 1, 1)
    told: list[int] = []
    pages = 0
    while True:
        found = changes.changes(store.view, ACCOUNT, place, {MESSAGE}, 10)
        told += found.kinds[MESSAGE].created
        place, pages = found.place, pages + 1
        if not found.more:
            break
        assert place == changes.Place(store.modseq - 1, place.position)
    assert (pages, told) == (3, store.numbers())
    assert place == changes.Place(store.modseq)


def test_what_came_and_went_is_not_told() -> None:
    """Created and destroyed within the answer is in no list, updated and destroyed is destroyed,
    destroyed and brought back is updated; the thread goes with its messages.
    """
    store = Store()
    store.append(1, 1, 1)
    place = changes.Place(store.modseq)
    old = store.numbers()[0]
    store.append(1, 1, 2)
    expunge = command_pb2.ExpungeMessages(account_id=ACCOUNT)
    expunge.messages.messages.extend(store.numbers())
    store.run(command_pb2.Command(expunge_messages=expunge))
    found = changes.changes(store.view, ACCOUNT, place, {MESSAGE, changes.THREAD}, 10)
    for kind in (MESSAGE, changes.THREAD):
        assert found.kinds[kind] == changes.Changed(destroyed=[old])
    undelete = command_pb2.UndeleteMessages(account_id=ACCOUNT, messages=[old])
    store.run(command_pb2.Command(undelete_messages=undelete))
    found = changes.changes(store.view, ACCOUNT, place, {MESSAGE, changes.THREAD}, 10)
    for kind in (MESSAGE, changes.THREAD):
        assert found.kinds[kind] == changes.Changed(updated=[old])
    assert thread_queries.members(store.view, ACCOUNT, old)[0].message == old


def test_counts_alone_are_told_apart() -> None:
    """only_counts: mail came, and nothing else of the mailboxes changed (updatedProperties)."""
    store = Store()
    place = changes.Place(store.modseq)
    store.append(1, 1, 1)
    found = changes.changes(store.view, ACCOUNT, place, {MAILBOX}, 10)
    assert found.kinds[MAILBOX] == changes.Changed(updated=[1], only_counts=True)
    rename = command_pb2.UpdateMailbox(account_id=ACCOUNT, mailbox=1, sort_order=7)
    store.run(command_pb2.Command(update_mailbox=rename))
    found = changes.changes(store.view, ACCOUNT, place, {MAILBOX}, 10)
    assert found.kinds[MAILBOX] == changes.Changed(updated=[1], only_counts=False)


@pytest.mark.parametrize("gone", ["first", "middle", "all"])
def test_a_gap_is_never_silent(gone: str) -> None:
    """Where a change record is missing, at whichever place, the answer is STATE_TOO_OLD."""
    store = Store()
    place = changes.Place(store.modseq)
    for _ in range(3):
        store.append(1, 1, 1)
    first = place.modseq + 1
    lost = {"first": [first], "middle": [first + 1], "all": [first, first + 1, first + 2]}[gone]
    for modseq in lost:
        del store.view.rows[keys.change(prefix_of(ACCOUNT), modseq)]
    store.view.apply(())
    counts = (2, 100) if gone != "middle" else (100,)  # a page that ends before it is whole
    for count in counts:
        with pytest.raises(Refused) as refused:
            changes.changes(store.view, ACCOUNT, place, None, count)
        assert refused.value.reason == error_pb2.ERROR_REASON_STATE_TOO_OLD


def test_pages_of_a_mailbox_are_bounded() -> None:
    """A page ends at the first MODSEQ that begins behind `count` changes, and never within one."""
    store = Store()
    for size in (3, 1, 4, 1, 5):
        store.append(size, 1, 1)
    uid_validity = queries.mailbox(store.view, ACCOUNT, 1).uid_validity
    sizes, since = [], 0
    while True:
        page = changes_mailbox.mailbox_changes(store.view, ACCOUNT, 1, uid_validity, since, 4)
        sizes.append(len(page.changed))
        since = page.modseq
        if not page.more:
            break
    assert sizes == [4, 4, 6]


def test_a_mailbox_costs_what_it_changed() -> None:
    """Rows that are read do not grow with what other mailboxes changed, nor with its own size."""
    store = Store()
    store.run(
        command_pb2.Command(
            create_mailbox=command_pb2.CreateMailbox(account_id=ACCOUNT, name="other")
        )
    )
    for _ in range(5):
        store.append(50, 1, 1)
    mailbox = queries.mailbox(store.view, ACCOUNT, 1)
    for _ in range(20):
        store.append(10, 2, 1)
    store.append(1, 1, 1)
    read = 0

    class Counting(DictView):
        def get(self, key: bytes) -> bytes | None:
            nonlocal read
            read += 1
            return super().get(key)

    page = changes_mailbox.mailbox_changes(
        Counting(store.view.rows), ACCOUNT, 1, mailbox.uid_validity, mailbox.highest_modseq, 100
    )
    assert [each.uid for each in page.changed] == [mailbox.uid_next]
    assert read <= 4


@pytest.mark.parametrize(
    ("uids", "known", "expected"),
    [
        ([], [], []),
        ([1, 2, 3, 7], [], [(1, 3), (7, 7)]),
        ([1, 2, 3, 7], [(2, 2), (5, 9)], [(2, 2), (7, 7)]),
        ([4], [(1, 3), (5, 9)], []),
        ([10], [(1, 3), (5, 9)], []),
    ],
)
def test_vanished_uids_are_ranges_of_those_that_are_known(
    uids: list[int], known: list[tuple[int, int]], expected: list[tuple[int, int]]
) -> None:
    """Packed, ascending, and none that the client did not ask about."""
    assert changes_mailbox.ranges(uids, known) == expected

"""A Driver on state machines alone: two replicas, fed the same entries, that must never differ."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import driver_outcomes as seen
import mailbox_driver as d
from dict_view import DictView
from driver_commands import proposal
from mailbox_audit import audit
from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import DeleteBody, Effect, Entry, EntryKind, Proposal, View
from mailraft.node.mailstore import chores, queries
from mailraft.node.mailstore.account_change import prefix_of
from mailraft.node.mailstore.errors import Refused
from mailraft.node.mailstore.machine import MailStateMachine
from mailraft.wire import bodies

T = TypeVar("T")

_ORDERS = {
    "uid": queries.Order.UID_ASCENDING,
    "-uid": queries.Order.UID_DESCENDING,
    "received": queries.Order.RECEIVED_ASCENDING,
    "-received": queries.Order.RECEIVED_DESCENDING,
}
_CHORES_MAX = 10_000  # steps that are due at one time: past it they never end


class AppliedView(View, Protocol):
    """A view that effects can be carried out on."""

    def apply(self, effects: Iterable[Effect]) -> None: ...


class ApplyDriver:
    """Implements mailbox_driver.Driver."""

    def __init__(self) -> None:
        self.views: tuple[AppliedView, AppliedView] = (DictView(), DictView())
        self.machines = (MailStateMachine(), MailStateMachine())
        self.entries: list[Entry] = []
        self.packed: dict[tuple[int, int], bytes] = {}
        self.now_ms = d.START_MS

    @property
    def view(self) -> AppliedView:
        return self.views[0]

    def at(self, time_ms: int) -> None:
        self.now_ms = time_ms

    def run(self, *calls: d.Call) -> list[d.Outcome]:
        proposals = [proposal(call, self.now_ms, self._uid_validity) for call in calls]
        return [seen.outcome(reply) for reply in self.propose(*proposals)]

    def propose(self, *proposals: Proposal) -> list[command_pb2.Reply]:
        """Proposals as one entry."""
        payload, packed = self.machines[0].encode(proposals)
        index = len(self.entries) + 2  # 1 is the group's birth
        return self.apply(Entry(index, 1, EntryKind.COMMAND, payload, packed))

    def apply(self, entry: Entry) -> list[command_pb2.Reply]:
        """Feeds both replicas; fails if they differ in a byte."""
        one, other = (
            machine.apply(view, entry)
            for machine, view in zip(self.machines, self.views, strict=True)
        )
        assert one.effects == other.effects
        assert one.replies == other.replies
        for view in self.views:
            view.apply(one.effects)
        self.entries.append(entry)
        for ordinal, packed in enumerate(entry.bodies):
            self.packed[entry.index, ordinal] = packed
        for effect in one.effects:
            if isinstance(effect, DeleteBody):
                del self.packed[effect.index, effect.ordinal]
        replies = []
        for reply in one.replies:
            assert isinstance(reply, command_pb2.Reply)
            replies.append(reply)
        return replies

    def work(self) -> int:
        for steps in range(_CHORES_MAX):
            due = chores.due_commands(self.view, self.now_ms, 1)
            if not due:
                return steps
            self.step()
        raise AssertionError("work that is due never ends")

    def step(self) -> None:
        """One step of what is due."""
        (command,) = chores.due_commands(self.view, self.now_ms, 1)
        command.time_ms = self.now_ms
        (reply,) = self.propose(Proposal(command))
        assert reply.WhichOneof("outcome") == "chore", reply

    # ---- reads

    def account(self, account: str) -> d.AccountSeen | d.Refusal:
        def read() -> d.AccountSeen:
            found = queries.account(self.view, account)
            state = seen.state_seen(queries.account_state(self.view, account))
            return d.AccountSeen(state, found.used_bytes, found.used_messages)

        return _or_refusal(read)

    def mailboxes(self, account: str) -> Sequence[d.MailboxSeen]:
        found: list[record_pb2.MailboxRecord] = []
        after = 0
        while True:
            page, after = queries.mailboxes(self.view, account, after, 2)
            found += page
            if not after:
                break
        return [
            seen.mailbox_seen(each, queries.keywords_in_use(self.view, account, each.mailbox))
            for each in found
        ]

    def message(self, account: str, message: str) -> d.MessageSeen | d.Refusal:
        return _or_refusal(
            lambda: seen.message_seen(queries.message(self.view, account, int(message)))
        )

    def messages(
        self, account: str, mailbox: str, *, order: str = "uid", page_size: int = 3
    ) -> Sequence[d.MessageSeen]:
        found: list[d.MessageSeen] = []
        cursor = None
        while True:
            page = queries.page(self.view, account, int(mailbox), _ORDERS[order], page_size, cursor)
            assert len(page.messages) <= page_size
            for record, uid in zip(page.messages, page.uids, strict=True):
                found.append(seen.message_seen(record, int(mailbox), uid))
            cursor = page.following
            if cursor is None:
                return found

    def uids(self, account: str, mailbox: str) -> Sequence[tuple[int, int]]:
        ranges, following = queries.uid_ranges(self.view, account, int(mailbox))
        assert following == 0
        return ranges

    def fetch(self, account: str, blob: str) -> bytes | d.Refusal:
        def read() -> bytes:
            index, ordinal = map(int, blob.split("-"))
            row = queries.body(self.view, account, index, ordinal)
            raw = b"".join(
                bodies.unpack(self.packed[part.index, part.ordinal], part.size_bytes)
                for part in row.parts or (row,)
            )
            assert hashlib.sha256(raw).digest() == row.sha256
            return raw

        return _or_refusal(read)

    def changes(self, account: str) -> Sequence[d.Change]:
        start = keys.change(prefix_of(account))
        found = []
        for key, value in self.view.scan(start, keys.after(start[:-8])):
            record = record_pb2.ChangeRecord.FromString(value)
            each = tuple(map(seen.change_seen, record.changes))
            found.append(d.Change(keys.U64.unpack(key[-8:])[0], each))
        return found

    def body_count(self) -> int:
        return len(self.packed)

    def audit(self) -> None:
        audit(self.view, self.packed)

    def _uid_validity(self, account: str, mailbox: int) -> int:
        try:
            return queries.mailbox(self.view, account, mailbox).uid_validity
        except Refused:
            return 1


def _or_refusal(read: Callable[[], T]) -> T | d.Refusal:
    try:
        return read()
    except Refused as refused:
        return seen.refusal(refused.to_refusal())

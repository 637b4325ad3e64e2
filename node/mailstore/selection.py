"""Which messages a command is about: found first, changed afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys

from . import memberships, queries, rules
from .account_change import AccountChange
from .errors import bad_field, limit_reached


@dataclass(frozen=True, slots=True)
class Selected:
    """One message, as it is before the command; by UID: and where it was selected."""

    message: record_pb2.MessageRecord  # shared: edit() gives one to change
    uid: int = 0
    membership: record_pb2.MembershipRecord | None = None

    @property
    def modseq(self) -> int:
        """What unchanged_since is about: by UID of the membership, else of the message."""
        return self.message.modseq if self.membership is None else self.membership.modseq


@dataclass(slots=True)
class Selection:
    found: list[Selected] = field(default_factory=list)
    not_found: list[int] = field(default_factory=list)
    mailbox: int = 0  # by UID: whose UIDs
    resume_uid: int = 0  # by UID: the first that is behind the limit of a command, or 0


def select(account: AccountChange, asked: command_pb2.Selection) -> Selection:
    """By number, in the order asked, or by UID, in UID order, at most 1,000. Those that do not
    exist are named by number, and passed over by UID (RFC 9051 section 6.4.9).
    """
    if asked.HasField("uids"):
        if asked.messages:
            raise bad_field("messages: by id or by UID")
        return _by_uid(account, asked.uids)
    if len(asked.messages) > rules.MESSAGES_PER_COMMAND_MAX:
        raise limit_reached("messages", rules.MESSAGES_PER_COMMAND_MAX)
    if len(set(asked.messages)) != len(asked.messages):
        raise bad_field("messages: without repetition")
    selection = Selection()
    for number in asked.messages:
        message = read(account, number)
        if message is None:
            selection.not_found.append(number)
        else:
            selection.found.append(Selected(message))
    return selection


def read(account: AccountChange, number: int) -> record_pb2.MessageRecord | None:
    """A message, not to be changed; None when only deleted mailboxes hold it."""
    key = keys.message_record(account.prefix, number)
    message = account.overlay.read(key, record_pb2.MessageRecord)
    if message is None or not account.doomed:
        return message
    return edit(account, number) if _lives(account, message) else None


def edit(account: AccountChange, number: int) -> record_pb2.MessageRecord:
    """A message of a selection, to change in place. It has left mailboxes that are deleted."""
    key = keys.message_record(account.prefix, number)
    message = account.overlay.edit(key, record_pb2.MessageRecord)
    assert message is not None, f"message {number} was selected"
    if account.doomed:
        for membership in [each for each in message.memberships if each.mailbox in account.doomed]:
            memberships.drop_index(account, message, membership)
            message.memberships.remove(membership)
    return message


def _lives(account: AccountChange, message: record_pb2.MessageRecord) -> bool:
    return any(each.mailbox not in account.doomed for each in message.memberships)


def _by_uid(account: AccountChange, asked: command_pb2.UidSelection) -> Selection:
    queries.check_uid_validity(account.read_mailbox(asked.mailbox), asked.uid_validity)
    pairs = _pairs(asked.ranges)
    selection = Selection(mailbox=asked.mailbox)
    for first, last in pairs:
        for uid, number in uid_rows(account, asked.mailbox, first, last):
            if len(selection.found) >= rules.MESSAGES_PER_COMMAND_MAX:
                selection.resume_uid = uid
                return selection
            message = read(account, number)
            assert message is not None, f"UID {uid} names message {number}, which is not there"
            membership = memberships.find(message, asked.mailbox)
            assert membership is not None, f"message {number} has UID {uid}, and does not say so"
            selection.found.append(Selected(message, uid, membership))
    return selection


def _pairs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    if len(numbers) % 2 or len(numbers) > 2 * rules.UID_PAIRS_PER_COMMAND_MAX:
        raise bad_field(f"ranges: pairs, at most {rules.UID_PAIRS_PER_COMMAND_MAX}")
    previous = 0
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    for first, last in pairs:
        if not previous < first <= last:
            raise bad_field("ranges: ascending, not overlapping, from 1")
        previous = last
    return pairs


def uid_rows(
    account: AccountChange, mailbox: int, first: int, last: int
) -> Iterator[tuple[int, int]]:
    """(UID, message) of a mailbox from first to last."""
    overlay, start = account.overlay, keys.uid(account.prefix, mailbox, first)
    if first == last:  # what most front ends send: no scan
        stored = overlay.get(start)
        if stored is not None:
            yield first, int(keys.U64.unpack(stored)[0])
        return
    end = keys.after(keys.uid(account.prefix, mailbox, last))
    for key, value in overlay.scan(start, end):
        yield keys.uid_of(key), int(keys.U64.unpack(value)[0])

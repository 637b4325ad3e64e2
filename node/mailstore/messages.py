"""Puts one message into an account: what deliveries, appends, copies and undeletion share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.v1 import common_pb2, error_pb2

from . import blobs, memberships, rules, threads
from .account_change import AccountChange
from .blobs import Body
from .errors import Refused, limit_reached

_MESSAGE = record_pb2.OBJECT_KIND_MESSAGE


class Content(NamedTuple):
    """A body and what was learnt of it before it was proposed."""

    body: Body
    received_ms: int
    derived: bytes
    thread_keys: Sequence[int]


def unique_thread_keys(asked: Sequence[int]) -> Sequence[int]:
    return list(dict.fromkeys(asked[:]))[: rules.THREAD_KEYS_MAX]


def store(
    account: AccountChange,
    content: Content,
    targets: Sequence[command_pb2.Target],
    asked_keywords: Sequence[str],
    told: command_pb2.StoredMessage,
    *,
    deleted: bool = False,
) -> None:
    """One message more in the account, in every target, and told of; or refused, and nothing is."""
    # Field by field: an argument of a record's constructor costs four times an assignment, and
    # every delivery comes through here.
    body = content.body
    keywords = rules.keywords(asked_keywords)
    mailboxes = resolve(account, targets)
    message = record_pb2.MessageRecord()
    message.format = rules.FORMAT
    at = message.body
    at.index, at.ordinal = body.log_index, body.ordinal
    message.size_bytes, message.stored_bytes = body.size_bytes, body.stored_bytes
    message.sha256, message.internal_time_ms = body.sha256, content.received_ms
    message.derived = content.derived
    if keywords:
        message.keywords.extend(keywords)
    message.thread_keys.extend(content.thread_keys)
    add(account, message, body, mailboxes, deleted=deleted)
    told.message, told.thread, told.modseq = message.message, message.thread, account.modseq
    told.body.index, told.body.ordinal = body.log_index, body.ordinal
    told.size_bytes, told.sha256 = body.size_bytes, body.sha256
    for mailbox, each in zip(mailboxes, message.memberships[:], strict=True):
        _tell_place(told.memberships.add(), mailbox, each)


def add(
    account: AccountChange,
    message: record_pb2.MessageRecord,
    body: Body,
    mailboxes: Sequence[record_pb2.MailboxRecord],
    *,
    deleted: bool = False,
) -> None:
    """Gives the record a number of its own and puts it in. A thread it has already it keeps."""
    record = account.record
    number = record.next_message
    message.message = number
    message.created_modseq = account.modseq
    message.thread = threads.join(
        account.overlay, account.prefix, message.thread_keys[:], message.thread or number
    )
    admit(account, message, mailboxes, deleted=deleted)
    record.next_message = number + 1
    blobs.refer(account.overlay, account.prefix, body)


def admit(
    account: AccountChange,
    message: record_pb2.MessageRecord,
    mailboxes: Sequence[record_pb2.MailboxRecord],
    *,
    deleted: bool = False,
) -> None:
    """A message of the account now, counted and in its mailboxes; its body is the caller's."""
    use_quota(account.record, message.size_bytes)
    message.modseq = account.modseq
    number, thread = message.message, message.thread
    account.created(_MESSAGE, number, thread=thread)
    for mailbox in mailboxes:
        memberships.join(account, mailbox, message, deleted=deleted)
    overlay, prefix = account.overlay, account.prefix
    overlay.put(keys.message_record(prefix, number), message)
    overlay.put(keys.thread_member(prefix, thread, number), b"")


def places(
    account: AccountChange, message: record_pb2.MessageRecord
) -> list[command_pb2.StoredMembership]:
    """The memberships of a message as a reply tells them."""
    found = []
    for each in message.memberships:
        place = command_pb2.StoredMembership()
        _tell_place(place, account.read_mailbox(each.mailbox), each)
        found.append(place)
    return found


def _tell_place(
    told: command_pb2.StoredMembership,
    mailbox: record_pb2.MailboxRecord,
    membership: record_pb2.MembershipRecord,
) -> None:
    told.mailbox, told.uid_validity = membership.mailbox, mailbox.uid_validity
    told.uid, told.deleted = membership.uid, membership.deleted
    told.saved_ms, told.modseq = membership.saved_ms, membership.modseq


def resolve(
    account: AccountChange, targets: Sequence[command_pb2.Target]
) -> list[record_pb2.MailboxRecord]:
    """The mailboxes that the targets name, each once, in the order asked; the inbox for none."""
    if not targets:
        return [account.mailbox_of_role(common_pb2.MAILBOX_ROLE_INBOX)]
    if len(targets) > rules.TARGETS_PER_MESSAGE_MAX:
        raise limit_reached("targets a message", rules.TARGETS_PER_MESSAGE_MAX)
    found: dict[int, record_pb2.MailboxRecord] = {}
    for target in targets:
        mailbox = account.mailbox_of(target)
        found[mailbox.mailbox] = mailbox
    return list(found.values())  # tidy: a plain dict


def use_quota(record: record_pb2.AccountRecord, size_bytes: int) -> None:
    """Counts a message once, however many mailboxes it is in (RFC 9208 sections 5.1 and 5.2)."""
    used_bytes = record.used_bytes + size_bytes
    used_messages = record.used_messages + 1
    if (0 < record.quota_bytes < used_bytes) or (0 < record.quota_messages < used_messages):
        raise Refused(
            error_pb2.ERROR_REASON_OVER_QUOTA,
            "the account's quota would be passed",
            {
                "used_bytes": record.used_bytes,
                "max_bytes": record.quota_bytes,
                "used_messages": record.used_messages,
                "max_messages": record.quota_messages,
            },
        )
    record.used_bytes = used_bytes
    record.used_messages = used_messages

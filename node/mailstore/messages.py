"""Puts one message into an account: what Deliver and Append have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.v1 import common_pb2, error_pb2

from . import rules, threads
from .account_change import AccountChange
from .errors import Refused, bad_field, limit_reached, mailbox_not_found
from .overlay import Overlay

_MAILBOX = record_pb2.OBJECT_KIND_MAILBOX
_MESSAGE = record_pb2.OBJECT_KIND_MESSAGE


class Context(NamedTuple):
    """What an entry and its command say to every step of apply."""

    entry_index: int  # of the entry: new bodies lie under it
    now_ms: int  # the shard's clock
    body_base: int
    body_count: int


class Body(NamedTuple):
    """A body that a message may refer to, and where it lies."""

    log_index: int
    ordinal: int
    size_bytes: int
    stored_bytes: int
    sha256: bytes
    is_new: bool  # travels in this entry


class Content(NamedTuple):
    """A body and what was learnt of it before it was proposed."""

    body: Body
    received_ms: int
    derived: bytes
    thread_keys: Sequence[int]


def new_body(context: Context, body: command_pb2.NewBody) -> Body:
    """A body that travels in this entry."""
    if body.ordinal >= context.body_count:
        raise bad_field("body: the command does not carry it")
    if len(body.sha256) != 32:
        raise bad_field("body: sha256 is 32 bytes")
    if max(body.size_bytes, body.stored_bytes) > rules.BODY_MAX_BYTES:
        raise Refused(
            error_pb2.ERROR_REASON_MESSAGE_TOO_LARGE,
            "the message is too large",
            {"size_bytes": body.size_bytes, "max_bytes": rules.BODY_MAX_BYTES},
        )
    return Body(
        context.entry_index,
        context.body_base + body.ordinal,
        body.size_bytes,
        body.stored_bytes,
        body.sha256,
        is_new=True,
    )


def known_body(account: AccountChange, position: record_pb2.BodyPosition) -> Body:
    """A body that the account may read already. A hash or a position alone opens nothing."""
    access = keys.blob_access(account.prefix, position.index, position.ordinal)
    blob = account.overlay.read(keys.blob(position.index, position.ordinal), record_pb2.BlobRecord)
    if blob is None or account.overlay.get(access) is None:
        raise Refused(error_pb2.ERROR_REASON_BLOB_NOT_FOUND, "no such blob in this account")
    return Body(
        position.index,
        position.ordinal,
        blob.size_bytes,
        blob.stored_bytes,
        blob.sha256,
        is_new=False,
    )


def unique_thread_keys(asked: Sequence[int]) -> Sequence[int]:
    return asked if len(asked) < 2 else list(dict.fromkeys(asked))[: rules.THREAD_KEYS_MAX]


def store(
    account: AccountChange,
    context: Context,
    content: Content,
    targets: Sequence[command_pb2.Target],
    asked_keywords: Sequence[str],
) -> command_pb2.StoredMessage:
    """One message more in the account, in every target; refused as a whole or done as a whole."""
    body = content.body
    keywords = rules.keywords(asked_keywords)
    mailboxes = _resolve(account, targets)
    _use_quota(account.record, body.size_bytes)
    number = account.record.next_message
    account.record.next_message = number + 1
    message = record_pb2.MessageRecord(
        format=rules.FORMAT,
        message=number,
        size_bytes=body.size_bytes,
        stored_bytes=body.stored_bytes,
        sha256=body.sha256,
        thread=threads.join(account.overlay, account.prefix, content.thread_keys, number),
        keywords=keywords,
        internal_time_ms=content.received_ms,
        created_modseq=account.modseq,
        modseq=account.modseq,
        derived=content.derived,
        thread_keys=content.thread_keys,
    )
    message.body.index = body.log_index
    message.body.ordinal = body.ordinal
    stored = command_pb2.StoredMessage(
        message=number,
        thread=message.thread,
        body=message.body,
        modseq=account.modseq,
        size_bytes=body.size_bytes,
        sha256=body.sha256,
    )
    account.created(_MESSAGE, number)
    unseen = rules.SEEN not in keywords
    for mailbox in mailboxes:
        uid = _join_mailbox(account, mailbox, message, unseen=unseen)
        message.memberships.add(
            mailbox=mailbox.mailbox, uid=uid, saved_ms=context.now_ms, modseq=account.modseq
        )
        stored.memberships.add(mailbox=mailbox.mailbox, uid_validity=mailbox.uid_validity, uid=uid)
    account.overlay.put(keys.message_record(account.prefix, number), message)
    _refer(account.overlay, account.prefix, body)
    return stored


def _resolve(
    account: AccountChange, targets: Sequence[command_pb2.Target]
) -> list[record_pb2.MailboxRecord]:
    """The mailboxes that the targets name, each once, in the order asked; the inbox for none."""
    if not targets:
        return [_mailbox_of_role(account, common_pb2.MAILBOX_ROLE_INBOX)]
    if len(targets) > rules.TARGETS_PER_MESSAGE_MAX:
        raise limit_reached("targets a message", rules.TARGETS_PER_MESSAGE_MAX)
    found: dict[int, record_pb2.MailboxRecord] = {}
    for target in targets:
        if target.WhichOneof("target") == "role":
            mailbox = _mailbox_of_role(account, target.role)
        else:
            mailbox = _mailbox(account, target.mailbox)
        found[mailbox.mailbox] = mailbox
    return list(found.values())  # tidy: a plain dict


def _mailbox(account: AccountChange, number: int) -> record_pb2.MailboxRecord:
    mailbox = account.mailbox(number)
    if mailbox is None:
        raise mailbox_not_found("no such mailbox")
    return mailbox


def _mailbox_of_role(account: AccountChange, role: int) -> record_pb2.MailboxRecord:
    number = account.overlay.get(keys.mailbox_role(account.prefix, role))
    if number is None:
        raise mailbox_not_found("no mailbox has this role")
    return _mailbox(account, int.from_bytes(number))


def _use_quota(record: record_pb2.AccountRecord, size_bytes: int) -> None:
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


def _join_mailbox(
    account: AccountChange,
    mailbox: record_pb2.MailboxRecord,
    message: record_pb2.MessageRecord,
    *,
    unseen: bool,
) -> int:
    """Gives the message its UID: rising in commit order, never given again (RFC 9051, 2.3.1.1)."""
    number, uid = mailbox.mailbox, mailbox.uid_next
    if uid >= rules.UINT32_MAX:  # UIDNEXT must be above every UID, and is 32 bits itself
        raise limit_reached("UIDs in a mailbox", rules.UINT32_MAX - 1)
    mailbox.uid_next = uid + 1
    mailbox.highest_modseq = account.modseq
    mailbox.total_messages += 1
    mailbox.unseen_messages += unseen
    mailbox.size_bytes += message.size_bytes
    account.updated(_MAILBOX, number)
    target = keys.U64.pack(message.message)
    overlay, prefix = account.overlay, account.prefix
    overlay.put(keys.uid(prefix, number, uid), target)
    overlay.put(keys.received(prefix, number, message.internal_time_ms, uid), target)
    return uid


def _refer(overlay: Overlay, prefix: bytes, body: Body) -> None:
    """One message more refers to the body, and its account may read it."""
    # Nothing of an earlier entry can name a body of this one.
    blob = overlay.edit_or_new(
        keys.blob(body.log_index, body.ordinal), record_pb2.BlobRecord, never_stored=body.is_new
    )
    if not blob.references:
        blob.size_bytes = body.size_bytes
        blob.stored_bytes = body.stored_bytes
        blob.sha256 = body.sha256
    blob.references += 1
    access = overlay.edit_or_new(
        keys.blob_access(prefix, body.log_index, body.ordinal),
        record_pb2.BlobAccessRecord,
        never_stored=body.is_new,
    )
    access.references += 1

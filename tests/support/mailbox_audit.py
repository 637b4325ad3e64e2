"""Counts everything of a shard anew and compares: there is no repair command, so this must hold."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import View
from mailraft.node.mailstore import queries
from mailraft.node.mailstore.account_change import prefix_of

BodyIsThere = Callable[[int, int], bool]


def audit(view: View, body_is_there: BodyIsThere) -> None:
    """Raises AssertionError at the first number that a full scan does not confirm."""
    references: Counter[tuple[int, int]] = Counter()
    after = ""
    while True:
        page, after = queries.accounts(view, after, 2)
        for name, record in page:
            references += _audit_account(view, name, record)
        if not after:
            break
    stored = {}
    for key, value in view.scan(keys.blob(0, 0), keys.request_bucket(0)):
        blob = record_pb2.BlobRecord.FromString(value)
        index, ordinal = keys.U64.unpack(key[3:11])[0], keys.U32.unpack(key[11:])[0]
        assert body_is_there(index, ordinal), f"referenced body {index}/{ordinal} is missing"
        stored[index, ordinal] = blob.references
    assert stored == dict(references)
    _audit_requests(view)


def _audit_account(
    view: View, name: str, account: record_pb2.AccountRecord
) -> Counter[tuple[int, int]]:
    prefix = prefix_of(name)
    messages = [
        record_pb2.MessageRecord.FromString(value)
        for _, value in _below(view, keys.message_record(prefix)[:-8])
    ]
    assert account.used_bytes == sum(message.size_bytes for message in messages)
    assert account.used_messages == len(messages)
    assert account.next_message > max((message.message for message in messages), default=0)
    access: Counter[tuple[int, int]] = Counter()
    members = defaultdict(list)
    for message in messages:
        access[message.body.index, message.body.ordinal] += 1
        assert message.memberships, "a message is in a mailbox"
        assert list(message.keywords) == sorted(set(message.keywords))
        for membership in message.memberships:
            members[membership.mailbox].append((message, membership))
    for (index, ordinal), count in access.items():  # tidy: a plain dict
        row = view.get(keys.blob_access(prefix, index, ordinal))
        assert row is not None
        assert record_pb2.BlobAccessRecord.FromString(row).references == count
    mailboxes, rest = queries.mailboxes(view, name, 0, 1_000)
    assert rest == 0
    assert account.mailbox_count == len(mailboxes)
    for mailbox in mailboxes:
        _audit_mailbox(view, prefix, mailbox, members.pop(mailbox.mailbox, []))
        assert mailbox.highest_modseq <= account.modseq
        assert mailbox.uid_validity <= account.last_uid_validity
    assert not members, "memberships of mailboxes that are not there"
    modseqs = [keys.U64.unpack(key[-8:])[0] for key, _ in _below(view, keys.change(prefix)[:-8])]
    assert modseqs == list(range(1, account.modseq + 1)), "every MODSEQ has its change record"
    return access


def _audit_mailbox(
    view: View,
    prefix: bytes,
    mailbox: record_pb2.MailboxRecord,
    members: list[tuple[record_pb2.MessageRecord, record_pb2.MembershipRecord]],
) -> None:
    assert mailbox.total_messages == len(members)
    assert mailbox.unseen_messages == sum("$seen" not in m.keywords for m, _ in members)
    assert mailbox.deleted_messages == sum(membership.deleted for _, membership in members)
    assert mailbox.size_bytes == sum(message.size_bytes for message, _ in members)
    assert mailbox.uid_next > max((membership.uid for _, membership in members), default=0)
    number = mailbox.mailbox
    by_uid = {
        keys.uid(prefix, number, member.uid): keys.U64.pack(message.message)
        for message, member in members
    }
    by_time = {
        keys.received(prefix, number, message.internal_time_ms, member.uid): keys.U64.pack(
            message.message
        )
        for message, member in members
    }
    assert len(by_uid) == len(members), "one UID names one message"
    assert dict(_below(view, keys.uid_mailbox(prefix, number))) == by_uid
    assert dict(_below(view, keys.received_mailbox(prefix, number))) == by_time


def _audit_requests(view: View) -> None:
    row = view.get(keys.SHARD_CLOCK)
    if row is None:
        return
    clock = record_pb2.ClockRecord.FromString(row)
    buckets = Counter(key[3:7] for key, _ in view.scan(keys.request_bucket(0), keys.SHARD_CLOCK))
    assert clock.request_count == buckets.total()
    counts = {
        key[3:7]: record_pb2.RequestBucketRecord.FromString(value).request_count
        for key, value in _below(view, keys.request_count(0)[:-4])
    }
    assert counts == dict(buckets)


def _below(view: View, prefix: bytes) -> list[tuple[bytes, bytes]]:
    return list(view.scan(prefix, keys.after(prefix)))

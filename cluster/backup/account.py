"""An account as it was: what of it is written again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mailraft.cluster.backup.replay import ShardAt
from mailraft.cluster.backup.sealed import DamagedBackupError
from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys
from mailraft.wire import bodies
from mailraft.wire.slots import slot_of

_END = 2**32 - 1  # behind every mailbox


@dataclass(frozen=True, slots=True)
class AccountAt:
    """Records of an account in a shard at a time."""

    account_id: str
    record: record_pb2.AccountRecord
    mailboxes: tuple[record_pb2.MailboxRecord, ...]  # by number
    messages: tuple[record_pb2.MessageRecord, ...]  # by number: as they came
    shard: ShardAt

    def raw(self, message: record_pb2.MessageRecord) -> bytes:
        """The bytes of a message, proven by their hash. Raises DamagedBackupError."""
        at = message.body
        row = self.shard.view.get(keys.blob(at.index, at.ordinal))
        blob = record_pb2.BlobRecord.FromString(row or b"")
        parts = blob.parts or [
            record_pb2.BlobPart(index=at.index, ordinal=at.ordinal, size_bytes=message.size_bytes)
        ]
        raw = b"".join(self._part(part) for part in parts)
        if hashlib.sha256(raw).digest() != message.sha256:
            raise DamagedBackupError(f"body {at.index}-{at.ordinal} has another sha256")
        return raw

    def _part(self, part: record_pb2.BlobPart) -> bytes:
        packed = self.shard.body(part.index, part.ordinal)
        if packed is None:
            raise DamagedBackupError(f"body {part.index}-{part.ordinal} is missing")
        try:
            return bodies.unpack(packed, part.size_bytes)
        except bodies.BodyCorruptError as error:
            raise DamagedBackupError(f"body {part.index}-{part.ordinal}: {error}") from error


def account_at(shard: ShardAt, account_id: str) -> AccountAt | None:
    """None: there was no such account."""
    view = shard.view
    prefix = keys.account_prefix(slot_of(account_id), account_id.encode())
    row = view.get(keys.account_record(prefix))
    if row is None:
        return None
    mailboxes = tuple(
        record_pb2.MailboxRecord.FromString(value)
        for _, value in view.scan(keys.mailbox_record(prefix), keys.mailbox_record(prefix, _END))
    )
    messages = tuple(
        record_pb2.MessageRecord.FromString(value)
        for _, value in view.scan(
            keys.message_record(prefix), keys.message_record(prefix, keys.INDEX_END)
        )
    )
    return AccountAt(
        account_id,
        record_pb2.AccountRecord.FromString(row),
        mailboxes,
        tuple(_visible(messages, {each.mailbox for each in mailboxes})),
        shard,
    )


def _visible(
    messages: Iterable[record_pb2.MessageRecord], mailboxes: set[int]
) -> Iterator[record_pb2.MessageRecord]:
    """Without what is only in deleted mailboxes, which are emptied in steps."""
    for message in messages:
        kept = [each for each in message.memberships if each.mailbox in mailboxes]
        if kept:
            del message.memberships[:]
            message.memberships.extend(kept)
            yield message


def account_ids(shard: ShardAt) -> Iterator[str]:
    """Of all accounts of a shard."""
    at = b""
    while (row := next(shard.view.scan(at, keys.SHARD_ROWS), None)) is not None:
        key, _ = row
        header = key[: keys.ACCOUNT_HEADER_BYTES + key[2]]
        if shard.view.get(keys.account_record(header)) is not None:
            yield keys.account_of(key).decode()
        at = keys.after(header)

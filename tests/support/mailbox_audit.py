"""Counts everything of a shard anew and compares: there is no repair command, so this must hold."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import View
from mailraft.node.mailstore import chores, queries, rules
from mailraft.node.mailstore.account_change import prefix_of

_Position = tuple[int, int]
_Members = dict[int, list[tuple[record_pb2.MessageRecord, record_pb2.MembershipRecord]]]


def audit(view: View, bodies: Iterable[_Position]) -> None:
    """Raises AssertionError at the first number that a full scan does not confirm. `bodies` are
    all that are stored.
    """
    references: Counter[_Position] = Counter()
    after = ""
    while True:
        page, after = queries.accounts(view, after, 2)
        for name, record in page:
            references += _Audit(view, name, record).run()
        if not after:
            break
    references += _being_deleted(view)
    references += _parts(view)
    _audit_bodies(view, references, set(bodies))
    _audit_requests(view)


def _audit_bodies(view: View, references: Counter[_Position], bodies: set[_Position]) -> None:
    """Invariant 14: what is referred to is there, and what is there is referred to or free."""
    counted, waiting = {}, set()
    for key, value in view.scan(keys.blob(0, 0), keys.request_bucket(0)):
        blob = record_pb2.BlobRecord.FromString(value)
        index, ordinal = keys.U64.unpack(key[3:11])[0], keys.U32.unpack(key[11:])[0]
        counted[index, ordinal] = blob.references
        assert bool(blob.references) != bool(blob.free_ms)
        if blob.parts:
            assert (blob.parts[0].index, blob.parts[0].ordinal) == (index, ordinal)
            assert blob.size_bytes == sum(each.size_bytes for each in blob.parts)
            assert blob.stored_bytes == sum(each.stored_bytes for each in blob.parts)
        if blob.upload_id:
            assert not blob.references
            prefix = prefix_of(blob.upload_account_id)
            assert view.get(keys.upload(prefix, blob.upload_id)) is not None
        if blob.free_ms:
            waiting.add((blob.free_ms, index, ordinal))
    assert {place: count for place, count in counted.items() if count} == dict(references)
    rows = {keys.free_body_of(key) for key, _ in _below(view, keys.free_body(0)[:3])}
    assert waiting <= rows
    free = {(index, ordinal) for _, index, ordinal in rows}
    assert len(free) == len(rows), "a body is free once"
    used = set(references)
    assert used <= bodies, f"referenced bodies are missing: {used - bodies}"
    assert not used & free, "a body is free or in use"
    assert bodies == used | free, f"nobody knows of bodies {bodies - used - free}"


def _parts(view: View) -> Counter[_Position]:
    """What uploads that are not finished refer to, and blobs of several bodies behind the first."""
    found: Counter[_Position] = Counter()
    for key, value in view.scan(keys.account_prefix(0, b"")[:2], keys.SHARD_ROWS):
        if key[3 + key[2]] != keys.upload(b"")[0]:
            continue
        upload = record_pb2.UploadRecord.FromString(value)
        assert upload.received_bytes == sum(each.size_bytes for each in upload.parts)
        assert upload.received_bytes <= upload.size_bytes
        if upload.received_bytes < upload.size_bytes:
            found.update((each.index, each.ordinal) for each in upload.parts)
    for _, value in view.scan(keys.blob(0, 0), keys.request_bucket(0)):
        blob = record_pb2.BlobRecord.FromString(value)
        found.update((each.index, each.ordinal) for each in blob.parts[1:])
    return found


def _being_deleted(view: View) -> Counter[_Position]:
    """What messages of deleted accounts still refer to; those accounts have a chore each."""
    found: Counter[_Position] = Counter()
    for key, _ in _below(view, keys.chore(0)[:3]):
        due_ms, kind, name, _ = keys.chore_of(key)
        if kind != chores.CLEAR_ACCOUNT:
            continue
        prefix = prefix_of(name.decode())
        row = view.get(keys.tombstone(prefix))
        assert due_ms == chores.NOW
        assert row is not None
        if not record_pb2.AccountTombstone.FromString(row).clearing:
            continue
        for _, value in _below(view, keys.message_record(prefix)[:-8]):
            message = record_pb2.MessageRecord.FromString(value)
            found[message.body.index, message.body.ordinal] += 1
        for _, value in _below(view, keys.expunged(prefix)[:-8]):
            message = record_pb2.ExpungedRecord.FromString(value).message
            found[message.body.index, message.body.ordinal] += 1
    return found


class _Audit:
    """One account."""

    def __init__(self, view: View, name: str, account: record_pb2.AccountRecord) -> None:
        self.view, self.name, self.account = view, name, account
        self.prefix = prefix_of(name)
        self.messages = [
            record_pb2.MessageRecord.FromString(value)
            for value in self.rows(keys.message_record(self.prefix)[:-8]).values()
        ]
        self.kept = [
            record_pb2.ExpungedRecord.FromString(value)
            for value in self.rows(keys.expunged(self.prefix)[:-8]).values()
        ]
        self.doomed = {
            int.from_bytes(key[-4:]) for key in self.rows(keys.doomed_mailbox(self.prefix)[:-4])
        }

    def run(self) -> Counter[_Position]:
        account, messages = self.account, self.messages
        assert account.used_bytes == sum(message.size_bytes for message in messages)
        assert account.used_messages == len(messages)
        given = [each.message for each in (*messages, *(row.message for row in self.kept))]
        assert account.next_message > max(given, default=0)
        self.check_mailboxes(self.members())
        self.check_threads()
        self.check_changes()
        self.check_kept()
        return self.check_access()

    def rows(self, prefix: bytes) -> dict[bytes, bytes]:
        return dict(_below(self.view, prefix))

    def has_chore(self, due_ms: int, kind: chores.Kind, number: int = 0) -> bool:
        return self.view.get(keys.chore(due_ms, kind, self.prefix, number)) is not None

    def members(self) -> _Members:
        members: _Members = defaultdict(list)
        for message in self.messages:
            assert message.memberships, "a message is in a mailbox"
            assert list(message.keywords) == sorted(set(message.keywords))
            assert message.modseq <= self.account.modseq
            for membership in message.memberships:
                members[membership.mailbox].append((message, membership))
                assert membership.modseq <= message.modseq
        return members

    def check_mailboxes(self, members: _Members) -> None:
        mailboxes, rest = queries.mailboxes(self.view, self.name, 0, 1_000)
        assert rest == 0
        assert self.account.mailbox_count == len(mailboxes)
        for mailbox in mailboxes:
            self.check_mailbox(mailbox, members.pop(mailbox.mailbox, []))
            assert mailbox.highest_modseq <= self.account.modseq
            assert mailbox.uid_validity <= self.account.last_uid_validity
            assert mailbox.mailbox < self.account.next_mailbox
            if mailbox.retention_due_ms:
                due_ms = mailbox.retention_due_ms
                assert self.has_chore(due_ms, chores.APPLY_RETENTION, mailbox.mailbox)
        names = {
            keys.mailbox_name(self.prefix, box.parent, box.name.encode()): box.mailbox
            for box in mailboxes
        }
        assert len(names) == len(mailboxes), "siblings have different names"
        assert self.numbers(keys.mailbox_name(self.prefix, 0)[:-4]) == names
        roles = {
            keys.mailbox_role(self.prefix, box.role): box.mailbox for box in mailboxes if box.role
        }
        assert self.numbers(keys.mailbox_role(self.prefix, 0)[:-4]) == roles
        assert self.account.doomed_mailboxes == len(self.doomed)
        assert members.keys() <= self.doomed, "memberships of mailboxes that are not there"
        for number in self.doomed:
            assert self.has_chore(chores.NOW, chores.CLEAR_MAILBOX, number)
        alive = {box.mailbox for box in mailboxes} | self.doomed
        for family in (keys.uid, keys.received_mailbox, keys.touched, keys.vanished, keys.keyword):
            head = len(self.prefix) + 1
            for key in self.rows(family(self.prefix, 0)[:head]):
                number = int.from_bytes(key[head : head + 4])
                assert number in alive, f"{family.__name__} rows of a mailbox that is gone"

    def numbers(self, prefix: bytes) -> dict[bytes, int]:
        return {key: int.from_bytes(value) for key, value in self.rows(prefix).items()}

    def check_mailbox(
        self,
        mailbox: record_pb2.MailboxRecord,
        members: list[tuple[record_pb2.MessageRecord, record_pb2.MembershipRecord]],
    ) -> None:
        prefix, number = self.prefix, mailbox.mailbox
        assert mailbox.total_messages == len(members)
        assert mailbox.unseen_messages == sum("$seen" not in m.keywords for m, _ in members)
        assert mailbox.deleted_messages == sum(membership.deleted for _, membership in members)
        assert mailbox.size_bytes == sum(message.size_bytes for message, _ in members)
        assert mailbox.uid_next > max((membership.uid for _, membership in members), default=0)
        targets = [keys.U64.pack(message.message) for message, _ in members]
        places = [
            (
                keys.uid(prefix, number, place.uid),
                keys.touched(prefix, number, place.modseq, place.uid),
                keys.received(prefix, number, message.internal_time_ms, place.uid),
            )
            for message, place in members
        ]
        by_uid, by_change, by_time = (
            dict(zip((each[column] for each in places), targets, strict=True))
            for column in range(3)
        )
        assert len(by_uid) == len(members), "one UID names one message"
        assert self.rows(keys.uid_mailbox(prefix, number)) == by_uid
        assert self.rows(keys.received_mailbox(prefix, number)) == by_time
        assert self.rows(keys.touched(prefix, number)[:-12]) == by_change
        self.check_vanished(mailbox, {place.uid for _, place in members})
        words = Counter(word for message, _ in members for word in message.keywords)
        counted = {
            key[len(keys.keyword(prefix, number)) :].decode(): record_pb2.KeywordRecord.FromString(
                value
            ).messages
            for key, value in self.rows(keys.keyword(prefix, number)).items()
        }
        assert counted == dict(words)

    def check_vanished(self, mailbox: record_pb2.MailboxRecord, present: set[int]) -> None:
        rows = self.rows(keys.vanished(self.prefix, mailbox.mailbox)[:-12])
        gone = [keys.mailbox_change_of(key)[1] for key in rows]
        assert len(gone) == len(set(gone)), "a UID vanishes once"
        assert not present & set(gone), "a UID that vanished never comes back"
        assert all(uid < mailbox.uid_next for uid in gone)
        if not self.account.trimmed_modseq:
            assert present | set(gone) == set(range(1, mailbox.uid_next))

    def check_threads(self) -> None:
        members = {
            keys.thread_member(self.prefix, each.thread, each.message) for each in self.messages
        }
        assert set(self.rows(keys.thread_member(self.prefix, 0)[:-16])) == members
        named = Counter(
            key
            for each in (*self.messages, *(row.message for row in self.kept))
            for key in each.thread_keys
        )
        counted = {
            keys.U64.unpack(key[-8:])[0]: record_pb2.ThreadKeyRecord.FromString(value).references
            for key, value in self.rows(keys.thread_key(self.prefix, 0)[:-8]).items()
        }
        assert counted == dict(named)

    def check_changes(self) -> None:
        modseqs = [keys.U64.unpack(key[-8:])[0] for key in self.rows(keys.change(self.prefix)[:-8])]
        held = range(self.account.trimmed_modseq + 1, self.account.modseq + 1)
        assert modseqs == list(held), "every MODSEQ has its change record"
        assert bool(self.account.trim_due_ms) == bool(modseqs)
        if modseqs:
            assert self.has_chore(self.account.trim_due_ms, chores.TRIM_CHANGES)

    def check_kept(self) -> None:
        prefix = self.prefix
        assert self.account.kept_messages == len(self.kept)
        assert self.account.kept_bytes == sum(row.message.size_bytes for row in self.kept)
        alive = {message.message for message in self.messages}
        expires, at = set(), set()
        for row in self.kept:
            number = row.message.message
            assert number not in alive, "a message is there or expunged"
            expires.add(keys.expires(prefix, row.expires_ms, number))
            boxes = {0, *(place.mailbox for place in row.message.memberships)}
            at |= {keys.expunged_at(prefix, box, row.modseq, number) for box in boxes}
            step = -(-row.expires_ms // rules.FORGET_STEP_MS) * rules.FORGET_STEP_MS
            assert self.has_chore(step, chores.FORGET_EXPUNGED)
        assert set(self.rows(keys.expires(prefix)[:-16])) == expires
        assert set(self.rows(keys.expunged_at(prefix, 0)[:-20])) == at

    def check_access(self) -> Counter[_Position]:
        access: Counter[_Position] = Counter()
        for message in (*self.messages, *(row.message for row in self.kept)):
            access[message.body.index, message.body.ordinal] += 1
        start = keys.blob_access(self.prefix, 0, 0)[:-12]
        counted = {
            (keys.U64.unpack(key[-12:-4])[0], keys.U32.unpack(key[-4:])[0]): (
                record_pb2.BlobAccessRecord.FromString(value).references
            )
            for key, value in self.rows(start).items()
        }
        uploaded = {place for place, references in counted.items() if not references}
        assert {place: count for place, count in counted.items() if count} == dict(access)
        for place in uploaded:
            row = self.view.get(keys.blob(*place))
            assert row is not None, "what was uploaded is there for as long as it can be read"
            assert record_pb2.BlobRecord.FromString(row).upload_account_id == self.name
        for key, value in self.rows(keys.upload(self.prefix)).items():
            upload = record_pb2.UploadRecord.FromString(value)
            complete = upload.received_bytes == upload.size_bytes
            assert complete or self.has_chore(upload.expires_ms, chores.EXPIRE_UPLOADS), key
        return access


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

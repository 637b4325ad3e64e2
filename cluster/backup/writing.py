"""Writes an account as it was into one that is there: a forward change, of what differs.

So a restore that broke off goes on when it is run again, and what did not change keeps its UIDs.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mailraft.client import AsyncClient
from mailraft.client.options import Consistency
from mailraft.client.results import NewMessage
from mailraft.cluster.backup import mailboxes
from mailraft.cluster.backup.account import AccountAt
from mailraft.internal.v1 import record_pb2
from mailraft.v1 import message_pb2
from mailraft.wire import limits, tokens

APPEND_MESSAGES_MAX, APPEND_BYTES_MAX = 100, 1024 * 1024
COMMAND_MESSAGES_MAX = 500
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# Where a message is, and whether it has the flag Deleted there.
Places = Mapping[str, bool]


@dataclass(slots=True)
class Written:
    """What was, or would be, changed in one account."""

    account_id: str
    mailboxes: int = 0
    messages: int = 0  # that it shall have
    appended: int = 0
    changed: int = 0  # keywords or mailboxes of messages that are there
    expunged: int = 0
    new_bytes: int = 0
    left: list[str] = field(default_factory=list)  # mailboxes that mail came into meanwhile


@dataclass(slots=True)
class _Plan:
    same: list[tuple[record_pb2.MessageRecord, message_pb2.Message]] = field(default_factory=list)
    missing: list[record_pb2.MessageRecord] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)


class AccountWriter:
    """Of one account as it was, into `target` of the client's cluster, which is there."""

    def __init__(
        self,
        client: AsyncClient,
        was: AccountAt,
        target: str,
        *,
        same_account: bool,
        keep_new_ms: int = 0,
        tell: Callable[[int], None] = lambda _: None,
    ) -> None:
        """same_account: ids are those of `was`. keep_new_ms: what was received since stays."""
        self._client, self._was, self._target = client, was, target
        self._same_account, self._keep_new_ms, self._tell = same_account, keep_new_ms, tell

    async def write(self, *, dry_run: bool = False) -> Written:
        """Raises MailraftError, DamagedBackupError."""
        was = self._was
        current = await self._client.list_mailboxes(
            self._target, consistency=Consistency.LINEARIZABLE
        )
        boxes = mailboxes.plan(was.mailboxes, current, same_account=self._same_account)
        there = await self._messages([each.id for each in current])
        plan = await self._plan(there)
        written = Written(
            self._target,
            mailboxes=boxes.changes,
            messages=len(was.messages),
            appended=len(plan.missing),
            expunged=len(plan.surplus),
            new_bytes=sum(each.size_bytes for each in plan.missing),
        )
        if self._keep_new_ms:
            boxes.surplus = []
        if dry_run:
            written.changed = sum(
                not self._is_equal(record, message, boxes.ids) for record, message in plan.same
            )
            return written
        suffix = f"{was.shard.clock_ms:x}"
        await mailboxes.carry_out(self._client, self._target, boxes, was.mailboxes, suffix)
        appended = await self._append(plan.missing, boxes.ids)
        written.changed = await self._change(plan.same, boxes.ids)
        await self._change(appended, boxes.ids)
        await self._expunge(plan.surplus)
        written.left = await mailboxes.remove_surplus(self._client, self._target, boxes)
        return written

    # ---- what is there

    async def _messages(self, mailbox_ids: Sequence[str]) -> dict[str, message_pb2.Message]:
        found: dict[str, message_pb2.Message] = {}
        for mailbox_id in mailbox_ids:
            async for each in self._client.iter_messages(
                self._target, mailbox_id, page_size=limits.PAGE_SIZE_MAX
            ):
                found[each.id] = each
        return found

    async def _plan(self, there: dict[str, message_pb2.Message]) -> _Plan:
        """Each wanted message with the one that is there: by its id, else by its bytes and time."""
        plan, rest = _Plan(), dict(there)
        unknown: list[record_pb2.MessageRecord] = []
        for record in self._was.messages:
            known = (
                rest.pop(tokens.message_id(record.message), None) if self._same_account else None
            )
            if known is not None:
                plan.same.append((record, known))
            else:
                unknown.append(record)
        alike: dict[tuple[int, int], list[message_pb2.Message]] = defaultdict(list)
        for message in rest.values():
            alike[message.size_bytes, message.internal_time_ms].append(message)
        for record in unknown:
            match = await self._find(record, alike[record.size_bytes, record.internal_time_ms])
            if match is None:
                plan.missing.append(record)
            else:
                plan.same.append((record, match))
                del rest[match.id]
        plan.surplus = [
            each.id
            for each in rest.values()
            if not self._keep_new_ms or each.internal_time_ms <= self._keep_new_ms
        ]
        return plan

    async def _find(
        self, record: record_pb2.MessageRecord, candidates: list[message_pb2.Message]
    ) -> message_pb2.Message | None:
        for number, each in enumerate(candidates):
            raw = await self._client.fetch_body(self._target, each.id)
            if hashlib.sha256(raw).digest() == record.sha256:
                return candidates.pop(number)
        return None

    # ---- what is done

    async def _append(
        self, missing: Sequence[record_pb2.MessageRecord], ids: Mapping[int, str]
    ) -> Sequence[tuple[record_pb2.MessageRecord, message_pb2.Message]]:
        """In the order of their UIDs, each in the first of its mailboxes."""
        done: list[tuple[record_pb2.MessageRecord, message_pb2.Message]] = []
        order = sorted(missing, key=lambda each: (_first(each).mailbox, _first(each).uid))
        for batch in _batches(order):
            mailbox_id = ids[_first(batch[0]).mailbox]
            answers = await self._client.append(
                self._target, [self._new(each) for each in batch], mailbox_id
            )
            for record, answer in zip(batch, answers, strict=True):
                message = message_pb2.Message(
                    id=answer.message_id,
                    keywords=record.keywords,
                    memberships=[message_pb2.Membership(mailbox_id=mailbox_id)],
                )
                done.append((record, message))
                self._tell(record.size_bytes)
        return done

    def _new(self, record: record_pb2.MessageRecord) -> NewMessage:
        time = _EPOCH + dt.timedelta(milliseconds=record.internal_time_ms)
        return NewMessage(self._was.raw(record), tuple(record.keywords), time)

    def _is_equal(
        self,
        record: record_pb2.MessageRecord,
        message: message_pb2.Message,
        ids: Mapping[int, str],
    ) -> bool:
        return list(message.keywords) == list(record.keywords) and _places(
            message
        ) == _places_wanted(record, ids)

    async def _change(
        self,
        pairs: Sequence[tuple[record_pb2.MessageRecord, message_pb2.Message]],
        ids: Mapping[int, str],
    ) -> int:
        """Bring keywords and memberships to what they were, alike ones together."""
        keywords: dict[tuple[str, ...], list[str]] = defaultdict(list)
        moves: dict[tuple[tuple[tuple[str, bool], ...], ...], list[str]] = defaultdict(list)
        changed = 0
        for record, message in pairs:
            changed += not self._is_equal(record, message, ids)
            if list(message.keywords) != list(record.keywords):
                keywords[tuple(record.keywords)].append(message.id)
            now, wanted = _places(message), _places_wanted(record, ids)
            if now != wanted:
                moves[tuple(sorted(now.items())), tuple(sorted(wanted.items()))].append(message.id)
        for words, message_ids in keywords.items():
            for some in _cut(message_ids):
                await self._client.modify_keywords(self._target, some, replace=words)
        for (before, after), message_ids in moves.items():
            for some in _cut(message_ids):
                await self._move(some, dict(before), dict(after))
        return changed

    async def _move(self, message_ids: Sequence[str], now: Places, wanted: Places) -> None:
        added = [each for each in wanted if each not in now]
        marks = {each: flag for each, flag in wanted.items() if now.get(each, False) != flag}
        removed = [each for each in now if each not in wanted]
        await self._client.update_memberships(
            self._target, message_ids, add=added, remove=removed, deleted=marks
        )

    async def _expunge(self, message_ids: Sequence[str]) -> None:
        for some in _cut(message_ids):
            await self._client.expunge_messages(self._target, some)


def _places(message: message_pb2.Message) -> dict[str, bool]:
    return {each.mailbox_id: each.deleted for each in message.memberships}


def _places_wanted(record: record_pb2.MessageRecord, ids: Mapping[int, str]) -> dict[str, bool]:
    return {ids.get(each.mailbox, ""): each.deleted for each in record.memberships}


def _first(record: record_pb2.MessageRecord) -> record_pb2.MembershipRecord:
    return min(record.memberships, key=lambda each: each.mailbox)


def _batches(
    records: Sequence[record_pb2.MessageRecord],
) -> Iterator[list[record_pb2.MessageRecord]]:
    """Of one mailbox each, and of what one call takes."""
    batch: list[record_pb2.MessageRecord] = []
    size_bytes = 0
    for record in records:
        counted = record.size_bytes if record.size_bytes <= limits.UPLOAD_ABOVE_BYTES else 0
        full = len(batch) == APPEND_MESSAGES_MAX or size_bytes + counted > APPEND_BYTES_MAX
        if batch and (full or _first(batch[0]).mailbox != _first(record).mailbox):
            yield batch
            batch, size_bytes = [], 0
        batch.append(record)
        size_bytes += counted
    if batch:
        yield batch


def _cut(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(ids), COMMAND_MESSAGES_MAX):
        yield ids[at : at + COMMAND_MESSAGES_MAX]

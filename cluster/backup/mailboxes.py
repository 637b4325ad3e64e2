"""Brings an account's mailboxes to what they were: names, places, roles and what else they have."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mailraft.client import AsyncClient
from mailraft.client.options import MailboxRole
from mailraft.internal.v1 import record_pb2
from mailraft.v1 import common_pb2, mailbox_pb2
from mailraft.wire import errors, tokens

_INBOX = common_pb2.MAILBOX_ROLE_INBOX


@dataclass(slots=True)
class MailboxPlan:
    """What has to be done. Numbers are of the account as it was, ids of the account as it is."""

    ids: dict[int, str] = field(default_factory=dict)  # those that are there
    create: list[record_pb2.MailboxRecord] = field(default_factory=list)  # parents first
    update: list[record_pb2.MailboxRecord] = field(default_factory=list)
    # Those whose name, place or role will be others, or may be needed by others: first they get a
    # name that nobody has, at the top, and no role.
    aside: list[mailbox_pb2.Mailbox] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)  # children first

    @property
    def changes(self) -> int:
        return len(self.create) + len(self.update) + len(self.surplus)


def plan(
    wanted: Iterable[record_pb2.MailboxRecord],
    current: Iterable[mailbox_pb2.Mailbox],
    *,
    same_account: bool,
) -> MailboxPlan:
    """same_account: ids mean the same mailboxes. Else those that an earlier try made are found by
    their paths, and the INBOX by its role.
    """
    numbered = {each.mailbox: each for each in wanted}
    there = {each.id: each for each in current}
    inbox = next((each.id for each in there.values() if each.role == _INBOX), "")
    places = {(each.parent_id, each.name): each.id for each in there.values()}
    found = MailboxPlan()
    for number in _parents_first(numbered):
        record = numbered[number]
        parent = found.ids.get(record.parent) if record.parent else ""
        if record.role == _INBOX:  # in every account, and cannot be made
            known = inbox
        elif same_account:
            known = tokens.mailbox_id(number)
        else:
            known = "" if parent is None else places.get((parent, record.name), "")
        if known not in there:
            found.create.append(record)
            continue
        found.ids[number] = known
        now = there[known]
        if not _equal(record, now, parent):
            found.update.append(record)
        if (parent, record.name, record.role) != (now.parent_id, now.name, now.role):
            found.aside.append(now)
    kept = {inbox, *found.ids.values()}
    surplus = sorted(there.values(), key=lambda each: -_depth(there, each.id))
    found.surplus = [each.id for each in surplus if each.id not in kept]
    found.aside += [there[each] for each in found.surplus]
    return found


async def carry_out(
    client: AsyncClient,
    account_id: str,
    planned: MailboxPlan,
    wanted: Iterable[record_pb2.MailboxRecord],
    suffix: str,
) -> None:
    """All but removing surplus ones; afterwards planned.ids names every wanted mailbox."""
    for number, mailbox in enumerate(planned.aside):
        await client.update_mailbox(
            account_id,
            mailbox.id,
            name=f"before-restore-{suffix}-{number}",
            parent_id="",
            role=None if mailbox.role == _INBOX else MailboxRole.NONE,
        )
    for record in planned.create:
        made = await client.create_mailbox(
            account_id,
            record.name,
            parent_id=planned.ids.get(record.parent, ""),
            role=MailboxRole(record.role),
            subscribed=record.subscribed,
            sort_order=record.sort_order,
            attributes=_attributes(record),
        )
        planned.ids[record.mailbox] = made.id
        if record.HasField("retention"):
            await client.update_mailbox(account_id, made.id, retention=_retention(record))
    order = _parents_first({each.mailbox: each for each in wanted})
    for record in sorted(planned.update, key=lambda each: order.index(each.mailbox)):
        await client.update_mailbox(
            account_id,
            planned.ids[record.mailbox],
            name=record.name,
            parent_id=planned.ids.get(record.parent, ""),
            role=None if record.role == _INBOX else MailboxRole(record.role),
            subscribed=record.subscribed,
            sort_order=record.sort_order,
            attributes=_attributes(record),
            retention=_retention(record),
        )


async def remove_surplus(client: AsyncClient, account_id: str, planned: MailboxPlan) -> list[str]:
    """Mailboxes that were not there then; those that stay since mail came into them meanwhile."""
    left = []
    for mailbox_id in planned.surplus:
        with contextlib.suppress(errors.MailboxNotFoundError):
            try:
                await client.delete_mailbox(account_id, mailbox_id)
            except (errors.MailboxNotEmptyError, errors.MailboxHasChildrenError):
                left.append(mailbox_id)
    return left


def _equal(record: record_pb2.MailboxRecord, now: mailbox_pb2.Mailbox, parent: str | None) -> bool:
    return (
        (parent, record.name, record.role) == (now.parent_id, now.name, now.role)
        and (record.subscribed, record.sort_order) == (now.subscribed, now.sort_order)
        and _attributes(record) == dict(now.attributes)
        and _retention(record) == now.retention
    )


def _attributes(record: record_pb2.MailboxRecord) -> dict[str, str]:
    return {each.key: each.value for each in record.attributes}


def _retention(record: record_pb2.MailboxRecord) -> mailbox_pb2.Retention:
    rule = record.retention
    told = mailbox_pb2.Retention(
        expunge_after_ms=rule.expunge_after_ms, max_messages=rule.messages_max
    )
    if rule.HasField("undelete_window_ms"):
        told.undelete_window_ms = rule.undelete_window_ms
    return told


def _parents_first(numbered: Mapping[int, record_pb2.MailboxRecord]) -> list[int]:
    def depth(number: int) -> int:
        record = numbered.get(number)
        return 0 if record is None or not record.parent else 1 + depth(record.parent)

    return sorted(numbered, key=lambda number: (depth(number), number))


def _depth(there: Mapping[str, mailbox_pb2.Mailbox], mailbox_id: str) -> int:
    depth = 0
    while mailbox_id in there and there[mailbox_id].parent_id:
        mailbox_id, depth = there[mailbox_id].parent_id, depth + 1
    return depth

"""UndeleteMessages: expunged messages come back, under their ids and with new UIDs."""

from __future__ import annotations

from collections.abc import Sequence

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import View
from mailraft.v1 import common_pb2

from . import expunge, messages, rules
from .account_change import AccountChange, account_not_found, open_account, prefix_of
from .context import Context
from .errors import bad_field, check_reply, limit_reached
from .overlay import Overlay

_WALKED_MAX = 2_000  # rows of expunged messages, found or expired, that one command looks at


def undelete(
    overlay: Overlay, context: Context, command: command_pb2.UndeleteMessages
) -> command_pb2.Reply:
    """All that can be brought back, or, if the quota does not allow it, none."""
    account = open_account(overlay, context, command)
    target = [account.mailbox_of(command.target)] if command.HasField("target") else []
    rows, outcome = find(overlay, account.prefix, context.now_ms, command)
    for row in rows:
        message = record_pb2.MessageRecord()
        message.CopyFrom(row.message)
        del message.memberships[:]
        messages.admit(account, message, target or _home(account, row))
        expunge.unkeep(account, row)
        outcome.messages.add().CopyFrom(shown(message))
    state = account.close()
    check_reply(outcome)
    return command_pb2.Reply(format=rules.FORMAT, undeleted=outcome, state=state)


def preview(
    view: View, account_id: str, now_ms: int, command: command_pb2.UndeleteMessages
) -> command_pb2.UndeleteOutcome:
    """What could be brought back, with the memberships that it had."""
    prefix = prefix_of(account_id)
    if view.get(keys.account_record(prefix)) is None:
        raise account_not_found()
    rows, outcome = find(Overlay(view), prefix, now_ms, command)
    outcome.messages.extend(shown(row.message) for row in rows)
    return outcome


def find(
    overlay: Overlay, prefix: bytes, now_ms: int, command: command_pb2.UndeleteMessages
) -> tuple[Sequence[record_pb2.ExpungedRecord], command_pb2.UndeleteOutcome]:
    """The rows that are asked for and not expired; and what there is to say of the rest."""
    outcome = command_pb2.UndeleteOutcome()
    found: list[record_pb2.ExpungedRecord] = []
    if command.HasField("since"):
        if command.messages:
            raise bad_field("selector: by id or by time")
        outcome.more = _since(overlay, prefix, now_ms, command.since, found)
        return found, outcome
    if len(command.messages) > rules.MESSAGES_PER_COMMAND_MAX:
        raise limit_reached("messages", rules.MESSAGES_PER_COMMAND_MAX)
    for number in dict.fromkeys(command.messages):
        row = _row(overlay, prefix, number)
        if row is None or row.expires_ms <= now_ms:
            outcome.not_found.append(number)
        else:
            found.append(row)
    return found, outcome


def shown(message: record_pb2.MessageRecord) -> record_pb2.MessageRecord:
    """Without what a reply does not tell."""
    told = record_pb2.MessageRecord()
    told.CopyFrom(message)
    told.derived = b""
    del told.thread_keys[:]
    return told


def _since(
    overlay: Overlay,
    prefix: bytes,
    now_ms: int,
    asked: command_pb2.ExpungedSince,
    found: list[record_pb2.ExpungedRecord],
) -> bool:
    """Newest first; whether there is more."""
    start = keys.expunged_at(prefix, asked.mailbox)
    rows = overlay.scan(start, keys.after(start[:-16]), reverse=True)
    for walked, (key, _) in enumerate(rows):
        row = _row(overlay, prefix, keys.message_of(key))
        assert row is not None, "an expunged_at row of a message that is not kept"
        if row.expunged_ms < asked.from_ms:
            return False
        if len(found) >= rules.MESSAGES_PER_COMMAND_MAX or walked >= _WALKED_MAX:
            return True
        if row.expires_ms > now_ms:
            found.append(row)
    return False


def _row(overlay: Overlay, prefix: bytes, number: int) -> record_pb2.ExpungedRecord | None:
    return overlay.read(keys.expunged(prefix, number), record_pb2.ExpungedRecord)


def _home(account: AccountChange, row: record_pb2.ExpungedRecord) -> list[record_pb2.MailboxRecord]:
    """Where it was; if none of that is there any more, the inbox."""
    were = [account.mailbox(place.mailbox) for place in row.message.memberships]
    there = [mailbox for mailbox in were if mailbox is not None]
    return there or [account.mailbox_of_role(common_pb2.MAILBOX_ROLE_INBOX)]

"""DoChore: one bounded step of work that is due."""

from __future__ import annotations

from collections.abc import Callable

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys

from . import account_delete, chores, expunge, mailbox_change, retention, rules, trimming, uploads
from .account_change import AccountChange, prefix_of
from .context import Context
from .errors import bad_field
from .overlay import Overlay

_Step = Callable[[AccountChange, command_pb2.DoChore], bool]


def do(overlay: Overlay, context: Context, asked: command_pb2.DoChore) -> command_pb2.Reply:
    """Does a step if the chore is still there and due. Its row stays while there is more to do."""
    prefix = prefix_of(asked.account_id)
    if asked.due_ms < 0 or asked.kind not in command_pb2.ChoreKind.values() or not asked.kind:
        raise bad_field("do_chore: no such chore")
    reply = command_pb2.Reply(format=rules.FORMAT, chore=command_pb2.ChoreOutcome())
    key = keys.chore(asked.due_ms, asked.kind, prefix, asked.number)
    if asked.due_ms > context.now_ms or overlay.get(key) is None:
        return reply
    overlay.delete(key)  # a step may put it back for another time
    if asked.kind == chores.CLEAR_ACCOUNT:
        reply.chore.more = _clear_account(overlay, prefix, context.now_ms)
    elif overlay.get(keys.account_record(prefix)) is not None:
        account = AccountChange(overlay, context, prefix)
        reply.chore.more = _STEPS[asked.kind](account, asked)
        reply.state.CopyFrom(account.close())
    if reply.chore.more:
        overlay.put(key, b"")
    return reply


def _clear_account(overlay: Overlay, prefix: bytes, now_ms: int) -> bool:
    tombstone = overlay.read(keys.tombstone(prefix), record_pb2.AccountTombstone)
    if tombstone is None or not tombstone.clearing:
        return False
    return account_delete.clear(overlay, prefix, now_ms)


def _clear_mailbox(account: AccountChange, asked: command_pb2.DoChore) -> bool:
    if account.overlay.get(keys.doomed_mailbox(account.prefix, asked.number)) is None:
        return False
    return mailbox_change.clear(account, asked.number)


_STEPS: dict[int, _Step] = {
    chores.CLEAR_MAILBOX: _clear_mailbox,
    chores.FORGET_EXPUNGED: lambda account, asked: expunge.forget(account, asked.due_ms),
    chores.APPLY_RETENTION: lambda account, asked: retention.apply(
        account, asked.number, asked.due_ms
    ),
    chores.TRIM_CHANGES: lambda account, asked: trimming.trim(account, asked.due_ms),
    chores.EXPIRE_UPLOADS: lambda account, asked: uploads.expire(
        account.overlay, account.prefix, asked.due_ms, account.context.now_ms
    ),
}

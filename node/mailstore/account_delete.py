"""DeleteAccount, and what is left of an account afterwards.

The account record goes at once, so no call finds the account. A tombstone with its last state
stays, for ever: it costs 50 bytes, and a later account of the name begins above it, with a later
incarnation, higher UIDVALIDITYs (RFC 9051 section 2.3.1.1) and message numbers never given before.

References to bodies are given back message by message, 1,000 a command; the other rows then go in
one range. Until that is done no account of the name can be created (OVERLOADED: come again).
"""

from __future__ import annotations

from itertools import islice

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.v1 import error_pb2

from . import blobs, chores, rules, uploads
from .account_change import open_account, state_of
from .context import Context
from .errors import Refused
from .overlay import Overlay


def delete(
    overlay: Overlay, context: Context, command: command_pb2.DeleteAccount
) -> command_pb2.Reply:
    """The reply's state is the last one of this incarnation."""
    account = open_account(overlay, context, command)
    record, prefix = account.record, account.prefix
    if command.HasField("if_object"):
        account.check_object(command.if_object, record.object_modseq, "account")
    if record.used_messages and not command.force:
        raise Refused(error_pb2.ERROR_REASON_ACCOUNT_NOT_EMPTY, "the account holds messages")
    tombstone = record_pb2.AccountTombstone(
        format=rules.FORMAT,
        restore_epoch=record.restore_epoch,
        creation_index=record.creation_index,
        modseq=record.modseq,
        last_uid_validity=record.last_uid_validity,
        next_message=record.next_message,
        deleted_ms=context.now_ms,
        clearing=True,
    )
    state = state_of(record)
    overlay.put(keys.tombstone(prefix), tombstone)
    overlay.delete(keys.account_record(prefix))
    if clear(overlay, prefix, context.now_ms):
        chores.enqueue(overlay, chores.NOW, chores.CLEAR_ACCOUNT, prefix)
    return command_pb2.Reply(format=rules.FORMAT, deleted=command_pb2.DeleteOutcome(), state=state)


def clear(overlay: Overlay, prefix: bytes, now_ms: int) -> bool:
    """Gives back what at most 1,000 messages of a deleted account refer to; whether there are more.

    Chores of the account that are still queued find no account, and go by themselves.
    """
    left = rules.MESSAGES_PER_COMMAND_MAX
    start = keys.message_record(prefix)
    for key, value in islice(overlay.scan(start, keys.after(start[:-8])), left):
        message = record_pb2.MessageRecord.FromString(value)
        blobs.release(overlay, prefix, message.body, now_ms)
        overlay.delete(key)
        left -= 1
    start = keys.expunged(prefix)
    for key, value in islice(overlay.scan(start, keys.after(start[:-8])), left):
        row = record_pb2.ExpungedRecord.FromString(value)
        blobs.release(overlay, prefix, row.message.body, now_ms)
        overlay.delete(key)
        left -= 1
    left = uploads.clear(overlay, prefix, now_ms, left)
    if left <= 0:
        return True
    overlay.delete_range(*keys.account_rows(prefix))
    overlay.delete(keys.account_record(prefix))  # named, for who listens to it
    tombstone = overlay.edit(keys.tombstone(prefix), record_pb2.AccountTombstone)
    assert tombstone is not None
    tombstone.clearing = False
    return False


def earlier_life(overlay: Overlay, prefix: bytes) -> record_pb2.AccountTombstone | None:
    """What a new account of the name begins above. Refuses while the old one is not cleared."""
    tombstone = overlay.read(keys.tombstone(prefix), record_pb2.AccountTombstone)
    if tombstone is not None and tombstone.clearing:
        raise Refused(
            error_pb2.ERROR_REASON_OVERLOADED, "the deleted account of that id is being removed"
        )
    return tombstone

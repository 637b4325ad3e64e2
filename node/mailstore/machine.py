"""The state machine: decodes log entries, runs their commands in order, collects what changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.interfaces import Applied, Entry, EntryKind, Proposal, View

from . import (
    account_delete,
    accounts,
    additions,
    blobs,
    chore_steps,
    expunge,
    keywords,
    mailbox_change,
    moves,
    rules,
    shard_clock,
    threads,
    undelete,
    uploads,
)
from .context import Context
from .errors import Refused, UnknownFormatError
from .overlay import Overlay


class MailStateMachine:
    """Implements StateMachine for mail. Holds no state of its own: all of it is in the view.

    Commands are mailraft.internal.v1.Command, replies mailraft.internal.v1.Reply: a refusal is a
    reply too. What raises is what must stop the replica: UnknownFormatError, or damaged bytes.
    """

    def apply(self, view: View, entry: Entry) -> Applied:
        """Effects and replies of one entry. Entries that carry no commands change nothing."""
        if entry.kind is not EntryKind.COMMAND:
            return Applied(())
        batch = command_pb2.CommandBatch.FromString(entry.payload)
        if batch.format != rules.FORMAT:
            raise UnknownFormatError(f"entry {entry.index}: command format {batch.format}")
        overlay = Overlay(view)
        replies = [_run(overlay, entry.index, command) for command in batch.commands]
        return Applied(overlay.effects(), tuple(replies))

    def encode(self, commands: Sequence[Proposal]) -> tuple[bytes, tuple[bytes, ...]]:
        """One entry's payload and bodies. Finishes each command: which bodies are its own, and what
        threads its messages.

        Raises ValueError for what apply would stop at: the proposer is broken, not the log.
        """
        batch = command_pb2.CommandBatch(format=rules.FORMAT)
        bodies: list[bytes] = []
        for proposal in commands:
            command = proposal.command
            if not isinstance(command, command_pb2.Command):
                raise TypeError(f"a proposal holds a Command, not {type(command).__name__}")
            if command.WhichOneof("action") not in _ACTIONS:
                raise ValueError("a command says what to do")
            copy = batch.commands.add()
            copy.CopyFrom(command)
            copy.body_base = len(bodies)
            copy.body_count = len(proposal.bodies)
            threads.fill_keys(copy)
            bodies.extend(proposal.bodies)
        return batch.SerializeToString(deterministic=True), tuple(bodies)


def _run(overlay: Overlay, index: int, command: command_pb2.Command) -> command_pb2.Reply:
    now_ms = shard_clock.advance(overlay, command.time_ms)
    window_ms = command.undelete_window_ms or rules.UNDELETE_WINDOW_DEFAULT_MS
    context = Context(index, now_ms, command.body_base, command.body_count, window_ms)
    try:
        reply = _handle(overlay, context, command)
    except Refused as refused:
        reply = command_pb2.Reply(format=rules.FORMAT, refusal=refused.to_refusal())
    blobs.free_untaken(overlay, context)
    return reply


def _handle(overlay: Overlay, context: Context, command: command_pb2.Command) -> command_pb2.Reply:
    action = command.WhichOneof("action") or ""
    if action not in _ACTIONS:
        raise UnknownFormatError(
            f"entry {context.entry_index}: a command that this version does not know"
        )
    shard_clock.check_request_id(command.request_id, context.now_ms)
    match action:
        case "deliver":
            return additions.deliver(overlay, context, command)
        case "read_barrier":  # that it was applied is the answer
            return command_pb2.Reply(format=rules.FORMAT, barrier=command_pb2.BarrierReply())
        case "do_chore":
            return _whole(overlay, lambda layer: chore_steps.do(layer, context, command.do_chore))
        case "begin_upload":
            return _whole(overlay, lambda layer: uploads.begin(layer, context, command))
        case "upload_part":
            return _whole(overlay, lambda layer: uploads.part(layer, context, command))
        case "drop_upload":
            return _whole(overlay, lambda layer: uploads.drop(layer, context, command))
        case "collect_bodies":
            return _whole(overlay, lambda layer: blobs.collect(layer, context))
        case _:
            return _once(overlay, context, command, action)


def _whole(overlay: Overlay, run: Callable[[Overlay], command_pb2.Reply]) -> command_pb2.Reply:
    """Runs all or nothing."""
    layer = overlay.child()
    reply = run(layer)
    layer.commit()
    return reply


def _once(
    overlay: Overlay, context: Context, command: command_pb2.Command, action: str
) -> command_pb2.Reply:
    """Runs a command about one account all or nothing, and only the first time it is sent."""
    outcome, run = _OF_ONE_ACCOUNT[action]
    asked = getattr(command, action)
    account = rules.account_key(asked.account_id)
    known = shard_clock.recall(overlay, command.request_id, account, command.fingerprint)
    if known is not None:
        reply = command_pb2.Reply.FromString(known.reply)
        if reply.WhichOneof("outcome") != outcome:
            raise shard_clock.request_id_reused()
        return reply
    reply = _whole(overlay, lambda layer: run(layer, context, asked))
    if command.request_id:
        record = record_pb2.RequestRecord(
            format=rules.FORMAT, fingerprint=command.fingerprint, reply=reply.SerializeToString()
        )
        shard_clock.remember(overlay, command.request_id, account, record)
    return reply


# What each is called in a command: how its outcome is called in a reply, and who does it.
_OF_ONE_ACCOUNT: dict[str, tuple[str, Callable[[Overlay, Context, Any], command_pb2.Reply]]] = {
    "create_account": ("account", accounts.create_account),
    "update_account": ("account", accounts.update_account),
    "delete_account": ("deleted", account_delete.delete),
    "create_mailbox": ("mailbox", accounts.create_mailbox),
    "update_mailbox": ("mailbox", mailbox_change.update),
    "delete_mailbox": ("deleted", mailbox_change.delete),
    "append": ("append", additions.append),
    "modify_keywords": ("changed", keywords.modify),
    "update_memberships": ("changed", moves.update),
    "move_messages": ("mapped", moves.move),
    "copy_messages": ("mapped", moves.copy),
    "expunge_messages": ("expunged", expunge.expunge),
    "undelete_messages": ("undeleted", undelete.undelete),
}
_UPLOADS = {"begin_upload", "upload_part", "drop_upload"}  # their row is their memory
_ACTIONS = {
    *_OF_ONE_ACCOUNT,
    *_UPLOADS,
    "deliver",
    "read_barrier",
    "do_chore",
    "collect_bodies",
}

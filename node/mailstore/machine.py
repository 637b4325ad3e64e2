"""The state machine: decodes log entries, runs their commands in order, collects what changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.interfaces import Applied, Entry, EntryKind, Proposal, View

from . import accounts, additions, rules, shard_clock, threads
from .errors import Refused, UnknownFormatError
from .messages import Context
from .overlay import Overlay

_Handler = Callable[[Overlay, Context, command_pb2.Command], command_pb2.Reply]


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
            if command.WhichOneof("action") not in _HANDLERS:
                raise ValueError("a command says what to do")
            copy = batch.commands.add()
            copy.CopyFrom(command)
            copy.body_base = len(bodies)
            copy.body_count = len(proposal.bodies)
            threads.fill_keys(copy)
            bodies.extend(proposal.bodies)
        return batch.SerializeToString(deterministic=True), tuple(bodies)


def _run(overlay: Overlay, index: int, command: command_pb2.Command) -> command_pb2.Reply:
    handler = _HANDLERS.get(command.WhichOneof("action") or "")
    if handler is None:
        raise UnknownFormatError(f"entry {index}: a command that this version does not know")
    now_ms = shard_clock.advance(overlay, command.time_ms)
    context = Context(index, now_ms, command.body_base, command.body_count)
    try:
        shard_clock.check_request_id(command.request_id, now_ms)
        return handler(overlay, context, command)
    except Refused as refused:
        return command_pb2.Reply(format=rules.FORMAT, refusal=refused.to_refusal())


def _once(
    overlay: Overlay,
    command: command_pb2.Command,
    account_id: str,
    run: Callable[[Overlay], command_pb2.Reply],
) -> command_pb2.Reply:
    """Runs a command about one account all or nothing, and only the first time it is sent."""
    account = rules.account_key(account_id)
    known = shard_clock.recall(overlay, command.request_id, account, command.fingerprint)
    if known is not None:
        return _same_call(command, command_pb2.Reply.FromString(known.reply))
    layer = overlay.child()
    reply = run(layer)
    layer.commit()
    if command.request_id:
        record = record_pb2.RequestRecord(
            format=rules.FORMAT, fingerprint=command.fingerprint, reply=reply.SerializeToString()
        )
        shard_clock.remember(overlay, command.request_id, account, record)
    return reply


def _same_call(command: command_pb2.Command, known: command_pb2.Reply) -> command_pb2.Reply:
    if known.WhichOneof("outcome") != _OUTCOMES.get(command.WhichOneof("action") or ""):
        raise shard_clock.request_id_reused()
    return known


def _create_account(
    overlay: Overlay, context: Context, command: command_pb2.Command
) -> command_pb2.Reply:
    asked = command.create_account
    return _once(
        overlay,
        command,
        asked.account_id,
        lambda layer: accounts.create_account(layer, context, asked),
    )


def _update_account(
    overlay: Overlay, _context: Context, command: command_pb2.Command
) -> command_pb2.Reply:
    asked = command.update_account
    return _once(
        overlay,
        command,
        asked.account_id,
        lambda layer: accounts.update_account(layer, asked),
    )


def _create_mailbox(
    overlay: Overlay, context: Context, command: command_pb2.Command
) -> command_pb2.Reply:
    asked = command.create_mailbox
    return _once(
        overlay,
        command,
        asked.account_id,
        lambda layer: accounts.create_mailbox(layer, context, asked),
    )


def _append(overlay: Overlay, context: Context, command: command_pb2.Command) -> command_pb2.Reply:
    asked = command.append
    return _once(
        overlay, command, asked.account_id, lambda layer: additions.append(layer, context, asked)
    )


def _read_barrier(
    _overlay: Overlay, _context: Context, _command: command_pb2.Command
) -> command_pb2.Reply:
    """Changes nothing: that it was applied is the answer."""
    return command_pb2.Reply(format=rules.FORMAT, barrier=command_pb2.BarrierReply())


_HANDLERS: dict[str, _Handler] = {
    "create_account": _create_account,
    "update_account": _update_account,
    "create_mailbox": _create_mailbox,
    "deliver": additions.deliver,
    "append": _append,
    "read_barrier": _read_barrier,
}
_OUTCOMES = {
    "create_account": "account",
    "update_account": "account",
    "create_mailbox": "mailbox",
    "append": "append",
}

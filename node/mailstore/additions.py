"""Commands that add mail: one body to many accounts, or many messages to one."""

from __future__ import annotations

from mailraft.internal.v1 import command_pb2, record_pb2

from . import blobs, messages, rules, shard_clock
from .account_change import AccountChange, open_account, prefix_of, tell_state
from .context import Context
from .errors import Refused, bad_field, limit_reached
from .messages import Content
from .overlay import Overlay


def deliver(overlay: Overlay, context: Context, command: command_pb2.Command) -> command_pb2.Reply:
    """One body, kept once, for every recipient that takes it; each answers for itself.

    The request is remembered for each recipient apart, since a retry may find them regrouped: who
    has the message already answers as before, who refused is tried again. An account that is named
    twice under one request_id gets one message.
    """
    asked = command.deliver
    recipients = asked.recipients[:]  # a list: iterating costs protobuf's container twice as much
    if not recipients:
        raise bad_field("recipients: none")
    if len(recipients) > rules.RECIPIENTS_PER_DELIVERY_MAX:
        raise limit_reached("recipients", rules.RECIPIENTS_PER_DELIVERY_MAX)
    content = Content(
        body=blobs.new_body(context, asked.body),
        received_ms=asked.internal_time_ms or context.now_ms,
        derived=asked.derived,
        thread_keys=messages.unique_thread_keys(asked.thread_keys),
    )
    reply = command_pb2.Reply(format=rules.FORMAT)
    answers = reply.deliver.recipients
    for recipient in recipients:
        answer = answers.add()
        try:
            _deliver_one(overlay, context, content, command, recipient, answer)
        except Refused as refused:
            answer.refusal.CopyFrom(refused.to_refusal())
    return reply


def _deliver_one(
    overlay: Overlay,
    context: Context,
    content: Content,
    command: command_pb2.Command,
    recipient: command_pb2.DeliverRecipient,
    answer: command_pb2.RecipientReply,
) -> None:
    account_id, request_id = recipient.account_id, command.request_id
    prefix = prefix_of(account_id)
    name = account_id.encode()
    fingerprint = recipient.fingerprint or command.fingerprint
    known = shard_clock.recall(overlay, request_id, name, fingerprint)
    if known is not None:
        if not known.recipient_reply:
            raise shard_clock.request_id_reused()
        answer.MergeFromString(known.recipient_reply)
        return
    layer = overlay.child()
    account = AccountChange(layer, context, prefix)
    messages.store(account, content, recipient.targets, recipient.keywords, answer.message)
    account.finish()
    tell_state(account.record, answer.state)
    layer.commit()
    if request_id:
        record = record_pb2.RequestRecord()
        record.format, record.fingerprint = rules.FORMAT, fingerprint
        record.recipient_reply = answer.SerializeToString()
        shard_clock.remember(overlay, request_id, name, record)


def append(overlay: Overlay, context: Context, command: command_pb2.Append) -> command_pb2.Reply:
    """All messages or none, in order, under one MODSEQ (RFC 3502: MULTIAPPEND is atomic)."""
    if not command.items:
        raise bad_field("messages: none")
    if len(command.items) > rules.MESSAGES_PER_COMMAND_MAX:
        raise limit_reached("messages", rules.MESSAGES_PER_COMMAND_MAX)
    account = open_account(overlay, context, command)
    reply = command_pb2.Reply(format=rules.FORMAT)
    reply.append.SetInParent()
    for item in command.items:
        content = Content(
            body=_body_of(account, context, item),
            received_ms=item.internal_time_ms or context.now_ms,
            derived=item.derived,
            thread_keys=messages.unique_thread_keys(item.thread_keys),
        )
        told = reply.append.messages.add()
        messages.store(account, content, item.targets, item.keywords, told, deleted=item.deleted)
    reply.state.CopyFrom(account.close())
    return reply


def _body_of(account: AccountChange, context: Context, item: command_pb2.AppendItem) -> blobs.Body:
    match item.WhichOneof("content"):
        case "body":
            return blobs.new_body(context, item.body)
        case "blob":
            return blobs.known_body(account.overlay, account.prefix, item.blob)
        case _:
            raise bad_field("messages: one without content")

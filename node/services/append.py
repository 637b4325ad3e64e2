"""AppendMessages: messages of one account, all or none."""

from __future__ import annotations

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.shard import Replica
from mailraft.v1 import delivery_pb2
from mailraft.wire import bodies, tokens

from . import blob_source, convert, levels, mutations, validate, write_levels
from .base import Call, Shards
from .content import Budget, given_or_derived, prepare

ITEMS_MAX = 256


class Append:
    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def AppendMessages(
        self, request: delivery_pb2.AppendMessagesRequest, call: Call
    ) -> delivery_pb2.AppendMessagesResponse:
        validate.account_id(request.account_id)
        validate.request_id(request.request_id)
        write_levels.check(request.write_options)
        if_in_state = levels.if_in_state(request.write_options)
        if not 1 <= len(request.messages) <= ITEMS_MAX:
            raise validate.bad("messages", f"1 to {ITEMS_MAX}")
        replica = self._shards.replica_for_account(request.account_id)
        levels.check_leading(replica)
        command = command_pb2.Command(
            request_id=request.request_id,
            append=command_pb2.Append(account_id=request.account_id, if_in_state=if_in_state),
        )
        packed: list[bytes] = []
        parts: list[bytes] = []
        budget = Budget()
        for number, asked in enumerate(request.messages):
            field = f"messages[{number}]"
            item = command.append.items.add()
            parts.append(
                await self._fill(
                    replica, request.account_id, asked, item, packed, budget, field, call
                )
            )
            parts.append(mutations.placement(item.targets, item.keywords, item.internal_time_ms))
            parts.append(b"deleted" if item.deleted else b"")
        command.fingerprint = mutations.fingerprint("append", *parts)
        done = await mutations.mutate(
            self._shards,
            request.account_id,
            command,
            call,
            packed,
            options=request.write_options,
        )
        return delivery_pb2.AppendMessagesResponse(
            state=done.state,
            served=done.served,
            messages=[_appended(stored) for stored in done.reply.append.messages],
        )

    async def _fill(
        self,
        replica: Replica,
        account_id: str,
        asked: delivery_pb2.AppendItem,
        item: command_pb2.AppendItem,
        packed: list[bytes],
        budget: Budget,
        field: str,
        call: Call,
    ) -> bytes:
        """Makes the command's item of what is asked; the hash of the content."""
        item.targets.extend(validate.targets(asked.targets, f"{field}.targets"))
        item.keywords.extend(validate.keywords(asked.keywords, f"{field}.keywords"))
        item.internal_time_ms = validate.internal_time(
            asked.internal_time_ms, f"{field}.internal_time_ms"
        )
        item.deleted = asked.deleted
        given = asked.derived if asked.HasField("derived") else None
        match asked.WhichOneof("source"):
            case "content":
                content = await prepare(
                    asked.content,
                    given,
                    budget,
                    f"{field}.content",
                    bodies.dictionary_at(self._shards.cluster.feature_level),
                )
                item.body.CopyFrom(content.new_body(len(packed)))
                item.derived = content.derived
                item.thread_keys.extend(content.thread_keys)
                packed.append(content.packed)
                return content.sha256
            case "blob_id":
                position = validate.blob_id(asked.blob_id)
                row = await blob_source.readable(replica, account_id, position, call)
                first = blob_source.bodies_of(row)[0]  # the header is in there
                budget.take(first.size_bytes)
                head = await blob_source.opened(self._shards, replica, first)
                item.blob.CopyFrom(record_pb2.BodyPosition(index=row.index, ordinal=row.ordinal))
                item.derived = given_or_derived(given, head)
                return row.sha256
            case _:
                raise validate.bad(field, "content or blob_id")


def _appended(stored: command_pb2.StoredMessage) -> delivery_pb2.AppendedMessage:
    return delivery_pb2.AppendedMessage(
        message_id=tokens.message_id(stored.message),
        blob_id=tokens.blob_id(stored.body.index, stored.body.ordinal),
        thread_id=tokens.thread_id(stored.thread),
        size_bytes=stored.size_bytes,
        memberships=convert.memberships(stored),
    )

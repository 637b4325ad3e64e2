"""One command about one account, from its handler to the shard and back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mailraft.internal.v1 import command_pb2
from mailraft.node.shard import Committed, Replica
from mailraft.v1 import common_pb2, error_pb2
from mailraft.wire import errors

from . import convert, levels
from .base import Call, Shards


@dataclass(frozen=True, slots=True)
class Done:
    """A command that was applied and not refused."""

    reply: command_pb2.Reply
    state: str
    served: common_pb2.Served


async def mutate(
    shards: Shards,
    account_id: str,
    command: command_pb2.Command,
    call: Call,
    packed: Sequence[bytes] = (),
) -> Done:
    """Has the command committed in the account's shard; raises what the shard says no with."""
    replica = shards.replica_for_account(account_id)
    committed = await propose(shards, replica, command, call, packed)
    reply = reply_of(committed)
    if reply.WhichOneof("outcome") == "refusal":
        raise convert.refusal(reply.refusal)
    state = convert.state_token(reply.state)
    return Done(reply, state, levels.served_write(shards, replica, committed))


async def propose(
    shards: Shards,
    replica: Replica,
    command: command_pb2.Command,
    call: Call,
    packed: Sequence[bytes],
) -> Committed:
    command.time_ms = shards.wall_ms()
    try:
        return await replica.propose(command, packed, deadline_s=call.deadline_s)
    except errors.CommitUnknownError as error:
        error.detail = error_pb2.CommitUnknown(shard=replica.group, request_id=command.request_id)
        raise


def reply_of(committed: Committed) -> command_pb2.Reply:
    assert isinstance(committed.reply, command_pb2.Reply)
    return committed.reply


# ---- fingerprints --------------------------------------------------------------------------------
# What a request_id stands for: SHA-256 over what the caller asked for, each part behind its length.
# Content counts as the hash of its raw bytes, lists by their meaning (targets and keywords sorted),
# times as asked (0: the leader's). Not in it: how the content was compressed, `derived`, options,
# etags, the other recipients of a delivery (a retry may travel in other company).


def fingerprint(kind: str, *parts: bytes | str | int) -> bytes:
    encoded = [kind.encode()]
    encoded += [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return hashlib.sha256(b"".join([len(part).to_bytes(4) + part for part in encoded])).digest()


def placement(
    targets: Sequence[command_pb2.Target], keywords: Sequence[str], internal_time_ms: int
) -> bytes:
    """Of one message in one account: where it goes, under which keywords and time."""
    if not (targets or keywords or internal_time_ms):
        return _PLAIN
    where = sorted((each.mailbox, each.role) for each in targets)
    return fingerprint("placement", repr(where), "\n".join(keywords), internal_time_ms)


_PLAIN = fingerprint("placement", "[]", "", 0)  # the inbox, no keywords, now

"""One command about one account, from its handler to the shard and back."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mailraft.internal.v1 import command_pb2
from mailraft.node.proposals import Committed
from mailraft.node.shard import Replica
from mailraft.v1 import common_pb2, error_pb2
from mailraft.wire import errors

from . import convert, write_levels
from .base import Accepted, Call, Shards


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
    *,
    options: common_pb2.WriteOptions,
) -> Done:
    """Has the command committed in the account's shard, and waits for its level.

    Raises what the shard says no with, and Accepted.
    """
    replica = shards.replica_for_account(account_id)
    reply, served = await write(shards, replica, command, call, packed, options)
    return Done(reply, convert.state_token(reply.state), served)


async def write(
    shards: Shards,
    replica: Replica,
    command: command_pb2.Command,
    call: Call,
    packed: Sequence[bytes],
    options: common_pb2.WriteOptions,
) -> tuple[command_pb2.Reply, common_pb2.Served]:
    """As mutate, in a replica that is known."""
    level = write_levels.level_of(shards, options)
    level.check(replica)
    accepted = level.accepted and not _tells_what_remains(command)
    committed = await propose(shards, replica, command, call, packed, accepted=accepted)
    if committed is None:
        raise Accepted(write_levels.served_accepted(shards, replica))
    reply = reply_of(committed)
    if reply.WhichOneof("outcome") == "refusal":
        raise convert.refusal(reply.refusal)
    return reply, await level.reached(shards, replica, committed, call)


async def propose(
    shards: Shards,
    replica: Replica,
    command: command_pb2.Command,
    call: Call,
    packed: Sequence[bytes] = (),
    *,
    accepted: bool = False,
) -> Committed | None:
    """Has the command committed; None if it is only `accepted`."""
    command.time_ms = shards.stamp_ms()
    shards.settle(command)
    if replica.leadership.leading:  # else it is told who leads
        shards.admit(replica, command)
    try:
        if accepted:
            await replica.accept(command, packed, deadline_s=call.deadline_s)
            return None
        return await replica.propose(command, packed, deadline_s=call.deadline_s)
    except errors.CommitUnknownError as error:
        error.detail = error_pb2.CommitUnknown(shard=replica.group, request_id=command.request_id)
        raise


def _tells_what_remains(command: command_pb2.Command) -> bool:
    """Whether its caller needs the reply to go on: UIDs may be more than one command takes."""
    chosen = getattr(getattr(command, command.WhichOneof("action") or ""), "messages", None)
    return isinstance(chosen, command_pb2.Selection) and chosen.HasField("uids")


def reply_of(committed: Committed) -> command_pb2.Reply:
    assert isinstance(committed.reply, command_pb2.Reply)
    return committed.reply


# ---- fingerprints --------------------------------------------------------------------------------
# What a request_id stands for: SHA-256 over what the caller asked for, each part behind its length.
# Content counts as the hash of its raw bytes, lists by their meaning (targets and keywords sorted),
# times as asked (0: the leader's). Not in it: how the content was compressed, `derived`, options,
# etags, the other recipients of a delivery (a retry may travel in other company).


def fingerprint(kind: str, *parts: bytes | str | int) -> bytes:
    whole = _told(kind)
    for part in parts:
        encoded = part if isinstance(part, bytes) else str(part).encode()
        whole += len(encoded).to_bytes(4) + encoded
    return hashlib.sha256(whole).digest()


@functools.cache  # of the kinds that are written in the code
def _told(kind: str) -> bytes:
    return len(kind).to_bytes(4) + kind.encode()


def placement(
    targets: Sequence[command_pb2.Target], keywords: Sequence[str], internal_time_ms: int
) -> bytes:
    """Of one message in one account: where it goes, under which keywords and time."""
    if not (targets or keywords or internal_time_ms):
        return _PLAIN
    where = sorted((each.mailbox, each.role) for each in targets)
    return fingerprint("placement", repr(where), "\n".join(keywords), internal_time_ms)


_PLAIN = fingerprint("placement", "[]", "", 0)  # the inbox, no keywords, now

"""Which thread a message joins.

The simple way: an account keeps, for each message id that a message of it named, the thread of
the first message that did. A new message joins the thread of the first of its own keys that is
known (its own id, then what it answers, nearest first), else it starts a thread of its own number.
A thread is set at delivery and never changes (RFC 8621 section 3), so two threads that a later
message turns out to join stay two, and subjects are not compared.

Message ids come hashed in the command: whoever proposes it reads `derived`, apply does not. A
forged collision puts a message into a thread of the account that it could as well have named.
"""

from __future__ import annotations

from collections.abc import Sequence

import xxhash
from google.protobuf.message import DecodeError

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.v1 import message_pb2

from . import rules
from .overlay import Overlay


def fill_keys(command: command_pb2.Command) -> None:
    """What a proposer does to each command: thread_keys, where they are empty, from derived."""
    match command.WhichOneof("action"):
        case "deliver":
            deliver = command.deliver
            if not deliver.thread_keys:
                deliver.thread_keys.extend(_keys_of_bytes(deliver.derived))
        case "append":
            for item in command.append.items:
                if not item.thread_keys:
                    item.thread_keys.extend(_keys_of_bytes(item.derived))
        case _:
            pass


def keys_of(derived: message_pb2.Derived) -> list[int]:
    """The message's own id first, then those that it answers, nearest first: In-Reply-To, then
    References backwards (RFC 5322 section 3.6.4).
    """
    envelope = derived.envelope
    answered = (*envelope.in_reply_to[:], *derived.references[::-1])
    ids = dict.fromkeys((envelope.message_id, *answered))
    ids.pop("", None)
    return [xxhash.xxh3_64_intdigest(name.encode()) for name in ids][: rules.THREAD_KEYS_MAX]


def _keys_of_bytes(derived: bytes) -> list[int]:
    """Unreadable bytes have none."""
    try:
        return keys_of(message_pb2.Derived.FromString(derived))
    except DecodeError:
        return []


def join(overlay: Overlay, prefix: bytes, thread_keys: Sequence[int], otherwise: int) -> int:
    """The thread of a new message; counts it under each of its keys (each once, sorted or not).
    `otherwise` is its thread if no key is known: its own number, or that of what it is a copy of.
    """
    unknown = []
    thread = 0
    for digest in thread_keys:
        row = overlay.edit_or_new(keys.thread_key(prefix, digest), record_pb2.ThreadKeyRecord)
        row.references += 1
        known = row.thread
        if not known:
            unknown.append(row)
        elif not thread:
            thread = known
    thread = thread or otherwise
    for row in unknown:
        row.thread = thread
    return thread


def leave(overlay: Overlay, prefix: bytes, thread_keys: Sequence[int]) -> None:
    """A message that was counted under these keys is gone; a key goes with its last message."""
    for digest in thread_keys:
        key = keys.thread_key(prefix, digest)
        row = overlay.edit(key, record_pb2.ThreadKeyRecord)
        assert row is not None, "a message was counted under a thread key that is not there"
        row.references -= 1
        if not row.references:
            overlay.delete(key)

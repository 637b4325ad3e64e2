"""Who refers to a body: counted by the state machine alone, so the counts are exact.

A body is referred to by each message of it and by each expunged message that can still be brought
back. When the last of them goes, or when a log entry brings a body that nobody took, it gets a
free_body row: after the grace time CollectBodies removes body and row. The grace keeps a reader
that has just looked up a position from finding nothing there.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.v1 import error_pb2

from . import rules
from .context import Context
from .errors import Refused, bad_field
from .overlay import Overlay


class Body(NamedTuple):
    """A body that a message may refer to, and where it lies."""

    log_index: int
    ordinal: int
    size_bytes: int
    stored_bytes: int
    sha256: bytes
    is_new: bool  # travels in this entry


def new_body(context: Context, body: command_pb2.NewBody) -> Body:
    """A body that travels in this entry."""
    if body.ordinal >= context.body_count:
        raise bad_field("body: the command does not carry it")
    if len(body.sha256) != 32:
        raise bad_field("body: sha256 is 32 bytes")
    if max(body.size_bytes, body.stored_bytes) > rules.BODY_MAX_BYTES:
        raise Refused(
            error_pb2.ERROR_REASON_MESSAGE_TOO_LARGE,
            "the message is too large",
            {"size_bytes": body.size_bytes, "max_bytes": rules.BODY_MAX_BYTES},
        )
    return Body(
        context.entry_index,
        context.body_base + body.ordinal,
        body.size_bytes,
        body.stored_bytes,
        body.sha256,
        is_new=True,
    )


def known_body(overlay: Overlay, prefix: bytes, position: record_pb2.BodyPosition) -> Body:
    """A body that the account may read already. A hash or a position alone opens nothing."""
    access = keys.blob_access(prefix, position.index, position.ordinal)
    blob = overlay.read(keys.blob(position.index, position.ordinal), record_pb2.BlobRecord)
    if blob is None or overlay.get(access) is None:
        raise Refused(error_pb2.ERROR_REASON_BLOB_NOT_FOUND, "no such blob in this account")
    return Body(
        position.index,
        position.ordinal,
        blob.size_bytes,
        blob.stored_bytes,
        blob.sha256,
        is_new=False,
    )


def refer(overlay: Overlay, prefix: bytes, body: Body) -> None:
    """One message more refers to the body, and its account may read it."""
    # Nothing of an earlier entry can name a body of this one.
    blob = overlay.edit_or_new(
        keys.blob(body.log_index, body.ordinal), record_pb2.BlobRecord, never_stored=body.is_new
    )
    if not blob.references:
        blob.size_bytes = body.size_bytes
        blob.stored_bytes = body.stored_bytes
        blob.sha256 = body.sha256
    if blob.free_ms:
        overlay.delete(keys.free_body(blob.free_ms, body.log_index, body.ordinal))
        blob.free_ms = 0
    blob.references += 1
    access = overlay.edit_or_new(
        keys.blob_access(prefix, body.log_index, body.ordinal),
        record_pb2.BlobAccessRecord,
        never_stored=body.is_new,
    )
    access.references += 1


def release(
    overlay: Overlay, prefix: bytes, position: record_pb2.BodyPosition, now_ms: int
) -> None:
    """One message fewer refers to the body; with its last one the account may not read it."""
    index, ordinal = position.index, position.ordinal
    key = keys.blob_access(prefix, index, ordinal)
    access = overlay.edit(key, record_pb2.BlobAccessRecord)
    blob = overlay.edit(keys.blob(index, ordinal), record_pb2.BlobRecord)
    assert access is not None, f"body {index}/{ordinal} is not the account's"
    assert blob is not None, f"body {index}/{ordinal} is not counted"
    access.references -= 1
    if not access.references:
        overlay.delete(key)
    blob.references -= 1
    if not blob.references:
        blob.free_ms = now_ms + rules.BODY_GRACE_MS
        overlay.put(keys.free_body(blob.free_ms, index, ordinal), b"")


def free_untaken(overlay: Overlay, context: Context) -> None:
    """Bodies of a command that nothing knows of now that it was run: refused, or a retry.

    What is to stay for a while without a message needs a BlobRecord of its own by then, with a
    free_body row for the time that it may stay until.
    """
    for ordinal in range(context.body_base, context.body_base + context.body_count):
        if overlay.read(keys.blob(context.entry_index, ordinal), record_pb2.BlobRecord) is None:
            due_ms = context.now_ms + rules.BODY_GRACE_MS
            overlay.put(keys.free_body(due_ms, context.entry_index, ordinal), b"")


def collect(overlay: Overlay, context: Context) -> command_pb2.Reply:
    """Removes bodies that were free for their grace time: at most 1,000."""
    rows = overlay.scan(keys.free_body(0), keys.free_body(context.now_ms + 1))
    found = [key for key, _ in islice(rows, rules.MESSAGES_PER_COMMAND_MAX + 1)]
    for key in found[: rules.MESSAGES_PER_COMMAND_MAX]:
        _, index, ordinal = keys.free_body_of(key)
        overlay.delete(key)
        blob = overlay.read(keys.blob(index, ordinal), record_pb2.BlobRecord)
        assert blob is None or not blob.references, f"body {index}/{ordinal} is free and in use"
        overlay.delete(keys.blob(index, ordinal))
        overlay.delete_body(index, ordinal)
    outcome = command_pb2.ChoreOutcome(
        count=min(len(found), rules.MESSAGES_PER_COMMAND_MAX),
        more=len(found) > rules.MESSAGES_PER_COMMAND_MAX,
    )
    return command_pb2.Reply(format=rules.FORMAT, chore=outcome)

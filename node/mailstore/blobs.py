"""Who refers to a body: counted by the state machine alone, so the counts are exact.

A body is referred to by each message of it and by each expunged message that can still be brought
back. When the last of them goes, or when a log entry brings a body that nobody took, it gets a
free_body row: after the grace time CollectBodies removes body and row. The grace keeps a reader
that has just looked up a position from finding nothing there.

A large message is a blob of several bodies (uploads.py). It is named by the first of them, whose
record lists all; the others have one reference each, which they lose with the whole.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.v1 import error_pb2

from . import rules
from .account_change import prefix_of
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
    sha256 = body.sha256
    size_bytes, stored_bytes = body.size_bytes, body.stored_bytes
    if body.ordinal >= context.body_count:
        raise bad_field("body: the command does not carry it")
    if len(sha256) != 32:
        raise bad_field("body: sha256 is 32 bytes")
    if max(size_bytes, stored_bytes) > rules.BODY_MAX_BYTES:
        raise Refused(
            error_pb2.ERROR_REASON_MESSAGE_TOO_LARGE,
            "the message is too large",
            {"size_bytes": size_bytes, "max_bytes": rules.BODY_MAX_BYTES},
        )
    at = context.body_base + body.ordinal
    return Body(context.entry_index, at, size_bytes, stored_bytes, sha256, is_new=True)


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
    if blob.upload_id:  # what it was kept for has come
        overlay.delete(keys.upload(prefix, blob.upload_id))
        _forget_upload(blob)
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


# ---- uploads -------------------------------------------------------------------------------------


def hold(overlay: Overlay, body: Body) -> None:
    """A part of an upload, that its row refers to."""
    blob = overlay.edit_or_new(
        keys.blob(body.log_index, body.ordinal), record_pb2.BlobRecord, never_stored=True
    )
    blob.references = 1
    blob.size_bytes = body.size_bytes
    blob.stored_bytes = body.stored_bytes
    blob.sha256 = body.sha256


def let_go(overlay: Overlay, index: int, ordinal: int, now_ms: int) -> None:
    """A part that no upload refers to any more."""
    blob = overlay.edit(keys.blob(index, ordinal), record_pb2.BlobRecord)
    assert blob is not None, f"part {index}/{ordinal} is not counted"
    blob.references = 0
    blob.free_ms = now_ms + rules.BODY_GRACE_MS
    overlay.put(keys.free_body(blob.free_ms, index, ordinal), b"")


def compose(
    overlay: Overlay,
    account_id: str,
    prefix: bytes,
    upload_id: bytes,
    upload: record_pb2.UploadRecord,
) -> None:
    """Makes a blob of an upload that is all there. Its account may read it, and name it in a
    message, until the upload's expiry.
    """
    first = upload.parts[0]
    blob = overlay.edit(keys.blob(first.index, first.ordinal), record_pb2.BlobRecord)
    assert blob is not None, f"part {first.index}/{first.ordinal} is not counted"
    blob.references = 0
    blob.size_bytes = upload.size_bytes
    blob.stored_bytes = upload.stored_bytes
    blob.sha256 = upload.sha256
    if len(upload.parts) > 1:
        blob.parts.extend(upload.parts)
    blob.upload_account_id, blob.upload_id = account_id, upload_id
    blob.free_ms = upload.expires_ms
    overlay.put(keys.free_body(blob.free_ms, first.index, first.ordinal), b"")
    overlay.edit_or_new(
        keys.blob_access(prefix, first.index, first.ordinal), record_pb2.BlobAccessRecord
    )


def disown(overlay: Overlay, upload: record_pb2.UploadRecord) -> None:
    """The row of a finished upload is removed: its blob goes by itself when it is due."""
    first = upload.parts[0]
    blob = overlay.edit(keys.blob(first.index, first.ordinal), record_pb2.BlobRecord)
    assert blob is not None, f"upload {first.index}/{first.ordinal} is not counted"
    _forget_upload(blob)


def _forget_upload(blob: record_pb2.BlobRecord) -> None:
    blob.ClearField("upload_account_id")
    blob.ClearField("upload_id")


# ---- bodies that go ------------------------------------------------------------------------------


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
    """Removes bodies that were free for their grace time: about 1,000, a blob with its parts."""
    rows = overlay.scan(keys.free_body(0), keys.free_body(context.now_ms + 1))
    found = [key for key, _ in islice(rows, rules.MESSAGES_PER_COMMAND_MAX + 1)]
    count, more = 0, False
    for key in found:
        if count >= rules.MESSAGES_PER_COMMAND_MAX:
            more = True
            break
        _, index, ordinal = keys.free_body_of(key)
        overlay.delete(key)
        count += _collect_one(overlay, index, ordinal)
    outcome = command_pb2.ChoreOutcome(count=count, more=more)
    return command_pb2.Reply(format=rules.FORMAT, chore=outcome)


def _collect_one(overlay: Overlay, index: int, ordinal: int) -> int:
    blob = overlay.read(keys.blob(index, ordinal), record_pb2.BlobRecord)
    if blob is not None:
        assert not blob.references, f"body {index}/{ordinal} is free and in use"
        if blob.upload_id:
            prefix = prefix_of(blob.upload_account_id)
            overlay.delete(keys.upload(prefix, blob.upload_id))
            overlay.delete(keys.blob_access(prefix, index, ordinal))
    bodies = {(index, ordinal): None}
    if blob is not None:
        bodies.update(((each.index, each.ordinal), None) for each in blob.parts)
    for place in bodies:
        overlay.delete(keys.blob(*place))
        overlay.delete_body(*place)
    return len(bodies)

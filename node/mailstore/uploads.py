"""Large messages on their way in: part after part, each a body in a log entry of its own.

An upload is named by its request_id within an account. Its row knows the parts that are there, so
it can go on at any leader; what is out of step is told where to go on. With the last part it is a
blob of all of them (blobs.compose), which stays for a while without a message. Nothing is copied.
"""

from __future__ import annotations

from itertools import islice

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.v1 import error_pb2

from . import blobs, chores, rules
from .account_change import account_not_found, prefix_of, state_of
from .context import Context
from .errors import Refused, bad_field
from .overlay import Overlay
from .shard_clock import request_id_reused


def begin(overlay: Overlay, context: Context, command: command_pb2.Command) -> command_pb2.Reply:
    """Where the upload goes on: at 0, where an earlier attempt got to, or nowhere: it is done."""
    asked = command.begin_upload
    prefix = prefix_of(asked.account_id)
    account = _account(overlay, prefix)
    _check_form(asked, command.request_id)
    key = keys.upload(prefix, command.request_id)
    upload = overlay.read(key, record_pb2.UploadRecord)
    if upload is not None:
        if (upload.size_bytes, upload.sha256) != (asked.size_bytes, asked.sha256):
            raise request_id_reused()
        return _reply(account, upload)
    if 0 < account.quota_bytes < account.used_bytes + asked.size_bytes:
        raise Refused(
            error_pb2.ERROR_REASON_OVER_QUOTA,
            "the account's quota would be passed",
            {"used_bytes": account.used_bytes, "max_bytes": account.quota_bytes},
        )
    rows = overlay.scan(keys.upload(prefix), keys.after(keys.upload(prefix)))
    if sum(1 for _ in islice(rows, rules.UPLOADS_PER_ACCOUNT_MAX)) == rules.UPLOADS_PER_ACCOUNT_MAX:
        raise Refused(
            error_pb2.ERROR_REASON_OVERLOADED, "the account has as many uploads open as it may"
        )
    upload = record_pb2.UploadRecord(
        format=rules.FORMAT,
        size_bytes=asked.size_bytes,
        sha256=asked.sha256,
        expires_ms=context.now_ms + rules.UPLOAD_WINDOW_MS,
    )
    overlay.put(key, upload)
    chores.enqueue(overlay, upload.expires_ms, chores.EXPIRE_UPLOADS, prefix)
    return _reply(account, upload)


def part(overlay: Overlay, context: Context, command: command_pb2.Command) -> command_pb2.Reply:
    """Takes what follows the parts that are there, and nothing else."""
    asked = command.upload_part
    prefix = prefix_of(asked.account_id)
    account = _account(overlay, prefix)
    body = blobs.new_body(context, asked.body)
    upload = overlay.edit(keys.upload(prefix, command.request_id), record_pb2.UploadRecord)
    stored_bytes = 0 if upload is None else upload.received_bytes
    if upload is None or asked.offset_bytes != stored_bytes:
        raise Refused(
            error_pb2.ERROR_REASON_UPLOAD_OFFSET_MISMATCH,
            f"the upload goes on at {stored_bytes}",
            {"offset_bytes": stored_bytes},
        )
    received_bytes = stored_bytes + body.size_bytes
    if not 0 < body.size_bytes <= rules.UPLOAD_PART_MAX_BYTES or received_bytes > upload.size_bytes:
        raise bad_field("body: larger than a part, or than what is missing")
    if body.size_bytes < rules.UPLOAD_PART_MIN_BYTES and received_bytes < upload.size_bytes:
        raise bad_field("body: smaller than a part, and not the last one")
    blobs.hold(overlay, body)
    upload.received_bytes = received_bytes
    upload.stored_bytes += body.stored_bytes
    upload.parts.add(
        index=body.log_index,
        ordinal=body.ordinal,
        size_bytes=body.size_bytes,
        stored_bytes=body.stored_bytes,
    )
    if received_bytes == upload.size_bytes:
        upload.expires_ms = context.now_ms + rules.UPLOAD_WINDOW_MS
        blobs.compose(overlay, asked.account_id, prefix, command.request_id, upload)
    return _reply(account, upload)


def drop(overlay: Overlay, context: Context, command: command_pb2.Command) -> command_pb2.Reply:
    """Frees the parts of an upload. One that is finished stays, and one that is not there is."""
    prefix = prefix_of(command.drop_upload.account_id)
    account = _account(overlay, prefix)
    key = keys.upload(prefix, command.request_id)
    upload = overlay.read(key, record_pb2.UploadRecord)
    if upload is not None and not _complete(upload):
        forget(overlay, key, upload, context.now_ms)
    return _reply(account, record_pb2.UploadRecord())


def expire(overlay: Overlay, prefix: bytes, due_ms: int, now_ms: int) -> bool:
    """Frees what was not finished by due_ms; whether there is more: never, they are few."""
    for key, value in _rows(overlay, prefix):
        upload = record_pb2.UploadRecord.FromString(value)
        if upload.expires_ms <= due_ms and not _complete(upload):
            forget(overlay, key, upload, now_ms)
    return False


def clear(overlay: Overlay, prefix: bytes, now_ms: int, left: int) -> int:
    """Of an account that was deleted: all its uploads, or as many as have `left` parts; what is
    left then.
    """
    for key, value in _rows(overlay, prefix):
        if left <= 0:
            break
        upload = record_pb2.UploadRecord.FromString(value)
        left -= max(1, len(upload.parts))
        forget(overlay, key, upload, now_ms)
    return left


def forget(overlay: Overlay, key: bytes, upload: record_pb2.UploadRecord, now_ms: int) -> None:
    """Removes the row of an upload, and frees its parts if it is not finished."""
    overlay.delete(key)
    if _complete(upload):
        blobs.disown(overlay, upload)
    else:
        for each in upload.parts:
            blobs.let_go(overlay, each.index, each.ordinal, now_ms)


def _complete(upload: record_pb2.UploadRecord) -> bool:
    return upload.received_bytes == upload.size_bytes


def _rows(overlay: Overlay, prefix: bytes) -> list[tuple[bytes, bytes]]:
    start = keys.upload(prefix)
    return list(overlay.scan(start, keys.after(start)))


def _account(overlay: Overlay, prefix: bytes) -> record_pb2.AccountRecord:
    # Not to be changed: an upload is no change of its account until a message refers to it.
    account = overlay.read(keys.account_record(prefix), record_pb2.AccountRecord)
    if account is None:
        raise account_not_found()
    return account


def _check_form(asked: command_pb2.BeginUpload, request_id: bytes) -> None:
    if not request_id:
        raise bad_field("request_id: an upload is named by it")
    if not asked.size_bytes:
        raise bad_field("size_bytes: must not be 0")
    if len(asked.sha256) != 32:
        raise bad_field("sha256: 32 bytes")
    if asked.size_bytes > rules.UPLOAD_MAX_BYTES:
        raise Refused(
            error_pb2.ERROR_REASON_MESSAGE_TOO_LARGE,
            "the upload is too large",
            {"size_bytes": asked.size_bytes, "max_bytes": rules.UPLOAD_MAX_BYTES},
        )


def _reply(account: record_pb2.AccountRecord, upload: record_pb2.UploadRecord) -> command_pb2.Reply:
    outcome = command_pb2.UploadOutcome(
        offset_bytes=upload.received_bytes, expires_ms=upload.expires_ms
    )
    if upload.parts and _complete(upload):
        first = upload.parts[0]
        outcome.blob.index, outcome.blob.ordinal = first.index, first.ordinal
    return command_pb2.Reply(format=rules.FORMAT, upload=outcome, state=state_of(account))

"""Errors: one class a reason, its code as the API says, and unchanged over the wire."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from mailraft.v1 import error_pb2
from mailraft.wire import errors

_CODES = {
    "UNAVAILABLE": "NO_LEADER NOT_LEADER QUORUM_UNAVAILABLE REPLICA_LAGGING STALE_ROUTE "
    "SHUTTING_DOWN COMMIT_UNKNOWN",
    "ABORTED": "STATE_MISMATCH ETAG_MISMATCH UID_VALIDITY_MISMATCH UPLOAD_OFFSET_MISMATCH "
    "EPOCH_MISMATCH",
    "OUT_OF_RANGE": "STATE_TOO_OLD",
    "RESOURCE_EXHAUSTED": "OVERLOADED OVER_QUOTA RATE_LIMITED DISK_FULL LIMIT_REACHED REPLY_FULL",
    "FAILED_PRECONDITION": "MAILBOX_NOT_EMPTY MAILBOX_HAS_CHILDREN LEVEL_NOT_ALLOWED "
    "REQUEST_ID_TOO_OLD NODE_REACHABLE ACCOUNT_NOT_EMPTY LAST_MEMBERSHIP NOT_ENOUGH_NODES "
    "JOB_CONFLICT JOB_FINISHED FEATURE_NOT_ENABLED",
    "INVALID_ARGUMENT": "BAD_FIELD REQUEST_ID_REUSED MESSAGE_TOO_LARGE BAD_PAGE_TOKEN "
    "FILTER_UNSUPPORTED CONTENT_MISMATCH",
    "NOT_FOUND": "ACCOUNT_NOT_FOUND MAILBOX_NOT_FOUND MESSAGE_NOT_FOUND BLOB_NOT_FOUND "
    "SHARD_NOT_FOUND REPLICA_NOT_FOUND NODE_NOT_FOUND JOB_NOT_FOUND",
    "ALREADY_EXISTS": "ACCOUNT_EXISTS MAILBOX_EXISTS MAILBOX_ROLE_EXISTS NODE_EXISTS",
    "PERMISSION_DENIED": "METHOD_NOT_ALLOWED ACCOUNT_NOT_ALLOWED",
    "UNAUTHENTICATED": "CREDENTIALS_MISSING CREDENTIALS_INVALID",
    "DATA_LOSS": "BLOB_CORRUPT",
    "DEADLINE_EXCEEDED": "DEADLINE_EXCEEDED",
    "UNIMPLEMENTED": "NOT_IMPLEMENTED",
    "INTERNAL": "INTERNAL_ERROR",
}
TABLE = [(reason, code) for code, reasons in _CODES.items() for reason in reasons.split()]
RETRIED = {
    *_CODES["UNAVAILABLE"].split(),
    *("OVERLOADED", "RATE_LIMITED", "DISK_FULL", "REPLY_FULL", "DEADLINE_EXCEEDED"),
}
ODD_NAMES = {"INTERNAL_ERROR": "InternalError", "NOT_IMPLEMENTED": "UnimplementedError"}


def classes() -> list[type[errors.MailraftError]]:
    """Every class with a reason."""
    found = [each for each in vars(errors).values() if isinstance(each, type)]
    return [each for each in found if issubclass(each, errors.MailraftError) and each.reason]


def test_every_reason_has_one_class_and_a_line_in_the_table() -> None:
    """A reason that is added to error.proto is missed here until it has both."""
    numbers = sorted(each.reason for each in classes())
    assert numbers == sorted(set(error_pb2.ErrorReason.values()) - {0})
    assert len(TABLE) == len(numbers)


@pytest.mark.parametrize(("reason", "code"), TABLE)
def test_a_reason_has_its_class_and_code(reason: str, code: str) -> None:
    """The class is the reason in camel case; its base is of the code."""
    error = errors.by_reason(error_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}"))
    camel = "".join(word.capitalize() for word in reason.split("_")) + "Error"
    assert type(error) is getattr(errors, ODD_NAMES.get(reason, camel))
    assert error.code.name == code
    assert error.name == reason
    assert error.retryable == (reason in RETRIED)
    assert error.message


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: str(kind.__name__))
def test_a_status_brings_the_same_error_back(kind: type[errors.MailraftError]) -> None:
    """Reason, message, detail and delay survive the wire."""
    detail = kind.detail_type() if kind.detail_type else None
    error = kind("why", detail=detail, metadata={"max": "3"}, retry_after_ms=77)
    again = errors.from_status(error.to_status())
    assert type(again) is kind
    assert (again.message, again.detail) == ("why", detail)
    assert again.metadata == {"max": "3"}
    assert again.retry_after_ms == (77 if kind.retryable else None)
    trailers = dict(error.trailing_metadata())
    assert trailers.get(errors.PUSHBACK_KEY) == ("77" if kind.retryable else None)


def test_bad_fields_are_named() -> None:
    """As google.rpc.BadRequest."""
    error = errors.BadFieldError(fields={"account_id": "empty", "page_size": "negative"})
    details = error.to_status().details
    assert any(each.TypeName() == "google.rpc.BadRequest" for each in details)
    assert errors.from_status(error.to_status()).fields == error.fields


def test_numbers_of_a_refusal_fill_the_detail() -> None:
    """By the names of the detail's fields; the rest stays in the metadata."""
    refused = errors.by_reason(
        error_pb2.ERROR_REASON_OVER_QUOTA, "full", {"used_bytes": 5, "max_bytes": "9", "x": 1}
    )
    assert refused.detail == error_pb2.OverQuota(used_bytes=5, max_bytes=9)
    assert refused.metadata["x"] == "1"
    limit = errors.by_reason(error_pb2.ERROR_REASON_LIMIT_REACHED, "", {"max": 3})
    assert limit.detail is None
    assert limit.metadata == {"max": "3"}


def test_a_reason_of_a_newer_server_has_the_class_of_its_code() -> None:
    """The message stays, and so does the Status when it is passed on."""
    info = error_details_pb2.ErrorInfo(domain="mailraft", reason="MOON_NOT_FOUND")
    status = status_pb2.Status(code=5, message="no moon")
    packed = any_pb2.Any()
    packed.Pack(info)
    status.details.append(packed)
    error = errors.from_status(status)
    assert type(error) is errors.NotFoundError
    assert error.message == "no moon"
    assert error.to_status() == status
    assert type(errors.by_reason(9999, "x", code=8)) is errors.ResourceExhaustedError
    assert errors.by_reason(9999, "x", code=1).code is grpc.StatusCode.CANCELLED


async def test_an_error_crosses_a_grpc_call() -> None:
    """abort() at one end, from_rpc_error() at the other, sync and aio alike."""
    sent = errors.NotLeaderError(detail=error_pb2.NotLeader(shard=3, term=8))

    async def handler(_: bytes, context: Any) -> bytes:
        await errors.abort(context, sent)

    server = grpc.aio.server()
    calls = {"Call": grpc.unary_unary_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("x.Y", calls),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.unary_unary("/x.Y/Call", bytes, bytes)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
    await server.stop(None)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    error = errors.from_rpc_error(caught.value)
    assert isinstance(error, errors.NotLeaderError)
    assert error.detail == sent.detail


async def test_what_grpc_says_itself_has_no_reason() -> None:
    """A refused connection is UnavailableError and nothing more special."""
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        call: Any = channel.unary_unary("/x.Y/Call", bytes, bytes)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"")
    error = errors.from_rpc_error(caught.value)
    assert type(error) is errors.UnavailableError
    assert not error.reason


def test_importing_errors_needs_no_more_than_the_base_install() -> None:
    """No RocksDB, no Raft, no settings library."""
    code = (
        "import sys, mailraft.wire.errors, mailraft.router.dispatch;"
        "heavy = {'rocksdict', 'pysyncobj', 'pydantic', 'grpc_health.v1', 'structlog'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

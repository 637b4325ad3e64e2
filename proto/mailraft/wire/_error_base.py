"""What every error of mailraft.wire.errors can do: to and from google.rpc.Status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from mailraft.v1 import error_pb2

DOMAIN = "mailraft"
STATUS_DETAILS_KEY = "grpc-status-details-bin"
PUSHBACK_KEY = "grpc-retry-pushback-ms"
# Trailers share 8 KiB with everything else that a call says at its end.
MESSAGE_MAX_CHARS = 1_000
FIELDS_MAX = 20
METADATA_MAX = 20
_PREFIX = "ERROR_REASON_"
_NUMBERS = dict(error_pb2.ErrorReason.items())
_CODES = {code.value[0]: code for code in grpc.StatusCode}

_by_reason: dict[int, type[MailraftError]] = {}
_by_code: dict[grpc.StatusCode, type[MailraftError]] = {}


class MailraftError(Exception):
    """How mailraft says no: one subclass a reason, below one a gRPC code.

    message: for a human. detail: the message of error.proto that belongs to the reason.
    fields: BAD_FIELD's violations, path to what is wrong. metadata: of the ErrorInfo.
    retry_after_ms: when retrying makes sense; None where it never does.
    """

    reason: error_pb2.ErrorReason.ValueType = error_pb2.ERROR_REASON_UNSPECIFIED
    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    retryable: bool = False
    retry_after_default_ms: int = 0
    detail_type: type[Message] | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "reason" in cls.__dict__:
            taken = _by_reason.setdefault(cls.reason, cls)
            assert taken is cls, f"{cls.__name__} and {taken.__name__} have one reason"
        elif "code" in cls.__dict__:
            _by_code[cls.code] = cls

    def __init__(
        self,
        message: str = "",
        *,
        detail: Message | None = None,
        fields: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or type(self).__name__).partition("\n")[0]
        super().__init__(self.message)
        self.detail = detail
        self.fields = dict(fields or {})
        self.metadata = dict(metadata or {})
        self.received: status_pb2.Status | None = None  # as another process told it
        self.retry_after_ms: int | None = None
        if self.retryable:
            default = self.retry_after_default_ms
            self.retry_after_ms = default if retry_after_ms is None else retry_after_ms

    @property
    def name(self) -> str:
        """The reason as ErrorInfo spells it, for example OVER_QUOTA."""
        return error_pb2.ErrorReason.Name(self.reason).removeprefix(_PREFIX)

    def to_status(self) -> status_pb2.Status:
        """The google.rpc.Status of this error with its details; what was received, as it came."""
        if self.received is not None:
            return self.received
        status = status_pb2.Status(
            code=self.code.value[0], message=self.message[:MESSAGE_MAX_CHARS]
        )
        metadata = dict(list(self.metadata.items())[:METADATA_MAX])
        info = error_details_pb2.ErrorInfo(domain=DOMAIN, reason=self.name, metadata=metadata)
        details: list[Message] = [info]
        if self.detail is not None:
            details.append(self.detail)
        if self.fields:
            details.append(_bad_request(self.fields))
        if self.retry_after_ms is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(self.retry_after_ms)
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return status

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        """The trailers of a call that ends with this error."""
        details = (STATUS_DETAILS_KEY, self.to_status().SerializeToString())
        if self.retry_after_ms is None:
            return (details,)
        return (details, (PUSHBACK_KEY, str(self.retry_after_ms)))


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: MailraftError) -> NoReturn:
    """End a grpc.aio call with this error."""
    # Frames that it came through hold the request, and it: a cycle, which lasts until garbage is
    # collected.
    error.__traceback__ = error.__context__ = None
    message = error.message[:MESSAGE_MAX_CHARS]
    await context.abort(error.code, message, error.trailing_metadata())


def by_reason(
    number: int,
    message: str = "",
    metadata: Mapping[str, object] | None = None,
    *,
    code: int = 0,
    retry_after_ms: int | None = None,
) -> MailraftError:
    """The error of a reply that carries a reason: RecipientResult, WatchEnd, the log's Refusal.

    What metadata names as the reason's detail does goes into the detail. For a reason that this
    version does not know, `code` (a google.rpc.Code) picks the class.
    """
    kind = _by_reason.get(number)
    if kind is None:
        return _of_code(_CODES.get(code, grpc.StatusCode.UNKNOWN), message, retry_after_ms)
    texts = {name: str(value) for name, value in (metadata or {}).items()}
    return kind(
        message,
        detail=_detail_from(kind, metadata or {}),
        metadata=texts,
        retry_after_ms=retry_after_ms,
    )


def from_status(status: status_pb2.Status) -> MailraftError:
    """The error that a Status tells; without a known reason the class of its code."""
    info, fields, retry_after_ms = _standard_details(status.details)
    kind = None
    if info is not None and info.domain == DOMAIN:
        kind = _by_reason.get(_NUMBERS.get(_PREFIX + info.reason, -1))
    if kind is None:
        code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
        error = _of_code(code, status.message, retry_after_ms)
    else:
        error = kind(
            status.message,
            detail=_typed_detail(kind, status.details),
            fields=fields,
            metadata=info.metadata if info is not None else None,
            retry_after_ms=retry_after_ms,
        )
    error.received = status
    return error


def from_rpc_error(error: grpc.RpcError) -> MailraftError:
    """The error that a failed call tells, of grpc or grpc.aio.

    What gRPC itself says (connection lost, deadline passed) has its code's class and no reason.
    """
    call: Any = error
    for key, value in call.trailing_metadata() or ():
        if key == STATUS_DETAILS_KEY:
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    return _of_code(call.code() or grpc.StatusCode.UNKNOWN, call.details() or "")


def _of_code(
    code: grpc.StatusCode, message: str, retry_after_ms: int | None = None
) -> MailraftError:
    error = _by_code.get(code, MailraftError)(message, retry_after_ms=retry_after_ms)
    error.code = code
    return error


def _bad_request(fields: Mapping[str, str]) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=field, description=what)
            for field, what in list(fields.items())[:FIELDS_MAX]
        ]
    )


def _standard_details(
    details: Iterable[any_pb2.Any],
) -> tuple[error_details_pb2.ErrorInfo | None, dict[str, str], int | None]:
    info: error_details_pb2.ErrorInfo | None = None
    fields: dict[str, str] = {}
    retry_after_ms: int | None = None
    for packed in details:
        if packed.TypeName() == error_details_pb2.ErrorInfo.DESCRIPTOR.full_name:
            info = error_details_pb2.ErrorInfo.FromString(packed.value)
        elif packed.TypeName() == error_details_pb2.BadRequest.DESCRIPTOR.full_name:
            bad = error_details_pb2.BadRequest.FromString(packed.value)
            fields = {each.field: each.description for each in bad.field_violations}
        elif packed.TypeName() == error_details_pb2.RetryInfo.DESCRIPTOR.full_name:
            retry = error_details_pb2.RetryInfo.FromString(packed.value)
            retry_after_ms = retry.retry_delay.ToMilliseconds()
    return info, fields, retry_after_ms


def _typed_detail(kind: type[MailraftError], details: Iterable[any_pb2.Any]) -> Message | None:
    for packed in details:
        if (
            kind.detail_type is not None
            and packed.TypeName() == kind.detail_type.DESCRIPTOR.full_name
        ):
            return kind.detail_type.FromString(packed.value)
    return None


def _detail_from(kind: type[MailraftError], values: Mapping[str, object]) -> Message | None:
    if kind.detail_type is None:
        return None
    detail = kind.detail_type()
    filled = False
    for field in kind.detail_type.DESCRIPTOR.fields:
        if field.name in values and not field.is_repeated:
            text = str(values[field.name])
            is_text = field.cpp_type == field.CPPTYPE_STRING
            setattr(detail, field.name, text if is_text else int(text))
            filled = True
    return detail if filled else None

"""What a failed try says of its request: was it sent, may it have been done. Pure."""

from __future__ import annotations

import grpc

from mailraft.wire import errors

# How gRPC names a broken connection under other codes than UNAVAILABLE; the last one is a write to
# a stream that the other end has closed.
_BROKEN_CONNECTION = ("Stream removed", "RST_STREAM", "Internal error from Core")


class UnreachableError(errors.UnavailableError):
    """No connection: the request was not sent."""


class LostError(errors.UnavailableError):
    """The connection broke, or no answer came in time: what was done is not known."""


class NoAnswerError(LostError):
    """No answer came in the time of one try."""


def failure(address: str, told: errors.MailraftError) -> errors.MailraftError:
    """What a failed call says: the server's own error, or UnreachableError or LostError."""
    if told.reason:
        return told
    message = f"{address}: {told.message}"
    # "failed to connect" is gRPC's own word for a request that stayed here.
    if told.code is grpc.StatusCode.UNAVAILABLE and "failed to connect" in told.message:
        return UnreachableError(message)
    if told.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return NoAnswerError(message)
    broken = told.code in {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
    # CANCELLED comes from a server that stops: what is cancelled here never gets that far.
    if told.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED} or (
        broken and any(words in told.message for words in _BROKEN_CONNECTION)
    ):
        return LostError(message)
    return told

"""How the state machine says no."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import Message

from mailraft.internal.v1 import command_pb2
from mailraft.v1 import error_pb2

REPLY_MAX_BYTES = 3 * 1024 * 1024  # of one command about messages that were there before


class UnknownFormatError(Exception):
    """The log holds what this version does not know: the replica stops itself, it never guesses."""


class Refused(Exception):
    """A command or query that the store declines, with the reason of the public API.

    `metadata` has numbers for the error's details, named as the public detail's fields.
    """

    def __init__(
        self,
        reason: error_pb2.ErrorReason.ValueType,
        message: str,
        metadata: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})

    def to_refusal(self) -> command_pb2.Refusal:
        refusal = command_pb2.Refusal(reason=self.reason, message=self.message)
        for name in sorted(self.metadata):
            refusal.metadata.add(key=name, value=str(self.metadata[name]))
        return refusal


def bad_field(message: str) -> Refused:
    return Refused(error_pb2.ERROR_REASON_BAD_FIELD, message)


def limit_reached(name: str, maximum: int) -> Refused:
    return Refused(
        error_pb2.ERROR_REASON_LIMIT_REACHED, f"at most {maximum} {name}", {"max": maximum}
    )


def mailbox_not_found(message: str) -> Refused:
    return Refused(error_pb2.ERROR_REASON_MAILBOX_NOT_FOUND, message)


def check_reply(outcome: Message) -> None:
    """Refuses what would be too long an answer. Only keywords without end get there."""
    if outcome.ByteSize() > REPLY_MAX_BYTES:
        raise limit_reached("bytes of an answer: select fewer messages", REPLY_MAX_BYTES)

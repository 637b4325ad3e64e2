"""Errors that only a client can tell; those of the server are in mailraft.wire.errors."""

from __future__ import annotations

from typing import Any

from mailraft.wire import errors


class IntegrityError(errors.DataLossError):
    """The bytes that came are not the bytes that were stored: they were damaged on the way."""


class LevelNotMetError(errors.MailraftError):
    """The write is committed, but not confirmed by all the replicas that its `ack` asked for.

    Do not send it again under a new request_id. `result` is what the call would have returned.
    """

    def __init__(self, message: str = "", *, result: Any = None) -> None:
        super().__init__(message)
        self.result = result

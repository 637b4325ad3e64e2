"""Bugs, as their callers and the log are told of them."""

from __future__ import annotations

import logging
import secrets
import traceback

from mailraft.wire import errors

log = logging.getLogger(__name__)


def told(error: BaseException, what: str) -> errors.InternalError:
    """Log an exception that nobody expected; its caller gets the number that the line has.

    Where it happened is logged, without the exception's text: that may quote what is in a mail.
    """
    incident = secrets.token_hex(8)
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("incident %s: %s failed with %s\n%s", incident, what, type(error).__name__, where)
    return errors.InternalError(
        f"a bug of mailraft; incident {incident} in the log", metadata={"incident": incident}
    )

"""Logging of a process: structlog for ours, and the same form for what libraries log."""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import TextIO

import structlog

from mailraft.cluster.levels import LogLevel
from mailraft.cluster.settings import LogFormat, Room
from mailraft.wire import observed

# Without the values of variables, which structlog would add: they may be somebody's mail.
_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def configure(
    level: LogLevel,
    log_format: LogFormat,
    *,
    levels: Mapping[Room, LogLevel] | None = None,
    stream: TextIO | None = None,
    account_key: bytes | None = None,
    context: Mapping[str, str | int] = MappingProxyType({}),
) -> None:
    """Set up logging once at the start of a process.

    Args:
        level: the least that is logged.
        log_format: auto is readable lines on a terminal and one JSON object a line elsewhere.
        levels: of rooms that log more or less than `level`.
        stream: default: standard error.
        account_key: of the hash that stands for an account; default: a new one.
        context: put into every line (node, shard, ...).
    """
    stream = sys.stderr if stream is None else stream
    on_terminal = log_format == "console" or (log_format == "auto" and stream.isatty())
    before: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _CallIds(account_key or secrets.token_bytes(32)),
        structlog.stdlib.ExtraAdder(),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    after: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty())]
        if on_terminal
        else [_TRACEBACKS, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *before,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *after],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for room, its_level in (levels or {}).items():
        logging.getLogger(f"mailraft.{room}").setLevel(its_level.upper())
    structlog.contextvars.bind_contextvars(**context)


class _CallIds:
    """What is logged while a call is served says which one that was."""

    def __init__(self, account_key: bytes) -> None:
        self._account_key = account_key

    def __call__(
        self, _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        call = observed.current()
        if call is None:
            return event
        account = call.account_id and observed.pseudonym(call.account_id, self._account_key)
        ids = {"request_id": call.request_id, "trace_id": call.trace_id, "account": account}
        event.setdefault("method", call.method)
        for name, value in ids.items():
            if value:
                event.setdefault(name, value)
        return event

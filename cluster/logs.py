"""Logging of a process: structlog for ours, and the same form for what libraries log."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

from mailraft.cluster.levels import LogLevel
from mailraft.cluster.settings import LogFormat

# Without the values of variables, which structlog would add: they may be somebody's mail.
_TRACEBACKS = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def configure(
    level: LogLevel, log_format: LogFormat, *, stream: TextIO | None = None, **context: object
) -> None:
    """Set up logging once at the start of a process.

    Args:
        level: the least that is logged.
        log_format: auto is readable lines on a terminal and one JSON object a line elsewhere.
        stream: default: standard error.
        context: put into every line (node, shard, ...).
    """
    stream = sys.stderr if stream is None else stream
    on_terminal = log_format == "console" or (log_format == "auto" and stream.isatty())
    before: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
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
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
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
    structlog.contextvars.bind_contextvars(**context)

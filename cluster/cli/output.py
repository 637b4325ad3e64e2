"""How commands talk: a table or JSON on standard output, an error as one line on standard error."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from mailraft.cluster.errors import ClusterError, ExitCode
from mailraft.wire import errors


class Output(enum.StrEnum):
    """As what an answer is printed."""

    TABLE = "table"
    JSON = "json"


# Options that many commands have: docs/cli.md tells them once.
COMMON = "Common options"
OutputOption = Annotated[
    Output,
    typer.Option("-o", "--output", help="How to print the answer.", rich_help_panel=COMMON),
]

_HINTS: tuple[tuple[type[errors.MailraftError], str], ...] = (
    (errors.AccountNotFoundError, "create it: mailraft account create ACCOUNT"),
    (errors.MessageNotFoundError, "list what is there: mailraft mail list ACCOUNT"),
    (errors.MailboxNotFoundError, "name a mailbox by its id, or INBOX"),
    (errors.JobConflictError, "see what goes on: mailraft job list --open"),
    (errors.NoLeaderError, "an election runs: try again in a few seconds"),
    (errors.CommitUnknownError, "it may have been done: look before you repeat it"),
    (errors.UnavailableError, "is the cluster running? see: mailraft cluster status"),
    (errors.TimedOutError, "try again, or see: mailraft cluster status"),
    (errors.UnauthenticatedError, "give the folder of this cluster's certificates with --certs"),
)


def emit_json(value: object) -> None:
    """One JSON document."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))


def emit_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as they need to be; numbers to the right. The last column is not padded."""
    lines = [list(headers), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    numeric = [
        bool(rows) and all(isinstance(row[c], int) for row in rows) for c in range(len(headers))
    ]
    for line in lines:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())


def printable(text: str) -> str:
    """Mail is written by strangers: nothing in it may steer the terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


@contextmanager
def guarded(output: Output) -> Iterator[None]:
    """Turns an expected failure into its line and exit status. Others are bugs, and look so."""
    try:
        yield
    except ClusterError as error:
        fail(output, error.reason, error.message, error.hint, error.exit_code)
    except errors.MailraftError as error:
        fail(output, error.name, error.message, _hint(error), _exit_code(error))


def fail(output: Output, reason: str, message: str, hint: str, code: ExitCode) -> None:
    """Print an error and leave with its exit status."""
    if output is Output.JSON:
        told = {"reason": reason, "message": message, "hint": hint}
        typer.echo(json.dumps({"error": told}, ensure_ascii=False), err=True)
    else:
        line = f"error: {message} ({reason})" + (f": {hint}" if hint else "")
        typer.echo(line, err=True)
    sys.stdout.flush()
    raise typer.Exit(code)


def _hint(error: errors.MailraftError) -> str:
    return next((hint for kind, hint in _HINTS if isinstance(error, kind)), "")


def _exit_code(error: errors.MailraftError) -> ExitCode:
    if isinstance(error, errors.NotFoundError):
        return ExitCode.NOT_FOUND
    if isinstance(error, errors.UnavailableError | errors.TimedOutError):
        return ExitCode.UNAVAILABLE
    if isinstance(error, errors.InvalidArgumentError):
        return ExitCode.USAGE
    return ExitCode.FAILED

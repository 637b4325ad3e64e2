"""A progress bar on standard error, where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    def advance(self, done: int) -> None:
        """So much more is done."""


class _Silent:
    def advance(self, done: int) -> None:
        pass


@contextmanager
def progress(what: str, total: int, *, in_bytes: bool = True) -> Iterator[Progress]:
    """`total` may be an estimate; the bar ends with the block."""
    if not sys.stderr.isatty():
        yield _Silent()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    counted = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), counted, TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)

        class Shown:
            def advance(self, done: int) -> None:
                bar.advance(task, done)

        yield Shown()

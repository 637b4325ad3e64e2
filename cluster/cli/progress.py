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


class Steps(Protocol):
    def at(self, done: int, total: int, activity: str) -> None:
        """Where it stands now; total 0: not known yet."""


class _Lines:
    """A line for each change: what logs of scripts need."""

    def __init__(self, what: str) -> None:
        self._what, self._told = what, ""

    def at(self, done: int, total: int, activity: str) -> None:
        line = f"{self._what}: {done}/{total}" if total else self._what
        line += f" {activity}" if activity else ""
        if line != self._told:
            self._told = line
            print(line, file=sys.stderr, flush=True)


@contextmanager
def steps(what: str) -> Iterator[Steps]:
    """A bar that is told where it stands, gone at the end; lines without a terminal."""
    if not sys.stderr.isatty():
        yield _Lines(what)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        class Shown:
            def at(self, done: int, total: int, activity: str) -> None:
                described = f"{what}: {activity}" if activity else what
                bar.update(task, description=described, completed=done, total=total or None)

        yield Shown()

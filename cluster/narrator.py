"""What a command that takes a while tells meanwhile: named steps with their durations, progress.

On a terminal a spinner or a bar shows the step that runs; elsewhere there are only plain lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

# Without a terminal: a line at each such part of the work.
PLAIN_PARTS = 5


class Narrator:
    """Tells of one run. Lines are never wrapped, so that they can be copied and searched."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, markup=False, soft_wrap=True)

    def line(self, text: str = "") -> None:
        self.console.print(text)

    def note(self, text: str) -> None:
        """Something that happens within a step."""
        self.console.print(f"         {text}")

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step: its name and duration are told when it is done, also when it fails."""
        began = time.monotonic()
        done = False
        try:
            if self.console.is_terminal:
                with self.console.status(name):
                    yield
            else:
                yield
            done = True
        finally:
            self._finished(name, began, done=done)

    @contextmanager
    def counted(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A step with a count: call what it gives with how much is done."""
        began = time.monotonic()
        done = False
        try:
            if self.console.is_terminal:
                with self._bar() as bar:
                    task = bar.add_task(name, total=total)
                    yield lambda count: bar.update(task, completed=count)
            else:
                yield self._plain(name, total)
            done = True
        finally:
            self._finished(name, began, done=done)

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )

    def _plain(self, name: str, total: int) -> Callable[[int], None]:
        told = 0

        def progress(count: int) -> None:
            nonlocal told
            part = count * PLAIN_PARTS // max(total, 1)
            if part > told and count < total:
                told = part
                self.note(f"{name}: {count} of {total}")

        return progress

    def _finished(self, name: str, began: float, *, done: bool) -> None:
        took = f"{time.monotonic() - began:7.2f}s"
        self.console.print(f"{took} {name}" + ("" if done else ": stopped here"))

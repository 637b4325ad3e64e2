"""What a peer is: servers that are started and measured, and a client with works."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

MAILBOXES = 64
BATCH = 100
# Of a page, and of the mailbox that pages are read from.
PAGE = 50
# Recipients of one message.
FAN_OUT = 20

Address = Mapping[str, Any]  # as JSON carries it


@dataclass(frozen=True, slots=True)
class Work:
    """What `tasks` tasks do, each one call after the other.

    call: given the number of the task; answers how many units it did (mails, mostly).
    """

    tasks: int
    call: Callable[[int], Awaitable[int]]


class Client(Protocol):
    """In the worker process: one peer's client. `works` by the names of rows; a call that ends in
    one of `errors` failed, which is counted.
    """

    works: Mapping[str, Work]
    errors: tuple[type[Exception], ...]

    async def open(self, address: Address, large_mailbox: int) -> None:
        """Connect, and fill what reads need: each mail once, and a mailbox of that many."""

    async def close(self) -> None: ...


class Server(Protocol):
    """In the measuring process: the servers of one peer, children of this process."""

    name: str
    title: str
    version_command: Sequence[str]

    def missing(self) -> str:
        """What is not installed; empty: it can run."""

    async def start(self, folder: Path) -> None:
        """In a new folder; returns when it serves."""

    async def stop(self) -> None: ...

    async def settle(self) -> None:
        """Have it do now what it put off, so that it is not counted as another's."""

    @property
    def address(self) -> Address: ...

    def pids(self) -> Sequence[int]:
        """Of its processes; children of these count, too."""

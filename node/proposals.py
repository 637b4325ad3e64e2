"""Commands on their way into the log: they wait, then go in as many a time as one entry takes."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from mailraft.node.interfaces import Proposal
from mailraft.node.timing import EntryTimes
from mailraft.wire import errors

# Proposals that wait for the next entry; past it callers are told to come back (OVERLOADED).
QUEUE_COMMANDS_MAX = 8_192
QUEUE_BYTES_MAX = 64 * 1024 * 1024
# One entry: what arrives during one flush, up to this (docs/consensus.md, order of a turn).
ENTRY_COMMANDS_MAX = 256
ENTRY_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Committed:
    """A command's answer, and where in the log it stands."""

    reply: object
    index: int
    times: EntryTimes = field(default_factory=EntryTimes)


@dataclass(slots=True)
class Waiting:
    """A command, who waits for its answer, and since when."""

    proposal: Proposal
    done: asyncio.Future[Committed]
    since_s: float
    on_own_disk: asyncio.Future[bool] | None = None  # whoever waits for no more than that
    trace: str = ""  # a traceparent, where its call is traced

    def fail(self, error: errors.MailraftError) -> None:
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True)
class Placed:
    """Commands that have a place in the log together, as one entry."""

    term: int
    token: int
    waiters: list[Waiting]
    times: EntryTimes


class ProposalQueue:
    """Bounded, first in, first out. Pure bookkeeping."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, waiting: Waiting) -> bool:
        """False: there is no room."""
        size_bytes = waiting.proposal.size_bytes
        if len(self) >= QUEUE_COMMANDS_MAX or self._bytes + size_bytes > QUEUE_BYTES_MAX:
            return False
        self._waiting.append(waiting)
        self._bytes += size_bytes
        return True

    def take(self) -> list[Waiting]:
        """As many as one entry takes."""
        taken: list[Waiting] = []
        size_bytes = 0
        while self._waiting and len(taken) < ENTRY_COMMANDS_MAX:
            size_bytes += self._waiting[0].proposal.size_bytes
            if taken and size_bytes > ENTRY_BYTES_MAX:
                break
            waiting = self._waiting.popleft()
            self._bytes -= waiting.proposal.size_bytes
            if not waiting.done.done():  # else its caller gave up: never proposed, nothing to undo
                taken.append(waiting)
        return taken

    def fail_all(self, error: errors.MailraftError) -> None:
        while self._waiting:
            self._waiting.popleft().fail(error)
        self._bytes = 0

"""Reads that wait for a read index, and since when a replica is known to have been current.

An index that was asked for at a moment t holds everything committed before t (Raft thesis section
6.4). So once it is applied, reads that came before t are linearizable, and until the next one the
data is at most as old as the time since t. One clock is read, the node's own.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mailraft.wire import errors

# Questions that are open; reads that come meanwhile share the next.
IN_FLIGHT_MAX = 2


@dataclass(frozen=True, slots=True)
class _Question:
    asked_s: float
    readers: list[asyncio.Future[None]]


class ReadIndexes:
    """Of one replica. Pure bookkeeping; `applied` is called with the index applied by then."""

    def __init__(self) -> None:
        self.current_s = float("-inf")  # everything committed before then is applied here
        self._readers: list[asyncio.Future[None]] = []  # no index asked for yet
        self._asked: dict[int, _Question] = {}  # by token, no index known yet
        self._known: list[tuple[int, _Question]] = []  # not applied yet

    @property
    def waiting(self) -> bool:
        """Whether somebody waits for a question to be asked."""
        return bool(self._readers)

    @property
    def open(self) -> bool:
        return bool(self._readers or self._asked or self._known)

    def add(self) -> asyncio.Future[None]:
        """Done once everything committed before now is applied here."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._readers.append(done)
        return done

    def ask(self, token: int, now_s: float) -> bool:
        """Whether a question is to be asked, under this token, for all that wait."""
        self._readers = [done for done in self._readers if not done.done()]
        if not self._readers or len(self._asked) >= IN_FLIGHT_MAX:
            return False
        self._asked[token] = _Question(now_s, self._readers)
        self._readers = []
        return True

    def answered(self, token: int, index: int, applied_index: int) -> None:
        """Once `index` is applied, the reads of a token may see the state."""
        question = self._asked.pop(token, None)
        if question is not None:  # else it stopped in this very turn
            self._known.append((index, question))
        self.applied(applied_index)

    def refused(self, token: int, error: errors.MailraftError) -> None:
        """The callers may ask again."""
        question = self._asked.pop(token, None)
        if question is not None:
            _fail(question.readers, error)

    def applied(self, applied_index: int) -> None:
        known, self._known = self._known, []
        for index, question in known:
            if index > applied_index:
                self._known.append((index, question))
                continue
            self.current_s = max(self.current_s, question.asked_s)
            for done in question.readers:
                if not done.done():
                    done.set_result(None)

    def stop(self, error: errors.MailraftError) -> None:
        """Answer everybody who waits."""
        questions = [*self._asked.values(), *(question for _, question in self._known)]
        for readers in (self._readers, *(question.readers for question in questions)):
            _fail(readers, error)
        self._readers, self._asked, self._known = [], {}, []


def _fail(readers: list[asyncio.Future[None]], error: errors.MailraftError) -> None:
    for done in readers:
        if not done.done():
            done.set_exception(error)

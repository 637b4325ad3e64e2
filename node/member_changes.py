"""Changes of a group's members that somebody waits for. Pure bookkeeping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mailraft.wire import errors


class MemberChanges:
    """Of one replica. Tokens are negative, so that one is known for a change by itself."""

    def __init__(self) -> None:
        self._open: dict[int, asyncio.Future[int]] = {}
        self._placed: dict[int, tuple[int, int]] = {}  # index -> term, token

    def __bool__(self) -> bool:
        return bool(self._open)

    def begin(self, token: int) -> asyncio.Future[int]:
        """Done with the index of the change, once it is committed."""
        done = self._open[token] = asyncio.get_running_loop().create_future()
        return done

    def forget(self, token: int) -> None:
        """Nobody waits for it any more."""
        self._open.pop(token, None)

    def placed(self, token: int, index: int, term: int) -> None:
        self._placed[index] = (term, token)

    def applied(self, index: int, term: int, lost: Callable[[], errors.MailraftError]) -> None:
        """The entry at `index` is of this term: the change that had that place is done, or lost."""
        placed_term, token = self._placed.pop(index, (0, 0))
        done = self._open.pop(token, None)
        if done is None or done.done():
            return
        if placed_term == term:
            done.set_result(index)
        else:
            done.set_exception(lost())

    def end(self, token: int, error: errors.MailraftError) -> None:
        done = self._open.pop(token, None)
        if done is not None and not done.done():
            done.set_exception(error)

    def stop(self, error: errors.MailraftError) -> None:
        for token in tuple(self._open):
            self.end(token, error)

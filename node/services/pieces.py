"""Bytes that lie in several pieces, read with few of them in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final, Self

# In memory: one is read on from, the next one looked into.
_KEPT_MAX: Final = 2
_CR, _LF = b"\r\n"


class Pieces:
    """Places count from the first byte of all; a range ends before `end`, as everywhere."""

    def __init__(self, sizes_bytes: Sequence[int], opened: Callable[[int], bytes]) -> None:
        """opened: the bytes of a piece by its number, again whenever they are wanted."""
        self._starts = list(accumulate(sizes_bytes, initial=0))
        self._opened = opened
        self._kept: dict[int, bytes] = {}  # the last used is last

    @classmethod
    def of(cls, raw: bytes) -> Self:
        return cls([len(raw)], lambda _: raw)

    def __len__(self) -> int:
        return self._starts[-1]

    def byte(self, at: int) -> int:
        number = bisect_right(self._starts, at) - 1
        return self._piece(number)[at - self._starts[number]]

    def slice(self, begin: int, end: int) -> bytes:
        return b"".join(piece[first:last] for _, piece, first, last in self._runs(begin, end))

    def find(self, wanted: bytes, begin: int, end: int) -> int:
        """As bytes.find: the first place, or -1."""
        for start, piece, first, last in self._runs(begin, end):
            at = piece.find(wanted, first, last)
            if at >= 0:
                return start + at
            edge = start + last
            if edge < end:  # it may lie across
                low = max(begin, edge - len(wanted) + 1)
                at = self.slice(low, min(end, edge + len(wanted) - 1)).find(wanted)
                if at >= 0:
                    return low + at
        return -1

    def lines(self, begin: int, end: int) -> int:
        """Lines that end with CRLF, LF, CR or at the end."""
        found, before = 0, _LF
        for _, piece, first, last in self._runs(begin, end):
            found += piece.count(b"\n", first, last) + piece.count(b"\r", first, last)
            found -= piece.count(b"\r\n", first, last)
            found -= before == _CR and piece[first] == _LF
            before = piece[last - 1]
        return found + (before not in (_CR, _LF))

    def _runs(self, begin: int, end: int) -> Iterator[tuple[int, bytes, int, int]]:
        """Where a piece begins, the piece, and from where to where of it, for all of a range."""
        number = bisect_right(self._starts, begin) - 1
        while begin < end:
            start, stop = self._starts[number], min(end, self._starts[number + 1])
            yield start, self._piece(number), begin - start, stop - start
            begin, number = stop, number + 1

    def _piece(self, number: int) -> bytes:
        found = self._kept.pop(number, None)
        if found is None:
            if len(self._kept) == _KEPT_MAX:
                del self._kept[next(iter(self._kept))]
            found = self._opened(number)
        self._kept[number] = found
        return found

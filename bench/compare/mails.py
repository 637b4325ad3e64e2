"""The mail that every peer gets: of the corpus beside the checkout, else of tests/data."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from mailraft.cluster import corpus

ROOT = Path(__file__).resolve().parents[2]
PLACES = (ROOT.parent / "shared" / "corpus", corpus.default_path())
_FIRST_LINE = b"Received: by compare with number %d\r\n"
LEAST_BYTES, MOST_BYTES = 1024, 16 * 1024


def load() -> list[bytes]:
    """Mails of 1 to 16 KiB with CRLF, as they travel, in a fixed order."""
    place = next(each for each in PLACES if each.exists())
    whole = (_crlf(message.raw) for message in corpus.Corpus(place))
    return [raw for raw in whole if LEAST_BYTES <= len(raw) <= MOST_BYTES]


def mean_bytes() -> float:
    """Of the mails as `Mails` gives them."""
    return mean(len(raw) + len(_FIRST_LINE % 10_000) for raw in load())


def _crlf(raw: bytes) -> bytes:
    return raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


class Mails:
    """The mails again and again, each with a mailbox. The numbers never repeat."""

    def __init__(self, mails: list[bytes], mailboxes: int) -> None:
        self.count = len(mails)
        self._mails, self._mailboxes = mails, mailboxes
        self._number = 0

    def next(self) -> tuple[int, int, bytes]:
        """Its number, a mailbox, the bytes."""
        number = self._number
        self._number += 1
        # The first line makes each a mail of its own, as another hop would.
        raw = _FIRST_LINE % number + self._mails[number % self.count]
        return number, number % self._mailboxes, raw

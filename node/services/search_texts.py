"""Messages that only their text decides, read and asked for one search page."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from mailraft.internal.v1 import record_pb2
from mailraft.node.mailstore import filters, queries, search

from . import blob_source, levels, message_text
from .base import Shards

# Messages that one page reads, and their bytes: about 200 ms of a thread.
TEXTS_MAX = 100
TEXTS_MAX_BYTES = 4 * 1024 * 1024


class Texts:
    """Made before the first await, since the view is good until then."""

    def __init__(
        self, shards: Shards, at: levels.Reading, query: search.Query, found: search.Found
    ) -> None:
        self._shards, self._replica, self._test = shards, at.replica, query.test
        records = list(found.messages)
        for each in found.rivals.values():
            records += each[: TEXTS_MAX + 1]  # above, the budget ends
        self._matches: dict[int, bool] = {}  # what is known, by message
        self._rows: dict[int, queries.BodyRow] = {}
        for record in records:
            number = record.message
            if number in self._matches or number in self._rows:
                continue
            if (matches := query.test(filters.Candidate(record))) is not None:
                self._matches[number] = matches
            else:
                self._rows[number] = queries.body_of_message(at.view, query.account_id, number)
        self.renew()

    def renew(self) -> None:
        """Begins to count anew."""
        self._left, self._left_bytes = TEXTS_MAX, TEXTS_MAX_BYTES

    @property
    def spent(self) -> bool:
        return self._left <= 0 or self._left_bytes <= 0

    async def matches(self, record: record_pb2.MessageRecord) -> bool:
        """Reads its text if need be, once. Raises BLOB_CORRUPT."""
        number = record.message
        if number not in self._matches:
            row = self._rows[number]
            self._left -= 1
            self._left_bytes -= min(row.size_bytes, message_text.MESSAGE_MAX_BYTES)
            text = await asyncio.to_thread(message_text.text_of, await self._beginning(row))
            self._matches[number] = self._test(filters.Candidate(record, text)) is not False
        return self._matches[number]

    async def any_matches(self, records: Iterable[record_pb2.MessageRecord]) -> bool | None:
        """None: it is not known yet where the budget ends."""
        for record in records:
            if self.spent and record.message not in self._matches:
                return None
            if await self.matches(record):
                return True
        return False

    async def _beginning(self, row: queries.BodyRow) -> bytes:
        """Of a message stored in parts too, as far as it is looked at."""
        end = message_text.MESSAGE_MAX_BYTES
        return b"".join(
            [each async for each in blob_source.pieces(self._shards, self._replica, row, 0, end)]
        )

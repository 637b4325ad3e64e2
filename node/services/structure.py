"""GetStructure: where the MIME parts of a message are. Computed when asked, the last ones kept."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from mailraft.node.mailstore import queries
from mailraft.v1 import blob_pb2
from mailraft.wire import errors, tokens

from . import blob_source, levels, mime, validate
from .base import Call, Shards
from .content import INLINE_MAX_BYTES
from .pieces import Pieces

CACHE_MAX_BYTES = 8 * 1024 * 1024
_ENTRY_BYTES = 200  # of the cache itself, about
READ_TIMEOUT_S = 10.0  # of one part, by a loop that is busy

_Key = tuple[int, int, int]  # group, log index, ordinal: a body's, whose bytes never change


class Structures:
    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._cache = _Cache(CACHE_MAX_BYTES)
        self._large = asyncio.Lock()

    async def GetStructure(
        self, request: blob_pb2.GetStructureRequest, call: Call
    ) -> blob_pb2.GetStructureResponse:
        """BLOB_CORRUPT where the bytes must be read and are damaged here."""
        validate.account_id(request.account_id)
        at = await levels.read(self._shards, request.account_id, request.read_options, call)
        number = validate.message_id(request.message_id)
        row = queries.body_of_message(at.view, request.account_id, number)
        response = blob_pb2.GetStructureResponse(
            state=at.state, served=at.served, blob_id=tokens.blob_id(row.index, row.ordinal)
        )
        key = at.replica.group, row.index, row.ordinal
        known = self._cache.get(key)
        if known is None:
            known = await self._computed(at, row)
            self._cache.put(key, known)
        response.MergeFromString(known)
        return response

    async def _computed(self, at: levels.Reading, row: queries.BodyRow) -> bytes:
        """Of a GetStructureResponse, the part that the bytes alone tell."""
        if row.parts:  # one at a time: it reads the bytes again for each level within
            async with self._large:
                return await self._of_parts(at, row)
        raw = await blob_source.opened(self._shards, at.replica, row)
        if row.size_bytes <= INLINE_MAX_BYTES:
            return _told(mime.parse(raw))
        return _told(await asyncio.to_thread(mime.parse, raw))

    async def _of_parts(self, at: levels.Reading, row: queries.BodyRow) -> bytes:
        """In a thread, that has a part or two in memory. The store is read in the loop's."""
        loop = asyncio.get_running_loop()
        wanted = True

        async def stored(part: queries.BodyRow) -> bytes:
            if not wanted:
                raise asyncio.CancelledError
            return blob_source.packed(self._shards, at.replica, part)

        def opened(number: int) -> bytes:
            part = row.parts[number]
            reading = asyncio.run_coroutine_threadsafe(stored(part), loop)
            try:
                packed = reading.result(READ_TIMEOUT_S)
            except TimeoutError:
                raise errors.OverloadedError("no time to read a large message") from None
            return blob_source.raw(at.replica, part, packed)

        pieces = Pieces([part.size_bytes for part in row.parts], opened)
        try:
            return _told(await asyncio.to_thread(mime.parse_pieces, pieces))
        finally:
            wanted = False


def _told(structure: mime.Structure) -> bytes:
    told = blob_pb2.GetStructureResponse(root=structure.root, truncated=structure.truncated)
    return told.SerializeToString()


class _Cache:
    """The last used, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._left_bytes = max_bytes
        self._entries: OrderedDict[_Key, bytes] = OrderedDict()

    def get(self, key: _Key) -> bytes | None:
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: _Key, value: bytes) -> None:
        before = self._entries.pop(key, None)
        if before is not None:
            self._left_bytes += len(before) + _ENTRY_BYTES
        self._entries[key] = value
        self._left_bytes -= len(value) + _ENTRY_BYTES
        while self._left_bytes < 0 and self._entries:
            _, oldest = self._entries.popitem(last=False)
            self._left_bytes += len(oldest) + _ENTRY_BYTES

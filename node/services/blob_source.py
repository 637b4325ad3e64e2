"""Stored bytes of a message or an upload, found, checked and opened."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

from mailraft.node.engine.errors import CorruptionError
from mailraft.node.mailstore import queries
from mailraft.node.mailstore.errors import Refused
from mailraft.node.shard import Replica
from mailraft.v1 import common_pb2, error_pb2
from mailraft.wire import bodies, errors, tokens

from .base import Call, Shards
from .content import INLINE_MAX_BYTES


def packed(shards: Shards, replica: Replica, row: queries.BodyRow) -> bytes:
    """As they lie on the disk here, the checksum verified. Raises BLOB_CORRUPT."""
    try:
        stored = shards.body(replica.group, row.index, row.ordinal)
    except CorruptionError:
        raise corrupt(replica, row, "not to be read") from None
    if stored is None or len(stored) != row.stored_bytes:
        raise corrupt(replica, row, "missing or cut" if stored is None else "of another length")
    return stored


def bodies_of(row: queries.BodyRow) -> tuple[queries.BodyRow, ...]:
    """Where the bytes of a blob lie: in one body, or in several, in order."""
    return row.parts or (row,)


async def opened(shards: Shards, replica: Replica, row: queries.BodyRow) -> bytes:
    """The bytes of one body, verified. Raises BLOB_CORRUPT."""
    stored = packed(shards, replica, row)
    if row.size_bytes <= INLINE_MAX_BYTES:
        return raw(replica, row, stored)
    return await asyncio.to_thread(raw, replica, row, stored)


async def pieces(
    shards: Shards, replica: Replica, row: queries.BodyRow, offset_bytes: int, end_bytes: int
) -> AsyncIterator[bytes]:
    """The bytes from an offset to an end, at most a body at a time, each verified first."""
    begin = 0
    for body in bodies_of(row):
        if begin >= end_bytes:
            return
        if begin + body.size_bytes > offset_bytes:
            data = await opened(shards, replica, body)
            first, last = max(0, offset_bytes - begin), min(len(data), end_bytes - begin)
            yield data if last - first == len(data) else data[first:last]
        begin += body.size_bytes


def raw(replica: Replica, row: queries.BodyRow, stored: bytes) -> bytes:
    """The bytes of a body that were appended, hash for hash; of a part, by its checksum. Raises
    BLOB_CORRUPT.
    """
    try:
        unpacked = bodies.unpack(stored, row.size_bytes)
    except bodies.BodyCorruptError as error:
        raise corrupt(replica, row, str(error)) from None
    if row.sha256 and hashlib.sha256(unpacked).digest() != row.sha256:
        raise corrupt(replica, row, "of another hash")
    return unpacked


def corrupt(replica: Replica, row: queries.BodyRow, what: str) -> errors.BlobCorruptError:
    blob_id = tokens.blob_id(row.index, row.ordinal)
    return errors.BlobCorruptError(
        f"blob {blob_id} is damaged here: {what}",
        detail=error_pb2.BlobCorrupt(blob_id=blob_id, replica_ids=[replica.replica]),
    )


async def readable(
    replica: Replica, account_id: str, position: tuple[int, int], call: Call
) -> queries.BodyRow:
    """The blob that a mutation names, if the account may read it; apply looks again.

    What is not found is looked for once more with a quorum: a new leader may know less than was
    acknowledged until it has applied all of its log.
    """
    try:
        return queries.body(replica.view, account_id, *position)
    except Refused as refused:
        if refused.reason == error_pb2.ERROR_REASON_BAD_FIELD:
            raise
    point = await replica.read(common_pb2.CONSISTENCY_LINEARIZABLE, deadline_s=call.deadline_s)
    return queries.body(point.view, account_id, *position)

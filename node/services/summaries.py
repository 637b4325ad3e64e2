"""What lists show of messages, as bytes of their replies, kept from one list to the next.

What is shown of a message follows from its stored record and the UIDVALIDITY of its mailboxes, and
from nothing else. Both are compared, so what is kept is never out of date: a change of the message
stores another record.
"""

from __future__ import annotations

from typing import NamedTuple

from mailraft.internal.v1 import record_pb2
from mailraft.v1 import message_service_pb2
from mailraft.wire.ready import tag, varint

from . import convert

# Of all that a node keeps; past it what came first goes. A larger one is made each time.
KEPT_BYTES_MAX = 8 * 1024 * 1024
ONE_BYTES_MAX = 4 * 1024
_OVERHEAD_BYTES = 256  # of an entry, about


_TAG = tag(message_service_pb2.ListMessagesResponse.DESCRIPTOR.fields_by_name["messages"])


class _Summary(NamedTuple):
    in_reply: bytes
    places: tuple[tuple[int, int], ...]  # mailboxes, and the UIDVALIDITY of each
    size_bytes: int  # of memory, about


class Summaries:
    """Of one node, all its shards: equal records look the same to whoever may read them."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, bytes], _Summary] = {}
        self._bytes = 0

    def of(self, stored: bytes, show: convert.Messages) -> bytes:
        """The message of a stored record, as it lies in the reply of a list of messages."""
        key = show.shown, stored
        found = self._kept.get(key)
        if found is None or not show.agrees(found.places):
            found = _made(stored, show)
            self._keep(key, found)
        return found.in_reply

    def _keep(self, key: tuple[int, bytes], made: _Summary) -> None:
        if made.size_bytes > ONE_BYTES_MAX:
            return
        replaced = self._kept.pop(key, None)
        self._bytes += made.size_bytes - (replaced.size_bytes if replaced else 0)
        self._kept[key] = made
        while self._bytes > KEPT_BYTES_MAX:
            self._bytes -= self._kept.pop(next(iter(self._kept))).size_bytes


def _made(stored: bytes, show: convert.Messages) -> _Summary:
    record = record_pb2.MessageRecord.FromString(stored)
    message = show.show(record).SerializeToString()
    in_reply = b"".join((_TAG, varint(len(message)), message))
    size_bytes = len(stored) + len(in_reply) + _OVERHEAD_BYTES
    return _Summary(in_reply, show.places_of(record), size_bytes)

"""Responses as their bytes on the wire: what is kept as bytes is not parsed to be written again.

Fields of a message may come in any order, and one message behind another is both of them together
(protobuf, Encoding), so a response is put together from pieces by joining them.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.descriptor import FieldDescriptor

_WITH_LENGTH = 2  # the wire type of messages and bytes


class Ready:
    """A response of a kind that its maker knows. To be written it is taken for a message."""

    __slots__ = ("_data",)

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._data = b"".join(pieces)

    def SerializeToString(self) -> bytes:  # noqa: N802 - as protobuf calls it
        return self._data


def tag(field: FieldDescriptor) -> bytes:
    """What a field begins with that holds a message."""
    assert field.message_type is not None, f"{field.full_name} is no message"
    return varint(field.number << 3 | _WITH_LENGTH)


def varint(number: int) -> bytes:
    """As protobuf writes a length."""
    if number < 0x80:
        return bytes((number,))
    return bytes((number & 0x7F | 0x80,)) + varint(number >> 7)

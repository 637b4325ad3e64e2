"""Pickles that do something when they are unpickled: they make a file. Written by hand, so that
nothing here needs the module whose absence is tested.
"""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

# RocksDict, unless it is opened raw, unpickles values that begin with this byte.
ROCKSDICT_MARK = b"\x06"
# The first byte of a command in pysyncobj's log: an ordinary one, none, of membership, of version.
PYSYNCOBJ_COMMANDS = (b"\x00", b"\x01", b"\x02", b"\x03")


def text(marker: Path) -> str:
    """open(marker, "w") in protocol 0, which is ASCII: fits where only text does."""
    return f"cbuiltins\nopen\n(V{marker}\nVw\ntR."


def binary(marker: Path) -> bytes:
    """The same in protocol 4."""
    words = [
        b"\x8c" + bytes([len(word)]) + word
        for word in (b"builtins", b"open", str(marker).encode(), b"w")
    ]
    return b"\x80\x04" + words[0] + words[1] + b"\x93" + words[2] + words[3] + b"\x86R."


def token(marker: Path) -> str:
    """In the form of an opaque token of the API."""
    return "1" + base64.urlsafe_b64encode(binary(marker)).rstrip(b"=").decode()


def framed(marker: Path) -> bytes:
    """As pysyncobj sends one over TCP: its size, and compressed."""
    packed = zlib.compress(binary(marker), 3)
    return struct.pack("i", len(packed)) + packed


def everyhow(marker: Path) -> list[bytes]:
    """In every form in which something known unpickles it."""
    plain = [text(marker).encode(), binary(marker)]
    marked = [mark + plain[1] for mark in (ROCKSDICT_MARK, *PYSYNCOBJ_COMMANDS)]
    return [*plain, *marked, framed(marker)]

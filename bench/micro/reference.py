"""The work that every layer is measured against: what a mail store does all day, and none of ours.

Never change it: the recorded ratios are against this very function.
"""

from __future__ import annotations

import hashlib
import struct
import zlib

from google.protobuf import struct_pb2

ROUNDS = 40
_NUMBERS = struct.Struct(">QI")
_BYTES = b"Received: from mail.example.org by mx.example.org; Tue, 24 Nov 2026\r\n" * 40


def reference() -> int:
    """Messages, dictionaries, keys, hashes and compression, in about a millisecond."""
    rows: dict[bytes, bytes] = {}
    for number in range(ROUNDS):
        record = struct_pb2.Struct()
        record.fields["number"].number_value = number
        record.fields["name"].string_value = f"user{number}"
        encoded = record.SerializeToString()
        found = struct_pb2.Struct.FromString(encoded)
        for place in range(8):
            rows[_NUMBERS.pack(number, place)] = encoded
        rows[found.fields["name"].string_value.encode()] = hashlib.sha256(_BYTES).digest()
    packed = zlib.compress(_BYTES, 1)
    return len(b"".join(rows[key] for key in sorted(rows))) + len(packed)

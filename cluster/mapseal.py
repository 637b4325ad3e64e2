r"""A checksum behind a node's copy of the map, in blanks: an older release reads the same JSON.

    <JSON>}\n<32 blanks, a tab for each bit of the CRC-32C that is 1, the highest first>\n

It would refuse a field that it does not know (tests/unit/test_feature_levels.py), and writes its
copies without any: those are taken as they are. Pure.
"""

from __future__ import annotations

import re

import google_crc32c

from mailraft.cluster.errors import MapFileError

_BITS = str.maketrans("01", " \t")
_SEAL = re.compile(r"\n([ \t]{32})\n")


def sealed(text: str) -> str:
    """The file for this JSON, which ends in a bracket."""
    return f"{text}\n{_checksum(text)}\n"


def check(file: str) -> None:
    """Raises MapFileError if a bit of a sealed file has changed."""
    text, bracket, rest = file.rpartition("}")
    if not rest.strip("\n"):
        return  # of an older release
    seal = _SEAL.fullmatch(rest)
    if seal is None or seal[1] != _checksum(text + bracket):
        raise MapFileError("its checksum does not match")


def _checksum(text: str) -> str:
    return f"{google_crc32c.value(text.encode()):032b}".translate(_BITS)

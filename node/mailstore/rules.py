"""Bounds and spellings that apply refuses by.

Part of what a log entry means: a replica with another number here would build another state. So
they do not follow mailraft.wire.limits, which an edit may raise; a unit test holds the two
together, and changing one here takes a command of its own behind a feature level.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

from mailraft.internal.v1 import record_pb2

from .errors import bad_field, limit_reached

FORMAT = 1  # of the log commands and of the records written here

ACCOUNT_ID_MAX_BYTES = 255
MAILBOX_NAME_MAX_BYTES = 255
MAILBOX_DEPTH_MAX = 16
MAILBOXES_PER_ACCOUNT_MAX = 10_000
KEYWORD_MAX_BYTES = 255
KEYWORDS_PER_MESSAGE_MAX = 128
ATTRIBUTES_MAX = 64
ATTRIBUTE_MAX_BYTES = 1_024
TARGETS_PER_MESSAGE_MAX = 64
RECIPIENTS_PER_DELIVERY_MAX = 1_000
MESSAGES_PER_COMMAND_MAX = 1_000
THREAD_KEYS_MAX = 32

REQUEST_ID_WINDOW_MS = 7 * 24 * 3600 * 1000
REQUEST_ID_FUTURE_MS = 10 * 60 * 1000
REQUEST_BUCKET_MS = 3600 * 1000
REQUESTS_PER_SHARD_MAX = 50_000_000

BODY_MAX_BYTES = 1 << 40  # far above any message, so that sums stay far below 64 bits

# How long an expunged message can be undeleted where neither mailbox nor account says.
UNDELETE_WINDOW_DEFAULT_MS = 7 * 24 * 3600 * 1000
FORGET_STEP_MS = 3600 * 1000  # expunged messages are forgotten at most this late
RETENTION_PERIOD_MS = 3600 * 1000  # between two looks at a mailbox that has a rule
# Changes and vanished UIDs are told for 30 days at least; a day more costs little.
CHANGES_KEPT_MS = 31 * 24 * 3600 * 1000
TRIM_STEP_MS = 24 * 3600 * 1000  # between two looks at the changes of an account
BODY_GRACE_MS = 3600 * 1000
UID_PAIRS_PER_COMMAND_MAX = 1_000

UPLOAD_MAX_BYTES = 50 * 1024 * 1024
UPLOAD_PART_MAX_BYTES = 1024 * 1024
# Of every part but the last: so that a blob of several parts can be told by its size.
UPLOAD_PART_MIN_BYTES = 64 * 1024
UPLOADS_PER_ACCOUNT_MAX = 100  # unfinished, or without a message that refers to them
UPLOAD_WINDOW_MS = 24 * 3600 * 1000
LATEST_MS = 1 << 62  # no time lies behind it, and sums with it stay below 64 bits

UINT32_MAX = 0xFFFF_FFFF
TIME_MAX_MS = (1 << 48) - 1  # the greatest that a UUIDv7 can tell (RFC 9562 section 5.7)

SEEN = "$seen"  # RFC 8621 section 4.1.1; IMAP \Seen

# RFC 8621 section 4.1.1: printable ASCII but ( ) { ] % * " \ (so an atom of RFC 9051 section 9).
_KEYWORD = re.compile(r"[!#$&\'+-\[^-z|}~]{1,255}")
# C0, DEL and C1. Written out: what unicodedata says depends on the version of Python.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def account_key(account_id: str) -> bytes:
    """The bytes of an account id; refuses what cannot be part of a key."""
    encoded = account_id.encode()
    if not 1 <= len(encoded) <= ACCOUNT_ID_MAX_BYTES:
        raise bad_field(f"account_id: 1 to {ACCOUNT_ID_MAX_BYTES} bytes, not {len(encoded)}")
    return encoded


def mailbox_name(name: str) -> bytes:
    """The bytes of a mailbox name. Compared as they are: neither folded nor normalised here."""
    encoded = name.encode()
    if not 1 <= len(encoded) <= MAILBOX_NAME_MAX_BYTES:
        raise bad_field(f"name: 1 to {MAILBOX_NAME_MAX_BYTES} bytes, not {len(encoded)}")
    if _CONTROL.search(name):
        raise bad_field("name: control characters are not allowed")
    return encoded


def keywords(asked: Sequence[str]) -> list[str]:
    """Lower case, sorted, each once: keywords ignore case (RFC 9051 section 2.3.2)."""
    if not asked:
        return []
    folded = sorted({_keyword(keyword) for keyword in asked})
    check_keyword_count(len(folded))
    return folded


def check_keyword_count(count: int) -> None:
    if count > KEYWORDS_PER_MESSAGE_MAX:
        raise limit_reached("keywords a message", KEYWORDS_PER_MESSAGE_MAX)


@functools.lru_cache(maxsize=4096)
def _keyword(keyword: str) -> str:
    if not _KEYWORD.fullmatch(keyword):
        raise bad_field(f"keywords: {keyword[:64]!r} is not a keyword")
    return keyword.lower()


def attributes(asked: Iterable[record_pb2.Attribute]) -> list[record_pb2.Attribute]:
    """Sorted by key; refuses a key twice, and more or longer ones than the bounds."""
    found: dict[str, str] = {}
    for attribute in asked:
        longest = max(len(attribute.key.encode()), len(attribute.value.encode()))
        if not attribute.key or longest > ATTRIBUTE_MAX_BYTES:
            raise bad_field(f"attributes: 1 to {ATTRIBUTE_MAX_BYTES} bytes each")
        if attribute.key in found:
            raise bad_field(f"attributes: {attribute.key[:64]!r} comes twice")
        found[attribute.key] = attribute.value
    if len(found) > ATTRIBUTES_MAX:
        raise limit_reached("attributes", ATTRIBUTES_MAX)
    return [record_pb2.Attribute(key=key, value=found[key]) for key in sorted(found)]

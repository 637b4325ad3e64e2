"""What a request must look like before a shard hears of it. Raises BAD_FIELD, naming each field.

The state machine holds the same bounds again, since it trusts nobody; here they are told early,
with the path of the field, and nothing is proposed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence

from mailraft.internal.v1 import command_pb2
from mailraft.v1 import common_pb2, message_pb2
from mailraft.wire import errors, limits, tokens

RECIPIENTS_PER_CALL_MAX = limits.RECIPIENTS_PER_CALL_MAX
# Mailboxes of all recipients of a call: bounds its reply.
TARGETS_PER_CALL_MAX = 16_384
UID_RANGES_MAX = 20_000  # pairs
INTERNAL_TIME_MAX_MS = (1 << 48) - 1  # about the year 10889; as much before 1970
UINT32_MAX = 2**32 - 1

# RFC 8621 section 4.1.1
_KEYWORD = re.compile(r"[!#$&'+-\[^-z|}~]+")
_ROLES = frozenset(common_pb2.MailboxRole.values())
_VIEWS = frozenset(message_pb2.MessageView.values())
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


def bad(field: str, what: str) -> errors.BadFieldError:
    return errors.BadFieldError(f"{field}: {what}", fields={field: what})


def account_id(asked: str, field: str = "account_id") -> None:
    """1 to 255 bytes, any characters: opaque (gRPC has seen to it that it is UTF-8)."""
    if not 1 <= len(asked.encode()) <= limits.ACCOUNT_ID_MAX_BYTES:
        raise bad(field, f"1 to {limits.ACCOUNT_ID_MAX_BYTES} bytes")


def request_id(asked: bytes, field: str = "request_id") -> None:
    """A UUIDv7 (RFC 9562 section 5.7). The shard's clock tells if its time is in the window."""
    if len(asked) != 16 or asked[6] >> 4 != 7 or asked[8] >> 6 != 2:
        raise bad(field, "a UUIDv7 of 16 bytes")


def keywords(asked: Sequence[str], field: str) -> list[str]:
    """In lower case, sorted, each once."""
    if not asked:
        return []
    folded = {_keyword(keyword) for keyword in asked}
    if None in folded:
        what = '1 to 255 printable ASCII characters, none of ( ) { ] % * " \\'
        raise bad(field, what)
    if len(folded) > limits.KEYWORDS_PER_MESSAGE_MAX:
        raise errors.LimitReachedError(
            f"{field}: at most {limits.KEYWORDS_PER_MESSAGE_MAX}",
            metadata={"limit": "keywords_per_message", "max": str(limits.KEYWORDS_PER_MESSAGE_MAX)},
        )
    return sorted(keyword for keyword in folded if keyword is not None)


@functools.lru_cache(maxsize=4096)
def _keyword(keyword: str) -> str | None:
    fits = len(keyword) <= limits.KEYWORD_MAX_BYTES and _KEYWORD.fullmatch(keyword)
    return keyword.lower() if fits else None


def targets(asked: Sequence[message_pb2.MailboxTarget], field: str) -> list[command_pb2.Target]:
    """Where to put a message; an id that this store never gives is MAILBOX_NOT_FOUND."""
    if not asked:
        return []
    if len(asked) > limits.TARGETS_PER_MESSAGE_MAX:
        raise bad(field, f"at most {limits.TARGETS_PER_MESSAGE_MAX}")
    found = []
    for each in asked:
        match each.WhichOneof("target"):
            case "mailbox_id":
                found.append(command_pb2.Target(mailbox=mailbox_id(each.mailbox_id)))
            case "role":
                found.append(command_pb2.Target(role=role(each.role, field)))
            case _:
                raise bad(field, "each is a mailbox_id or a role")
    if len({(each.mailbox, each.role) for each in found}) != len(found):
        raise bad(field, "each at most once")
    return found


def role(asked: int, field: str) -> int:
    if not asked or asked not in _ROLES:
        raise bad(field, f"{asked} is no role")
    return asked


def view(asked: message_pb2.MessageView.ValueType) -> message_pb2.MessageView.ValueType:
    if asked not in _VIEWS:
        raise bad("view", f"{asked} is no view")
    return asked or message_pb2.MESSAGE_VIEW_BASIC


def page_size(
    asked: int, default: int = limits.PAGE_SIZE_DEFAULT, cap: int = limits.PAGE_SIZE_MAX
) -> int:
    """0 is the default, above the cap is the cap."""
    return min(asked or default, cap)


def internal_time(asked: int, field: str) -> int:
    if abs(asked) > INTERNAL_TIME_MAX_MS:
        raise bad(field, "out of range")
    return asked


def mailbox_name(asked: str, field: str) -> None:
    if not 1 <= len(asked.encode()) <= limits.MAILBOX_NAME_MAX_BYTES:
        raise bad(field, f"1 to {limits.MAILBOX_NAME_MAX_BYTES} bytes")
    if _CONTROL.search(asked):
        raise bad(field, "no control characters")


def attributes(asked: Mapping[str, str], field: str) -> None:
    if len(asked) > limits.ATTRIBUTES_MAX:
        raise errors.LimitReachedError(
            f"{field}: at most {limits.ATTRIBUTES_MAX}",
            metadata={"limit": "attributes", "max": str(limits.ATTRIBUTES_MAX)},
        )
    for key, value in asked.items():
        if not key or max(len(key.encode()), len(value.encode())) > limits.ATTRIBUTE_MAX_BYTES:
            raise bad(field, f"keys 1 to {limits.ATTRIBUTE_MAX_BYTES} bytes, values no longer")


# ---- ids: one that is not of this store names nothing --------------------------------------------


def mailbox_id(asked: str) -> int:
    try:
        number = tokens.parse_mailbox_id(asked)
    except ValueError:
        raise errors.MailboxNotFoundError from None
    if not 1 <= number <= UINT32_MAX:
        raise errors.MailboxNotFoundError
    return number


def message_id(asked: str) -> int:
    try:
        return tokens.parse_message_id(asked)
    except ValueError:
        raise errors.MessageNotFoundError from None


def blob_id(asked: str) -> tuple[int, int]:
    try:
        index, ordinal = tokens.parse_blob_id(asked)
    except ValueError:
        raise errors.BlobNotFoundError from None
    if ordinal > UINT32_MAX:
        raise errors.BlobNotFoundError
    return index, ordinal


def uid_set(asked: common_pb2.UidSet, field: str) -> list[tuple[int, int]]:
    """Its ranges, as pairs. 4294967295 as the last means all above."""
    if not asked.uid_validity:
        raise bad(f"{field}.uid_validity", "must not be 0")
    return uid_ranges(asked.ranges, f"{field}.ranges")


def uid_ranges(numbers: Sequence[int], field: str) -> list[tuple[int, int]]:
    """Ranges of UIDs, as pairs."""
    if len(numbers) % 2 or len(numbers) > 2 * UID_RANGES_MAX:
        raise bad(field, f"pairs, at most {UID_RANGES_MAX}")
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    previous = 0
    for first, last in pairs:
        if not previous < first <= last:
            raise bad(field, "first <= last, ascending, not overlapping, from 1")
        previous = last
    return pairs


def unique(asked: Iterable[str], field: str) -> None:
    seen: set[str] = set()
    for each in asked:
        if each in seen:
            raise bad(field, "without repetition")
        seen.add(each)

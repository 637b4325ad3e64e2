"""Every key of a node's store. Pure: may be imported by any room of the node.

Big-endian integers, so that byte order is number order. Column families:

  meta   node, groups and hard states
  log    entries without bodies           (group, index)
  body   packed message bodies            (group, generation, index, ordinal)
  state  what the state machine keeps     (group, generation) + a relative key

Relative keys (what a StateMachine sees) begin with the slot of their account, so that a later
version can move a slot by copying ranges; shard-wide rows come behind every slot.
"""

from __future__ import annotations

import struct

META, LOG, BODY, STATE = "meta", "log", "body", "state"
COLUMN_FAMILIES = (META, LOG, BODY, STATE)

U16, U32, U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")

# ---- meta ----------------------------------------------------------------------------------------

NODE = b"node"


def group_record(group: int) -> bytes:
    return b"group" + U32.pack(group)


def hard_state(group: int) -> bytes:
    return b"hard" + U32.pack(group)


GROUP_RECORDS = (b"group", b"grouq")  # half-open range over every group_record


def group_of_record(key: bytes) -> int:
    return int(U32.unpack(key[5:])[0])


# ---- log and bodies ------------------------------------------------------------------------------

INDEX_END = 2**64 - 1  # behind the index of every entry

_LOG = struct.Struct(">IQ")
_BODY = struct.Struct(">IIQI")


def log_entry(group: int, index: int) -> bytes:
    return _LOG.pack(group, index)


def log_index(key: bytes) -> int:
    return int(_LOG.unpack(key)[1])


def body(group: int, generation: int, index: int, ordinal: int = 0) -> bytes:
    return _BODY.pack(group, generation, index, ordinal)


def body_position(key: bytes) -> tuple[int, int]:
    _, _, index, ordinal = _BODY.unpack(key)
    return index, ordinal


# ---- state: physical prefix ----------------------------------------------------------------------

_STATE = struct.Struct(">II")
STATE_PREFIX_BYTES = _STATE.size


def state_prefix(group: int, generation: int) -> bytes:
    return _STATE.pack(group, generation)


# ---- state: relative keys ------------------------------------------------------------------------
# account rows: slot u16 | length u8 | account id | family u8 | ...
# shard rows:   0xFFFF | family u8 | ...

_SHARD = b"\xff\xff"
SHARD_RECORD = _SHARD + b"\x01"  # written by the engine with every applied entry

SHARD_ROWS = _SHARD  # every account row lies before it
SHARD_CLOCK = _SHARD + b"\x04"  # the state machine's clock and its count of requests

_ACCOUNT, _MAILBOX, _NAME, _ROLE, _MESSAGE, _UID, _CHANGE, _ACCESS, _RECEIVED, _THREAD = range(
    1, 11
)
_TIME_BIAS = 1 << 63  # so that times before 1970 sort first
_RECEIVED_TAIL = struct.Struct(">IQI")


ACCOUNT_HEADER_BYTES = 3  # slot and length, before the account id


def account_prefix(slot: int, account: bytes) -> bytes:
    """Everything of one account; account is 1-255 bytes."""
    return U16.pack(slot) + bytes((len(account),)) + account


def account_of(key: bytes) -> bytes:
    return key[3 : 3 + key[2]]


def account_record(prefix: bytes) -> bytes:
    return prefix + bytes((_ACCOUNT,))


def mailbox_record(prefix: bytes, mailbox: int = 0) -> bytes:
    return prefix + bytes((_MAILBOX,)) + U32.pack(mailbox)


def mailbox_name(prefix: bytes, parent: int, name: bytes = b"") -> bytes:
    """-> mailbox number: sibling names are unique."""
    return prefix + bytes((_NAME,)) + U32.pack(parent) + name


def mailbox_role(prefix: bytes, role: int) -> bytes:
    """-> mailbox number: at most one mailbox has a role."""
    return prefix + bytes((_ROLE,)) + U32.pack(role)


def message_record(prefix: bytes, message: int = 0) -> bytes:
    return prefix + bytes((_MESSAGE,)) + U64.pack(message)


def uid(prefix: bytes, mailbox: int, number: int = 0) -> bytes:
    """-> message number: a mailbox in UID order."""
    return prefix + bytes((_UID,)) + U32.pack(mailbox) + U32.pack(number)


def uid_of(key: bytes) -> int:
    return int(U32.unpack(key[-4:])[0])


def received(prefix: bytes, mailbox: int, time_ms: int, uid_number: int = 0) -> bytes:
    """-> message number: a mailbox in the order of received times, UIDs breaking ties."""
    tail = _RECEIVED_TAIL.pack(mailbox, time_ms + _TIME_BIAS, uid_number)
    return prefix + bytes((_RECEIVED,)) + tail


def received_mailbox(prefix: bytes, mailbox: int) -> bytes:
    """What every received() key of a mailbox begins with."""
    return prefix + bytes((_RECEIVED,)) + U32.pack(mailbox)


def received_of(key: bytes) -> tuple[int, int]:
    """Time and UID of a received() key."""
    _, time_ms, uid_number = _RECEIVED_TAIL.unpack(key[-_RECEIVED_TAIL.size :])
    return time_ms - _TIME_BIAS, uid_number


def uid_mailbox(prefix: bytes, mailbox: int) -> bytes:
    """What every uid() key of a mailbox begins with."""
    return prefix + bytes((_UID,)) + U32.pack(mailbox)


def thread_key(prefix: bytes, digest: int) -> bytes:
    """What an account knows of one message id (hashed)."""
    return prefix + bytes((_THREAD,)) + U64.pack(digest)


def change(prefix: bytes, modseq: int = 0) -> bytes:
    return prefix + bytes((_CHANGE,)) + U64.pack(modseq)


def blob_access(prefix: bytes, index: int, ordinal: int) -> bytes:
    return prefix + bytes((_ACCESS,)) + U64.pack(index) + U32.pack(ordinal)


def blob(index: int, ordinal: int) -> bytes:
    return _SHARD + b"\x02" + U64.pack(index) + U32.pack(ordinal)


def request(bucket: int, request_id: bytes, account: bytes) -> bytes:
    """What a request_id answered; `bucket` is its hour: one range delete expires a bucket."""
    return _SHARD + b"\x03" + U32.pack(bucket) + request_id + account


def request_bucket(bucket: int) -> bytes:
    return _SHARD + b"\x03" + U32.pack(bucket)


def request_count(bucket: int) -> bytes:
    """How many request rows a bucket holds."""
    return _SHARD + b"\x05" + U32.pack(bucket)


def after(prefix: bytes) -> bytes:
    """The first key behind every key that begins with prefix."""
    trimmed = prefix.rstrip(b"\xff")
    if not trimmed:
        raise ValueError("no key lies behind a prefix of 0xff bytes only")
    return trimmed[:-1] + bytes((trimmed[-1] + 1,))

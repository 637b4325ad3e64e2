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
from collections.abc import Iterable

META, LOG, BODY, STATE = "meta", "log", "body", "state"
COLUMN_FAMILIES = (META, LOG, BODY, STATE)

U16, U32, U64 = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")

# ---- meta ----------------------------------------------------------------------------------------

NODE = b"node"


def group_record(group: int) -> bytes:
    return b"group" + U32.pack(group)


def hard_state(group: int) -> bytes:
    return b"hard" + U32.pack(group)


def gone_group(group: int) -> bytes:
    """-> the highest generation that a replica which was removed from here has used."""
    return b"gone" + U32.pack(group)


GONE_GROUPS = (b"gone", b"gonf")  # half-open range over every gone_group
GROUP_RECORDS = (b"group", b"grouq")  # half-open range over every group_record


def group_of_record(key: bytes) -> int:
    """Of a group_record() or gone_group() key."""
    return int(U32.unpack(key[-4:])[0])


# ---- log and bodies ------------------------------------------------------------------------------

INDEX_END = 2**64 - 1  # behind the index of every entry

_LOG = struct.Struct(">IQ")
_BODY = struct.Struct(">IIQI")
_POSITION = struct.Struct(">QI")


def log_entry(group: int, index: int) -> bytes:
    return _LOG.pack(group, index)


def log_index(key: bytes) -> int:
    return int(_LOG.unpack(key)[1])


def body(group: int, generation: int, index: int, ordinal: int = 0) -> bytes:
    return _BODY.pack(group, generation, index, ordinal)


def body_position(key: bytes) -> tuple[int, int]:
    _, _, index, ordinal = _BODY.unpack(key)
    return index, ordinal


def relative_body_position(key: bytes) -> tuple[int, int]:
    """Of a body() key without group and generation, as snapshots have it."""
    index, ordinal = _POSITION.unpack(key)
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
_BLOBS = _SHARD + b"\x02"
_REQUESTS = _SHARD + b"\x03"
_REQUEST_COUNTS = _SHARD + b"\x05"
SHARD_RECORD = _SHARD + b"\x01"  # written by the engine with every applied entry

SHARD_ROWS = _SHARD  # every account row lies before it
SHARD_CLOCK = _SHARD + b"\x04"  # the state machine's clock and its count of requests

_ACCOUNT, _MAILBOX, _NAME, _ROLE, _MESSAGE, _UID, _CHANGE, _ACCESS, _RECEIVED, _THREAD = range(
    1, 11
)
_TOUCHED, _VANISHED, _THREAD_MEMBER, _KEYWORD, _DOOMED, _EXPUNGED, _EXPUNGED_AT, _EXPIRES = range(
    11, 19
)
_UPLOAD = 19
_TOMBSTONE = 255  # behind every other row of its account
_TIME_BIAS = 1 << 63  # so that times before 1970 sort first
# A family and what its keys go on with.
_ACCOUNT_FAMILY = bytes((_ACCOUNT,))
_FAMILY_U32, _FAMILY_U64 = struct.Struct(">BI"), struct.Struct(">BQ")
_FAMILY_TWO_U64 = struct.Struct(">BQQ")
_UID_KEY, _ACCESS_KEY = struct.Struct(">BII"), struct.Struct(">BQI")
_MAILBOX_TIME = struct.Struct(">BIQI")  # mailbox, time or MODSEQ, UID


_READ_OFTEN = frozenset({_ACCOUNT, _MAILBOX, _ROLE})

ACCOUNT_HEADER_BYTES = 3  # slot and length, before the account id


def account_prefix(slot: int, account: bytes) -> bytes:
    """Everything of one account; account is 1-255 bytes."""
    return U16.pack(slot) + bytes((len(account),)) + account


def account_of(key: bytes) -> bytes:
    return key[3 : 3 + key[2]]


def account_record(prefix: bytes) -> bytes:
    return prefix + _ACCOUNT_FAMILY


def is_account_record(key: bytes) -> bool:
    """Whether it is the record of an account, which every change of the account writes."""
    return key[:2] != _SHARD and key[-1] == _ACCOUNT and len(key) == key[2] + 4


def is_message_record(key: bytes) -> bool:
    """Whether it is the record of a message that is in a mailbox."""
    return key[:2] != _SHARD and len(key) == key[2] + 12 and key[key[2] + 3] == _MESSAGE


def is_read_often(key: bytes) -> bool:
    """Whether it is the record of an account or a mailbox, or tells which mailbox has a role."""
    if key[:2] == _SHARD or len(key) <= ACCOUNT_HEADER_BYTES:
        return False
    family = key[2] + ACCOUNT_HEADER_BYTES
    return len(key) > family and key[family] in _READ_OFTEN


def mailbox_record(prefix: bytes, mailbox: int = 0) -> bytes:
    return prefix + _FAMILY_U32.pack(_MAILBOX, mailbox)


def mailbox_name(prefix: bytes, parent: int, name: bytes = b"") -> bytes:
    """-> mailbox number: sibling names are unique."""
    return prefix + _FAMILY_U32.pack(_NAME, parent) + name


def mailbox_role(prefix: bytes, role: int) -> bytes:
    """-> mailbox number: at most one mailbox has a role."""
    return prefix + _FAMILY_U32.pack(_ROLE, role)


def message_record(prefix: bytes, message: int = 0) -> bytes:
    return prefix + _FAMILY_U64.pack(_MESSAGE, message)


def messages_named(prefix: bytes, targets: Iterable[bytes]) -> list[bytes]:
    """The message_record() of each that index rows name by their values."""
    head = prefix + bytes((_MESSAGE,))
    return [head + target for target in targets]


def uid(prefix: bytes, mailbox: int, number: int = 0) -> bytes:
    """-> message number: a mailbox in UID order."""
    return prefix + _UID_KEY.pack(_UID, mailbox, number)


def uid_of(key: bytes) -> int:
    return int.from_bytes(key[-4:])


def uids_of(rows: Iterable[tuple[bytes, bytes]]) -> list[int]:
    """Of uid() or received() keys with their values."""
    return [int.from_bytes(key[-4:]) for key, _ in rows]


def received(prefix: bytes, mailbox: int, time_ms: int, uid_number: int = 0) -> bytes:
    """-> message number: a mailbox in the order of received times, UIDs breaking ties."""
    return prefix + _MAILBOX_TIME.pack(_RECEIVED, mailbox, time_ms + _TIME_BIAS, uid_number)


def received_mailbox(prefix: bytes, mailbox: int) -> bytes:
    """What every received() key of a mailbox begins with."""
    return prefix + _FAMILY_U32.pack(_RECEIVED, mailbox)


def received_of(key: bytes) -> tuple[int, int]:
    """Time and UID of a received() key."""
    _, _, time_ms, uid_number = _MAILBOX_TIME.unpack(key[-_MAILBOX_TIME.size :])
    return time_ms - _TIME_BIAS, uid_number


def uid_mailbox(prefix: bytes, mailbox: int) -> bytes:
    """What every uid() key of a mailbox begins with."""
    return prefix + _FAMILY_U32.pack(_UID, mailbox)


def thread_key(prefix: bytes, digest: int) -> bytes:
    """What an account knows of one message id (hashed)."""
    return prefix + _FAMILY_U64.pack(_THREAD, digest)


def change(prefix: bytes, modseq: int = 0) -> bytes:
    return prefix + _FAMILY_U64.pack(_CHANGE, modseq)


def touched(prefix: bytes, mailbox: int, modseq: int = 0, uid_number: int = 0) -> bytes:
    """-> message number: what is in a mailbox, by when it last changed there (changes_rows.py)."""
    return prefix + _MAILBOX_TIME.pack(_TOUCHED, mailbox, modseq, uid_number)


def vanished(prefix: bytes, mailbox: int, modseq: int = 0, uid_number: int = 0) -> bytes:
    """-> nothing: a UID that left a mailbox under a MODSEQ (changes_rows.py)."""
    return prefix + _MAILBOX_TIME.pack(_VANISHED, mailbox, modseq, uid_number)


def mailbox_change_of(key: bytes) -> tuple[int, int]:
    """MODSEQ and UID of a touched() or vanished() key."""
    _, _, modseq, uid_number = _MAILBOX_TIME.unpack(key[-_MAILBOX_TIME.size :])
    return modseq, uid_number


def thread_member(prefix: bytes, thread: int, message: int = 0) -> bytes:
    """-> nothing: the messages of a thread that are in a mailbox."""
    return prefix + _FAMILY_TWO_U64.pack(_THREAD_MEMBER, thread, message)


def keyword(prefix: bytes, mailbox: int, name: bytes = b"") -> bytes:
    """How many messages of a mailbox have a keyword."""
    return prefix + _FAMILY_U32.pack(_KEYWORD, mailbox) + name


def doomed_mailbox(prefix: bytes, mailbox: int = 0) -> bytes:
    """The record of a deleted mailbox, until the last of its messages is removed."""
    return prefix + _FAMILY_U32.pack(_DOOMED, mailbox)


def expunged(prefix: bytes, message: int = 0) -> bytes:
    """A message that can be undeleted."""
    return prefix + _FAMILY_U64.pack(_EXPUNGED, message)


def expunged_at(prefix: bytes, mailbox: int, modseq: int = 0, message: int = 0) -> bytes:
    """-> nothing: expunged() messages by when they were expunged, from a mailbox or (0) at all."""
    head = prefix + _FAMILY_U32.pack(_EXPUNGED_AT, mailbox)
    return head + U64.pack(modseq) + U64.pack(message)


def expires(prefix: bytes, time_ms: int = 0, message: int = 0) -> bytes:
    """-> nothing: expunged() messages by when they can be undeleted no more."""
    return prefix + _FAMILY_TWO_U64.pack(_EXPIRES, time_ms, message)


def message_of(key: bytes) -> int:
    """The message of a thread_member(), expunged(), expunged_at() or expires() key."""
    return int(U64.unpack(key[-8:])[0])


def tombstone(prefix: bytes) -> bytes:
    """What is left of a deleted account."""
    return prefix + bytes((_TOMBSTONE,))


def account_rows(prefix: bytes) -> tuple[bytes, bytes]:
    """Half-open range over all rows of an account but its tombstone."""
    return prefix, tombstone(prefix)


def blob_access(prefix: bytes, index: int, ordinal: int) -> bytes:
    return prefix + _ACCESS_KEY.pack(_ACCESS, index, ordinal)


def upload(prefix: bytes, request_id: bytes = b"") -> bytes:
    """Bytes on their way in, or a blob that no message refers to yet."""
    return prefix + bytes((_UPLOAD,)) + request_id


def blob(index: int, ordinal: int) -> bytes:
    return _BLOBS + _POSITION.pack(index, ordinal)


def is_blob(key: bytes) -> bool:
    return key[:3] == _BLOBS


def blob_of(key: bytes) -> tuple[int, int]:
    """Index and ordinal of a blob() key."""
    return relative_body_position(key[-_POSITION.size :])


def request(bucket: int, request_id: bytes, account: bytes) -> bytes:
    """What a request_id answered; `bucket` is its hour: one range delete expires a bucket."""
    return _REQUESTS + U32.pack(bucket) + request_id + account


def request_bucket(bucket: int) -> bytes:
    return _REQUESTS + U32.pack(bucket)


def request_count(bucket: int) -> bytes:
    """How many request rows a bucket holds."""
    return _REQUEST_COUNTS + U32.pack(bucket)


_CHORE = struct.Struct(">QB")
_CHORES = _SHARD + b"\x06"


def chore(due_ms: int, kind: int = 0, account_prefix_: bytes = b"", number: int = 0) -> bytes:
    """-> nothing: work that the leader proposes from a time on (mailstore/chores.py)."""
    tail = account_prefix_ + U32.pack(number) if account_prefix_ else b""
    return _CHORES + _CHORE.pack(due_ms, kind) + tail


def chore_of(key: bytes) -> tuple[int, int, bytes, int]:
    """Due time, kind, account id and number of a chore() key."""
    at = len(_CHORES)
    due_ms, kind = _CHORE.unpack_from(key, at)
    account_header = key[at + _CHORE.size : -4]
    return due_ms, kind, account_of(account_header), int(U32.unpack(key[-4:])[0])


def free_body(due_ms: int, index: int = 0, ordinal: int = 0) -> bytes:
    """-> nothing: a body that nothing refers to, by when it may be collected."""
    return _SHARD + b"\x07" + U64.pack(due_ms) + U64.pack(index) + U32.pack(ordinal)


def free_body_of(key: bytes) -> tuple[int, int, int]:
    """Due time, index and ordinal of a free_body() key."""
    due_ms, index, ordinal = _FREE_BODY.unpack(key[-_FREE_BODY.size :])
    return due_ms, index, ordinal


_FREE_BODY = struct.Struct(">QQI")
_DEAD_BODY = struct.Struct(">QI")


def dead_body(index: int, ordinal: int = 0) -> bytes:
    """-> nothing: written by the engine, for a body that waits for its entry to leave the log."""
    return _SHARD + b"\x08" + _DEAD_BODY.pack(index, ordinal)


def dead_body_of(key: bytes) -> tuple[int, int]:
    """Index and ordinal of a dead_body() key, whatever it begins with."""
    index, ordinal = _DEAD_BODY.unpack(key[-_DEAD_BODY.size :])
    return index, ordinal


# ---- state of the meta group ---------------------------------------------------------------------
# shard rows too; the clock and the requests of a mail shard are the same there.

CLUSTER_HEAD = _SHARD + b"\x10"


def cluster_node(number: int = 0) -> bytes:
    return _SHARD + b"\x11" + U32.pack(number)


def cluster_shard(number: int = 0) -> bytes:
    return _SHARD + b"\x12" + U32.pack(number)


def cluster_job(number: int = 0) -> bytes:
    return _SHARD + b"\x13" + U64.pack(number)


CLUSTER_NODES = (cluster_node(), _SHARD + b"\x12")
CLUSTER_SHARDS = (cluster_shard(), _SHARD + b"\x13")
CLUSTER_JOBS = (cluster_job(), _SHARD + b"\x14")


DEAD_BODIES = (_SHARD + b"\x08", _SHARD + b"\x09")  # half-open range over every dead_body()


def after(prefix: bytes) -> bytes:
    """The first key behind every key that begins with prefix."""
    trimmed = prefix.rstrip(b"\xff")
    if not trimmed:
        raise ValueError("no key lies behind a prefix of 0xff bytes only")
    return trimmed[:-1] + bytes((trimmed[-1] + 1,))

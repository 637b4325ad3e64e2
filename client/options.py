"""What a call may ask for, by keyword: how fresh a read is, how durable a write, until when.

Every read takes ReadArgs and every mutation WriteArgs, so these words mean the same everywhere.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TypedDict

from mailraft.v1 import common_pb2, message_pb2, search_pb2


class Consistency(enum.IntEnum):
    """How fresh a read must be. A level that cannot be met is refused, never lowered."""

    LINEARIZABLE = common_pb2.CONSISTENCY_LINEARIZABLE
    """Everything that was acknowledged before the read began."""
    QUORUM = common_pb2.CONSISTENCY_QUORUM
    """The freshest of `replicas` replicas (0: a majority); works without a leader."""
    SESSION = common_pb2.CONSISTENCY_SESSION
    """At least what this client's session wrote or read, from any replica. The default."""
    BOUNDED = common_pb2.CONSISTENCY_BOUNDED
    """At most `max_staleness_ms` old, from any replica."""
    LOCAL = common_pb2.CONSISTENCY_LOCAL
    """Some committed prefix, from any replica; `served.age_ms` tells how old."""


class Ack(enum.IntEnum):
    """How durable a write must be before it is answered. With too few replicas: refused."""

    ACCEPTED = common_pb2.ACK_LEVEL_ACCEPTED
    """On the leader's disk, may be lost with it. Must be allowed by the cluster's settings."""
    QUORUM = common_pb2.ACK_LEVEL_QUORUM
    """On disk on a majority and applied at the leader. The cluster's usual default."""
    REPLICAS = common_pb2.ACK_LEVEL_REPLICAS
    """QUORUM, and on disk on `replicas` voters."""
    EACH_ZONE = common_pb2.ACK_LEVEL_EACH_ZONE
    """QUORUM, and on disk in every zone of the shard."""
    ALL = common_pb2.ACK_LEVEL_ALL
    """QUORUM, and on disk on every voter."""


class MailboxRole(enum.IntEnum):
    """What a mailbox is for (RFC 6154, RFC 8621 section 2): one of a role in an account."""

    NONE = common_pb2.MAILBOX_ROLE_UNSPECIFIED
    INBOX = common_pb2.MAILBOX_ROLE_INBOX
    ALL = common_pb2.MAILBOX_ROLE_ALL
    ARCHIVE = common_pb2.MAILBOX_ROLE_ARCHIVE
    DRAFTS = common_pb2.MAILBOX_ROLE_DRAFTS
    FLAGGED = common_pb2.MAILBOX_ROLE_FLAGGED
    IMPORTANT = common_pb2.MAILBOX_ROLE_IMPORTANT
    JUNK = common_pb2.MAILBOX_ROLE_JUNK
    SENT = common_pb2.MAILBOX_ROLE_SENT
    TRASH = common_pb2.MAILBOX_ROLE_TRASH
    SUBSCRIBED = common_pb2.MAILBOX_ROLE_SUBSCRIBED
    MEMOS = common_pb2.MAILBOX_ROLE_MEMOS
    SCHEDULED = common_pb2.MAILBOX_ROLE_SCHEDULED
    SNOOZED = common_pb2.MAILBOX_ROLE_SNOOZED


class MessageView(enum.IntEnum):
    """How much of a message is told."""

    BASIC = message_pb2.MESSAGE_VIEW_BASIC
    """All but `derived`: the cheapest, enough to synchronise."""
    ENVELOPE = message_pb2.MESSAGE_VIEW_ENVELOPE
    """And `derived`, without preview and has_attachment."""
    FULL = message_pb2.MESSAGE_VIEW_FULL
    """Everything."""


class MessageOrder(enum.IntEnum):
    """Orders of a mailbox's messages; all cost the same anywhere in it."""

    UID_ASC = message_pb2.MESSAGE_ORDER_UID_ASC
    UID_DESC = message_pb2.MESSAGE_ORDER_UID_DESC
    RECEIVED_ASC = message_pb2.MESSAGE_ORDER_RECEIVED_ASC
    RECEIVED_DESC = message_pb2.MESSAGE_ORDER_RECEIVED_DESC


class ObjectType(enum.IntEnum):
    """Kinds of object whose changes are told."""

    ACCOUNT = common_pb2.OBJECT_TYPE_ACCOUNT
    MAILBOX = common_pb2.OBJECT_TYPE_MAILBOX
    MESSAGE = common_pb2.OBJECT_TYPE_MESSAGE
    THREAD = common_pb2.OBJECT_TYPE_THREAD


class ReadLevel(TypedDict, total=False):
    """How fresh reads must be: of a call, or of all reads of a client that say nothing else."""

    consistency: Consistency
    """Default: the client's, else SESSION."""
    replicas: int
    """With Consistency.QUORUM: how many replicas are asked. Default: a majority."""
    max_staleness_ms: int
    """With Consistency.BOUNDED: the greatest age, 1 to 3,600,000 milliseconds."""


class ReadArgs(ReadLevel, total=False):
    """Keywords of every read about an account."""

    min_state: str
    """Show at least this state of the account; default with SESSION: the session's."""
    replica: int
    """Serve at the replica with this id and at no other (ReplicaNotFound). Default: any."""
    deadline_s: float
    """Seconds for the call with all its retries. Default: the client's."""


class ListArgs(ReadArgs, total=False):
    """Keywords of list_messages and iter_messages."""

    order: MessageOrder
    """Default: UID_ASC."""
    page_size: int
    """How many messages at most a page, up to 1,000. Default: 100."""
    view: MessageView
    """Default: BASIC."""
    only: search_pb2.MessageFilter
    """Only these; by what the message's own record holds (FilterUnsupportedError). Default: all."""
    uid_validity: int
    """If not 0, the mailbox must have it (UidValidityMismatchError)."""


class SearchArgs(ReadArgs, total=False):
    """Keywords of search_messages and iter_search."""

    sort: Sequence[search_pb2.SortKey]
    """At most 4. Default: by received time, newest first."""
    page_size: int
    """How many messages at most a page, up to 1,000. Default: 100."""
    view: MessageView
    """Default: BASIC."""


class WriteLevel(TypedDict, total=False):
    """How durable writes must be: of a call, or of all of a client's that say nothing else."""

    ack: Ack
    """Default: the client's, else the cluster's."""
    replicas: int
    """With Ack.REPLICAS: how many voters, a majority or more."""


class WriteArgs(WriteLevel, total=False):
    """Keywords of every mutation."""

    if_in_state: str
    """Do it only if the account is still at exactly this state (StateMismatch)."""
    request_id: bytes
    """16 bytes, a UUIDv7. Default: a new one, kept over all retries of the call. Give your own to
    repeat a call in another process, or after a crash: within 7 days it is done once."""
    deadline_s: float
    """Seconds for the call with all its retries. Default: the client's."""

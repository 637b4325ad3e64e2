"""What goes in and out of a Host: events, messages, Ready. Immutable.

Raft messages are the protobuf envelopes of mailraft.internal.v1; entries inside them are verified
and turned into interfaces.Entry once, here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mailraft.internal.v1 import raft_pb2
from mailraft.node.engine.checksum import entry_checksum
from mailraft.node.interfaces import Entry, EntryKind, GroupId, LogBase, LogWrite, ReplicaId

NodeNumber = int
Token = int  # names a proposal; chosen by the caller, unique while it is open


# ---- events: what a host is told -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerUp:
    """The stream to a peer is open."""

    peer: NodeNumber


@dataclass(frozen=True, slots=True)
class PeerDown:
    peer: NodeNumber


@dataclass(frozen=True, slots=True)
class Received:
    """One frame from a peer. `session` rises with every session that it opens to this node."""

    peer: NodeNumber
    session: int
    frame: raft_pb2.ExchangeRequest


@dataclass(frozen=True, slots=True)
class Propose:
    """Append one entry, if this replica leads."""

    group: GroupId
    token: Token
    kind: EntryKind
    payload: bytes
    bodies: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class AppliedUpTo:
    """Everything handed on up to here has been applied: hand on more."""

    group: GroupId
    index: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """Hand leadership to another replica, if this one leads (Raft thesis section 3.10)."""

    group: GroupId
    target: ReplicaId  # 0: the voter that is furthest ahead


@dataclass(frozen=True, slots=True)
class Prefer:
    """Hand leadership to this replica whenever this one leads and it can take over; 0: stay."""

    group: GroupId
    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class Retire:
    """This node is about to stop: hand over whatever it leads, and lead nothing any more."""


@dataclass(frozen=True, slots=True)
class ReadIndex:
    """Find an index that holds everything committed before this event (Raft thesis section 6.4)."""

    group: GroupId
    token: Token


@dataclass(frozen=True, slots=True)
class SnapshotArrived:
    """A snapshot is on this disk, whole, under a generation that is not live yet.

    `base` is the last entry whose effects are in it; `digest` over all effects up to there.
    """

    group: GroupId
    sender: ReplicaId
    generation: int
    base: LogBase
    digest: bytes


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """A snapshot that was wanted arrived at its receiver, or did not: the host may want another."""

    group: GroupId
    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class ChangeConfiguration:
    """Make these the members, if this replica leads and `expected_version` is in force.

    Appended, or ChangeRefused. In force at once; done when that entry is committed.
    """

    group: GroupId
    token: Token
    expected_version: int
    voters: tuple[ReplicaId, ...]
    learners: tuple[ReplicaId, ...] = ()


Event = (
    ChangeConfiguration
    | PeerUp
    | PeerDown
    | Received
    | Propose
    | AppliedUpTo
    | Transfer
    | Prefer
    | Retire
    | ReadIndex
    | SnapshotArrived
    | SnapshotSent
)


# ---- Ready: what a host wants done ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Appended:
    """A proposal has a place in this leader's log. It may still be lost."""

    token: Token
    group: GroupId
    index: int
    term: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """A proposal was not appended anywhere: this replica does not lead."""

    token: Token
    group: GroupId
    leader: ReplicaId


@dataclass(frozen=True, slots=True)
class Discarded:
    """Another entry was committed in a proposal's place: it will never be applied."""

    token: Token
    group: GroupId


@dataclass(frozen=True, slots=True)
class ReadReady:
    """Once `index` is applied here, a local read is linearizable."""

    token: Token
    group: GroupId
    index: int


@dataclass(frozen=True, slots=True)
class ReadRefused:
    """No leader, or it changed: ask again, or there."""

    token: Token
    group: GroupId
    leader: ReplicaId


@dataclass(frozen=True, slots=True)
class ChangeRefused:
    """A change of the configuration was appended nowhere, and why."""

    token: Token
    group: GroupId
    reason: str


Outcome = Appended | Rejected | Discarded | ReadReady | ReadRefused | ChangeRefused


@dataclass(frozen=True, slots=True)
class Committed:
    """Entries to apply, in order, exactly once; the next ones come after AppliedUpTo."""

    group: GroupId
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """A replica's place in its group, as it sees it."""

    group: GroupId
    replica: ReplicaId
    leader: ReplicaId  # 0: unknown
    term: int
    leading: bool
    commit_index: int
    last_index: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """A replica met something it must not survive (a damaged log, a broken promise)."""

    group: GroupId
    reason: str


@dataclass(frozen=True, slots=True)
class SnapshotWanted:
    """Send a snapshot of the group to a replica; SnapshotSent says when that is over."""

    group: GroupId
    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """What became of a SnapshotArrived. Installed: by the writes of this Ready; views of the group
    and all that is known of its log are void. Else its generation is to be dropped.
    """

    group: GroupId
    generation: int
    index: int
    installed: bool


@dataclass(frozen=True, slots=True)
class Ready:
    """What one turn wants done: write `writes` in order, send `messages`, apply `committed`.

    `sequence` names the writes of this turn and before; messages that rest on them stay in the
    host until a later step is told that they are durable.
    """

    sequence: int
    writes: tuple[LogWrite, ...]
    messages: tuple[tuple[NodeNumber, raft_pb2.ExchangeRequest], ...]
    committed: tuple[Committed, ...]
    outcomes: tuple[Outcome, ...]
    changed: tuple[GroupStatus, ...]
    stopped: tuple[Stopped, ...]
    snapshots_wanted: tuple[SnapshotWanted, ...] = ()
    snapshots_taken: tuple[SnapshotTaken, ...] = ()
    soon_s: float = math.inf  # when a turn is wanted that must not wait for the next tick


# ---- entries on the wire -------------------------------------------------------------------------


class DamagedEntryError(ValueError):
    """An entry's checksum does not match what arrived."""


def entry_to_wire(entry: Entry) -> raft_pb2.LogEntry:
    return raft_pb2.LogEntry(
        index=entry.index,
        term=entry.term,
        kind=int(entry.kind),  # type: ignore[arg-type]  # same numbers, tested
        payload=entry.payload,
        bodies=entry.bodies,
        crc32c=entry_checksum(entry),
    )


def entries_from_wire(wire: Iterable[raft_pb2.LogEntry]) -> list[Entry]:
    """Raises DamagedEntryError on a checksum that does not match or a kind nobody knows."""
    entries = []
    for sent in wire:
        try:
            kind = EntryKind(sent.kind)
        except ValueError as error:
            raise DamagedEntryError(f"entry {sent.index} is of unknown kind {sent.kind}") from error
        entry = Entry(sent.index, sent.term, kind, sent.payload, tuple(sent.bodies))
        if entry_checksum(entry) != sent.crc32c:
            raise DamagedEntryError(f"entry {sent.index} arrived damaged")
        entries.append(entry)
    return entries

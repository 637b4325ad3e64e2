"""What the rooms of a node say to each other. Pure data and protocols; imports no room.

engine      keeps logs and state on disk, and hands out views of them
consensus   decides the order of entries; sans I/O
mailstore   a StateMachine: turns committed entries into effects and replies
shard.py    joins the three for one replica; runtime carries out their I/O
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

GroupId = int  # a shard's number
META_GROUP: GroupId = 0  # keeps the cluster map; mail shards count from 1
MAP_FILE = "cluster-map.json"  # a node's copy of the map, in its folder
ReplicaId = int  # node number << 32 | incarnation; 0 names nobody


def replica_id(node: int, incarnation: int) -> ReplicaId:
    """The id of one life of a replica, never reused: an old vote cannot count for a new one."""
    return node << 32 | incarnation


def node_of(replica: ReplicaId) -> int:
    return replica >> 32


class EntryKind(enum.IntEnum):
    """As mailraft.internal.v1.EntryKind."""

    NOOP = 1
    COMMAND = 2
    CONFIGURATION = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a group's log. `bodies` are packed message bodies, in ordinal order."""

    index: int
    term: int
    kind: EntryKind
    payload: bytes = b""
    bodies: tuple[bytes, ...] = ()

    @property
    def size_bytes(self) -> int:
        return self.skeleton_bytes + sum(map(len, self.bodies))

    @property
    def skeleton_bytes(self) -> int:
        """Without bodies: what compaction of the log gives back."""
        return ENTRY_OVERHEAD_BYTES + len(self.payload)


ENTRY_OVERHEAD_BYTES = 64  # keys, framing and checksums, for limits that count bytes


@dataclass(frozen=True, slots=True)
class HardState:
    """Raft figure 2: what must be on disk before anything that rests on it is said."""

    term: int = 0
    voted_for: ReplicaId = 0


@dataclass(frozen=True, slots=True)
class Configuration:
    """Members of a group. Sorted, so that every process walks them in one order."""

    version: int
    voters: tuple[ReplicaId, ...]
    learners: tuple[ReplicaId, ...] = ()


@dataclass(frozen=True, slots=True)
class LogBase:
    """The position before the first entry that is kept, and the configuration in force there."""

    index: int
    term: int
    configuration: Configuration


# ---- consensus -> engine: writes, carried out in order, unsynced -------------------------------


@dataclass(frozen=True, slots=True)
class AppendEntries:
    group: GroupId
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class TruncateLog:
    """Remove every entry (and its bodies) at or above from_index."""

    group: GroupId
    from_index: int


@dataclass(frozen=True, slots=True)
class SaveHardState:
    group: GroupId
    hard_state: HardState


@dataclass(frozen=True, slots=True)
class CompactLog:
    """Move the start of the log up to `base`, which was applied; bodies in use stay."""

    group: GroupId
    base: LogBase


@dataclass(frozen=True, slots=True)
class InstallSnapshot:
    """Make a generation that was received whole the live one; the log begins, empty, behind it.

    `base` is the last entry whose effects are in it, `digest` over all effects up to there.
    """

    group: GroupId
    generation: int
    base: LogBase
    digest: bytes


@dataclass(frozen=True, slots=True)
class EndAmnesia:
    """This replica knows again all that it may ever have promised: it votes and counts."""

    group: GroupId


@dataclass(frozen=True, slots=True)
class Succeed:
    """This replica goes on under another id, and owes nothing that the one before promised."""

    group: GroupId
    replica: ReplicaId


LogWrite = AppendEntries | TruncateLog | SaveHardState | CompactLog | InstallSnapshot | EndAmnesia


@dataclass(frozen=True, slots=True)
class StoredLog:
    """What a replica finds on its disk when it starts."""

    replica: ReplicaId
    base: LogBase
    hard_state: HardState
    last_index: int
    last_term: int
    applied_index: int
    log_bytes: int = 0  # about: what the log takes without bodies
    amnesic: bool = False  # began with an empty disk: may have promised what it does not know
    lost: bool = False  # amnesic, and its disk was not empty before
    # (index, configuration) of each CONFIGURATION entry above the base, ascending.
    configurations: tuple[tuple[int, Configuration], ...] = ()


class LogReader(Protocol):
    """Reads one group's log. Indexes outside [base.index + 1, last_index] answer nothing."""

    def entries(self, first: int, last: int, max_bytes: int) -> Sequence[Entry]:
        """Entries first..last in order, cut after the one that passes max_bytes (at least one).

        Raises LogCorruptError when a checksum does not match or an entry is missing.
        """

    def term(self, index: int) -> int | None:
        """The term of one entry, without reading its bodies; None when it is not there."""


class LogCorruptError(Exception):
    """A stored entry is damaged or missing: this replica must step aside, never guess."""


# ---- mailstore <-> engine: views and effects ----------------------------------------------------


class View(Protocol):
    """A shard's state as keys and values, keys relative to (shard, generation).

    Reads see every write made before them; a scan is pinned to the moment it starts.
    """

    def get(self, key: bytes) -> bytes | None: ...

    def get_many(self, wanted: Sequence[bytes]) -> list[bytes | None]:
        """As get for each, in order, at about half the cost."""

    def scan(
        self, start: bytes, end: bytes, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < end, ascending, or descending when reverse.

        Raises engine.CorruptionError instead of ending early on damaged data.
        """


# Not frozen: that takes twice as long to make, and a delivery makes fourteen on each replica.
@dataclass(slots=True, unsafe_hash=True)
class Put:
    """Treat it as immutable."""

    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    key: bytes


@dataclass(frozen=True, slots=True)
class DeleteRange:
    """Remove start <= key < end."""

    start: bytes
    end: bytes


@dataclass(frozen=True, slots=True)
class DeleteBody:
    """Remove the body that log entry `index` carried as its `ordinal`-th. Nothing refers to it."""

    index: int
    ordinal: int


Effect = Put | Delete | DeleteRange | DeleteBody


@dataclass(frozen=True, slots=True)
class Applied:
    """What one entry did: effects to write in one batch with the new applied index, and an
    answer per command, in the order of the batch (opaque to the shard).
    """

    effects: tuple[Effect, ...]
    replies: tuple[object, ...] = ()


class StateMachine(Protocol):
    """Deterministic: the same entries give the same effects on every replica.

    No clock, no randomness, no I/O but the view. An exception stops the replica.
    """

    def apply(self, view: View, entry: Entry) -> Applied: ...

    def encode(self, commands: Sequence[Proposal]) -> tuple[bytes, tuple[bytes, ...]]:
        """One entry's payload and bodies for proposals that travel together."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One command on its way into the log; the command is the state machine's own type."""

    command: object
    bodies: tuple[bytes, ...] = field(default=())

    @property
    def size_bytes(self) -> int:
        return PROPOSAL_OVERHEAD_BYTES + sum(map(len, self.bodies))


PROPOSAL_OVERHEAD_BYTES = 512


# ---- apply -> engine ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ApplyWrite:
    """The effects of one entry; the engine puts the applied index into the same batch."""

    group: GroupId
    index: int
    term: int
    effects: tuple[Effect, ...]


Write = LogWrite | ApplyWrite | Succeed


# ---- shard -> consensus ------------------------------------------------------------------------


class Standing(Protocol):
    """What a replica may ask of its group's consensus."""

    def leader_heard_s(self) -> float:
        """When the leader was last heard, on the node's clock."""

    def in_contact(self) -> frozenset[ReplicaId]:
        """On the leader: the voters that were heard lately, itself included; empty elsewhere."""

    def durable(self) -> Mapping[ReplicaId, int]:
        """On the leader: up to where each voter's log is on its disk; empty elsewhere."""

    def feature_level(self) -> int:
        """What all nodes of the cluster understand: what needs more is not proposed."""

    def watch_disks(self) -> None:
        """Call `told_disks` after each turn, until it answers False."""


# ---- the cluster, as a node may see it -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Peer:
    node: int
    name: str
    address: str
    zone: str = ""
    host: str = ""


class ClusterView(Protocol):
    """What a node knows of its cluster, handed in by the composition root."""

    @property
    def cluster_id(self) -> str: ...

    @property
    def node(self) -> int: ...

    @property
    def epoch(self) -> int: ...

    @property
    def feature_level(self) -> int:
        """What every node of the cluster understands, as far as is known here. It never falls."""

    def remember_level(self, level: int) -> None:
        """The folder of this node was told of a level: the cluster has at least that."""

    def peers(self) -> Sequence[Peer]:
        """Every node of the cluster, this one included, by ascending number."""

    def groups(self) -> Sequence[tuple[GroupId, Configuration]]:
        """The groups that this node hosts a replica of."""

    def shard_of_slot(self, slot: int) -> GroupId: ...

    def configuration_version(self, group: GroupId) -> int:
        """Of the members that the map tells; 0 for an unknown group."""

    def is_new(self, replica: ReplicaId) -> bool:
        """Whether a replica here was placed since this folder last saw a map: it has promised
        nothing yet. False where that is not known.
        """

    def adopted(self) -> None:
        """Every group of the map is on disk here, and no other: remember the map."""

    async def wait_newer(self, epoch: int, timeout_s: float) -> None:
        """Returns when the map's epoch is above this one, or when the time is up."""

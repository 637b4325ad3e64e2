"""Stored records to and from what the engine works with. Pure; one place that knows formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from mailraft.internal.v1 import raft_pb2, record_pb2
from mailraft.node.engine.checksum import entry_checksum
from mailraft.node.engine.errors import CorruptionError, UnknownFormatError
from mailraft.node.interfaces import (
    Configuration,
    Entry,
    EntryKind,
    HardState,
    LogBase,
    LogCorruptError,
    ReplicaId,
)
from mailraft.wire import feature_levels

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose folder it is, and the feature level that its cluster had when it was last written."""

    cluster_id: str
    node: int
    feature_level: int = feature_levels.FIRST


@dataclass(frozen=True, slots=True)
class GroupBirth:
    """Who a replica is, where its log begins, and which generation of its keys is live.

    `burnt_generation` is the highest number ever given: rows of a failed snapshot may lie under it.
    """

    replica: ReplicaId
    base: LogBase
    generation: int
    burnt_generation: int
    amnesic: bool = False
    diverged: bool = False
    lost: bool = False


@dataclass(frozen=True, slots=True)
class AppliedPosition:
    """The last entry whose effects are in the state, and the digest over all effects so far."""

    index: int
    term: int
    digest: bytes


_M = TypeVar("_M", bound=Message)


def _parse(record: _M, data: bytes, *, newest: int = FORMAT) -> _M:
    """Fill a record that has a `format` field; raises CorruptionError or UnknownFormatError."""
    name = type(record).__name__
    try:
        record.ParseFromString(data)
    except DecodeError as error:
        raise CorruptionError(f"a stored {name} cannot be parsed: {error}") from error
    found = getattr(record, "format", 0)
    if not found:
        raise CorruptionError(f"a stored {name} carries no format")
    if found > newest:
        raise UnknownFormatError(
            f"a stored {name} has format {found}, this release knows {newest}: "
            "start the release that wrote this folder, or a newer one"
        )
    return record


def encode_identity(identity: Identity) -> bytes:
    return record_pb2.NodeRecord(
        format=identity.feature_level, cluster_id=identity.cluster_id, node=identity.node
    ).SerializeToString()


def decode_identity(data: bytes) -> Identity:
    """Raises UnknownFormatError for a cluster whose level this version does not understand."""
    record = _parse(record_pb2.NodeRecord(), data, newest=feature_levels.LEVEL)
    return Identity(record.cluster_id, record.node, record.format)


def encode_configuration(configuration: Configuration) -> raft_pb2.Configuration:
    return raft_pb2.Configuration(
        format=FORMAT,
        version=configuration.version,
        voters=configuration.voters,
        learners=configuration.learners,
    )


def decode_configuration(record: raft_pb2.Configuration) -> Configuration:
    return Configuration(record.version, tuple(record.voters), tuple(record.learners))


def configuration_of(entry: Entry) -> Configuration:
    """The payload of a CONFIGURATION entry. Raises CorruptionError."""
    return decode_configuration(_parse(raft_pb2.Configuration(), entry.payload))


def encode_group(birth: GroupBirth) -> bytes:
    return record_pb2.GroupRecord(
        format=FORMAT,
        replica=birth.replica,
        base_index=birth.base.index,
        base_term=birth.base.term,
        configuration=encode_configuration(birth.base.configuration),
        generation=birth.generation,
        burnt_generation=birth.burnt_generation,
        amnesic=birth.amnesic,
        diverged=birth.diverged,
        lost=birth.lost,
    ).SerializeToString()


def decode_group(data: bytes) -> GroupBirth:
    record = _parse(record_pb2.GroupRecord(), data)
    base = LogBase(record.base_index, record.base_term, decode_configuration(record.configuration))
    burnt = max(record.burnt_generation, record.generation)  # a first release burnt none
    return GroupBirth(
        record.replica,
        base,
        record.generation,
        burnt,
        record.amnesic,
        record.diverged,
        record.lost,
    )


def encode_hard_state(state: HardState) -> bytes:
    return record_pb2.HardStateRecord(
        format=FORMAT, term=state.term, voted_for=state.voted_for
    ).SerializeToString()


def decode_hard_state(data: bytes) -> HardState:
    record = _parse(record_pb2.HardStateRecord(), data)
    return HardState(record.term, record.voted_for)


def encode_applied(position: AppliedPosition) -> bytes:
    return record_pb2.ShardRecord(
        format=FORMAT,
        applied_index=position.index,
        applied_term=position.term,
        digest=position.digest,
    ).SerializeToString()


def decode_applied(data: bytes) -> AppliedPosition:
    record = _parse(record_pb2.ShardRecord(), data)
    return AppliedPosition(record.applied_index, record.applied_term, record.digest)


def encode_entry(entry: Entry) -> bytes:
    """An entry without its bodies; the checksum covers them too."""
    return record_pb2.LogRecord(
        format=FORMAT,
        term=entry.term,
        kind=raft_pb2.EntryKind.ValueType(entry.kind),
        payload=entry.payload,
        body_count=len(entry.bodies),
        crc32c=entry_checksum(entry),
    ).SerializeToString()


def parse_entry(group: int, index: int, data: bytes) -> record_pb2.LogRecord:
    """A skeleton as stored, not yet verified. Raises LogCorruptError."""
    try:
        return _parse(record_pb2.LogRecord(), data)
    except CorruptionError as error:
        raise log_corrupt(group, index, str(error)) from error


def decode_entry(
    group: int, index: int, record: record_pb2.LogRecord, bodies: tuple[bytes, ...]
) -> Entry:
    """The entry, verified. Raises LogCorruptError."""
    try:
        entry = Entry(index, record.term, EntryKind(record.kind), record.payload, bodies)
    except ValueError as error:
        raise log_corrupt(group, index, str(error)) from error
    if entry_checksum(entry) != record.crc32c:
        raise log_corrupt(group, index, "its checksum does not match")
    return entry


def log_corrupt(group: int, index: int, reason: str) -> LogCorruptError:
    return LogCorruptError(f"group {group}, log entry {index}: {reason}")

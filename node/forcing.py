"""How a replica becomes the only voter of its group, where most voters are lost for good. Pure.

It goes on under an id that nobody knew, so what the others may still say is for a replica that is
no more, and what it promised them binds nobody. The configuration stands in its log as if it had
been elected and had appended it; its version is above all that the others can have made.
"""

from __future__ import annotations

from mailraft.node.engine.records import encode_configuration
from mailraft.node.interfaces import (
    AppendEntries,
    Configuration,
    Entry,
    EntryKind,
    GroupId,
    HardState,
    ReplicaId,
    SaveHardState,
    StoredLog,
    Succeed,
    Write,
)

# The upper half of a configuration's version counts how often it was forced.
FORCED_VERSION = 1 << 32
# So does the upper byte of a replica's incarnation; the meta group gives the rest in order.
FORCED_INCARNATION = 1 << 24
_INCARNATION_MAX = (1 << 32) - 1


def times_forced(version: int) -> int:
    """How often a group's members were forced, by the version of its configuration."""
    return version // FORCED_VERSION


def has_successor(replica: ReplicaId) -> bool:
    """False once there is no id left: after 255 times."""
    return (replica & _INCARNATION_MAX) + FORCED_INCARNATION <= _INCARNATION_MAX


def successor(replica: ReplicaId) -> ReplicaId:
    """The id under which a replica goes on."""
    assert has_successor(replica), f"{replica:#x} was forced too often"
    return replica + FORCED_INCARNATION


def forced(stored: StoredLog) -> Configuration:
    """What is in force once this replica was forced."""
    known = stored.configurations[-1][1] if stored.configurations else stored.base.configuration
    version = (times_forced(known.version) + 1) * FORCED_VERSION
    return Configuration(version, (successor(stored.replica),))


def writes(group: GroupId, stored: StoredLog) -> list[Write]:
    """What makes it so, in one batch."""
    [replica] = forced(stored).voters
    term = stored.hard_state.term + 1
    payload = encode_configuration(forced(stored)).SerializeToString()
    entry = Entry(stored.last_index + 1, term, EntryKind.CONFIGURATION, payload)
    return [
        Succeed(group, replica),
        SaveHardState(group, HardState(term, replica)),
        AppendEntries(group, (entry,)),
    ]

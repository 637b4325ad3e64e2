"""Feature levels: what every node of a cluster understands (docs/upgrade.md, docs/decisions/0018).

A level counts what versions add to log commands, records and the map. It is enabled once all nodes
have a version that knows it; until then nobody proposes what came with it, and the version before
can be gone back to.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from . import errors

LEVEL = 2  # that this version understands
FIRST = 1  # where nothing says otherwise
# The cluster's undelete window is told to nodes, and by commands.
UNDELETE_WINDOW = 2
# Bodies are stored with the mail dictionary (mailraft.wire.bodies).
MAIL_DICTIONARY = 2
# The version that each came with.
VERSIONS = MappingProxyType({1: "0.2.0", 2: "0.3.0"})

# Sent with the answer to a Hello.
_METADATA_KEY = "mailraft-feature-level"
METADATA = ((_METADATA_KEY, str(LEVEL)),)

# What came after level 1, and with which one: fields, and values of enums as TYPE.VALUE. No command
# that holds one is proposed below its level, and no record gets one. `make lint` tells of what is
# new and neither here nor below.
GATED: Mapping[str, int] = MappingProxyType(
    {
        "mailraft.internal.v1.MetaHeadRecord.feature_level": 2,
        "mailraft.v1.ClusterMap.feature_level": 2,
        # The field is older, and nobody went by it.
        "mailraft.v1.Settings.undelete_window_ms": UNDELETE_WINDOW,
        "mailraft.v1.LevelPolicy.undelete_window_ms": UNDELETE_WINDOW,
        "mailraft.internal.v1.Command.undelete_window_ms": UNDELETE_WINDOW,
    }
)
# What is new and needs no level: why.
UNGATED: Mapping[str, str] = MappingProxyType(
    {
        "mailraft.internal.v1.Hello.feature_level": "who does not know it takes no notice",
        "mailraft.internal.v1.MetaCommand.enable_level": (
            "FinalizeUpgrade proposes it once all nodes have told that they know it"
        ),
        "mailraft.internal.v1.MetaCommand.record_forced": (
            "only a forced replica proposes it, alone; an older one that joins it stops there"
        ),
        "mailraft.internal.v1.GroupRecord.lost": (
            "of one node alone; a version that does not know it asks the peers all the same"
        ),
        "mailraft.internal.v1.AuditService.Scrub": "an operator's tool, which is told",
        "mailraft.internal.v1.InspectService.Hot": "an operator's tool, which is told",
        "mailraft.internal.v1.InspectService.HotNamed": "an operator's tool, which is told",
        "mailraft.internal.v1.InspectService.Measure": "an operator's tool, which is told",
        "mailraft.internal.v1.InspectService.Ping": "an operator's tool, which is told",
        "mailraft.internal.v1.RecoveryService.Survey": "an operator's tool, which is told",
        "mailraft.internal.v1.RecoveryService.Force": "an operator's tool, which is told",
    }
)


def level_of(command: Message, names: Iterable[str] = ()) -> int:
    """The lowest level at which every replica understands a command.

    names: of fields that it speaks of in words, as an update mask does.
    """
    return max((_level(command), *(GATED.get(name, FIRST) for name in names)))


def check(command: object, enabled: int, names: Iterable[str] = ()) -> None:
    """Raises FeatureNotEnabledError for what a replica of the cluster may not understand yet."""
    if enabled >= LEVEL or not isinstance(command, Message):
        return
    needed = level_of(command, names)
    if needed > enabled:
        raise errors.FeatureNotEnabledError(
            f"this needs feature level {needed}, and the cluster is at {enabled}: bring every "
            f"node to {version_of(needed)} or newer, then `mailraft upgrade finalize`"
        )


def told_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> int:
    """What the answer to a Hello tells; the first level where it tells nothing."""
    told = dict(metadata or ()).get(_METADATA_KEY, "")
    return int(told) if isinstance(told, str) and told.isdecimal() else FIRST


def version_of(level: int) -> str:
    """The first version that understands it, for people."""
    return VERSIONS.get(level, f"the version with feature level {level}")


def _level(message: Message) -> int:
    if not _may_hold(message.DESCRIPTOR):
        return FIRST
    found = FIRST
    for field, value in message.ListFields():
        found = max(found, GATED.get(field.full_name, FIRST))
        values = value if field.is_repeated else (value,)
        if field.message_type is not None:
            found = max(found, *map(_level, values), FIRST)
        elif field.enum_type is not None:
            found = max(found, *(_enum_level(field.enum_type, each) for each in values), FIRST)
    return found


def _enum_level(kind: EnumDescriptor, number: int) -> int:
    value = kind.values_by_number.get(number)
    return FIRST if value is None else GATED.get(f"{kind.full_name}.{value.name}", FIRST)


@functools.cache
def _may_hold(kind: Descriptor) -> bool:
    """Whether anything within such a message is gated: most commands are not looked through."""
    return any(
        field.full_name in GATED or (field.enum_type is not None and _gated_values(field.enum_type))
        for each in reachable(kind)
        for field in each.fields
    )


def _gated_values(kind: EnumDescriptor) -> bool:
    return any(f"{kind.full_name}.{value.name}" in GATED for value in kind.values)


def reachable(kind: Descriptor) -> list[Descriptor]:
    """The type and all that its fields can hold, each once."""
    found, waiting = {kind.full_name: kind}, [kind]
    while waiting:
        for field in waiting.pop().fields:
            assert isinstance(field, FieldDescriptor)
            inner = field.message_type
            if inner is not None and inner.full_name not in found:
                found[inner.full_name] = inner
                waiting.append(inner)
    return list(found.values())

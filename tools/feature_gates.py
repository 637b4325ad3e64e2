"""Tells of what is new to the version before, and stands behind no feature level.

New since the last release: fields of what lies on disk, goes into a log or between nodes, values of
enums in them, records, and calls between nodes. Each is to stand in feature_levels.GATED, with the
level that it needs, or in UNGATED, with the reason why it needs none (docs/upgrade.md).
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorSet,
)

import protos
from mailraft.wire.feature_levels import GATED, UNGATED

INTERNAL = "mailraft.internal.v1"
# Of these each message counts: frames between nodes, and snapshots.
STREAMS = ("mailraft/internal/v1/raft.proto", "mailraft/internal/v1/snapshot.proto")
# What a node finds in a log, and what it goes by.
ROOTS = (f"{INTERNAL}.Command", f"{INTERNAL}.MetaCommand", "mailraft.v1.ClusterMap")


class Contract:
    """Everything in a compiled set of .proto files, by full name."""

    def __init__(self, compiled: bytes) -> None:
        self.messages: dict[str, DescriptorProto] = {}
        self.enums: dict[str, EnumDescriptorProto] = {}
        self.methods: set[str] = set()
        self.records: set[str] = set()
        self.told: set[str] = set()  # not answers: of those one picks what one knows
        for file in FileDescriptorSet.FromString(compiled).file:
            self._add(file.package, file.message_type, file.enum_type)
            if file.package == INTERNAL:
                names = {f"{INTERNAL}.{each.name}" for each in file.message_type}
                self.records |= {each for each in names if each.endswith("Record")}
                self.told |= names if file.name in STREAMS else set()
            for service in file.service if file.package == INTERNAL else ():
                for method in service.method:
                    self.methods.add(f"{INTERNAL}.{service.name}.{method.name}")
                    self.told.add(method.input_type[1:])

    def _add(
        self,
        scope: str,
        messages: Iterable[DescriptorProto],
        enums: Iterable[EnumDescriptorProto],
    ) -> None:
        self.enums |= {f"{scope}.{each.name}": each for each in enums}
        for message in messages:
            name = f"{scope}.{message.name}"
            self.messages[name] = message
            self._add(name, message.nested_type, message.enum_type)

    def reached(self) -> set[str]:
        """Messages and enums that nodes keep, or are told."""
        waiting = [*ROOTS, *self.records, *self.told]
        found: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name not in found:
                found.add(name)
                fields = self.messages[name].field if name in self.messages else ()
                waiting += [each.type_name[1:] for each in fields if each.type_name]
        return found


def new_names(before: Contract, now: Contract) -> Iterator[str]:
    """What a node of the version before could meet and not understand.

    Not the fields of a type that is new itself: it is met in a field, or as a record.
    """
    yield from now.methods - before.methods
    yield from now.records - before.messages.keys()
    for name in now.reached():
        if name in before.messages:
            known = {each.name for each in before.messages[name].field}
            fields = now.messages[name].field
            yield from (f"{name}.{each.name}" for each in fields if each.name not in known)
        elif name in before.enums:
            known = {each.name for each in before.enums[name].value}
            values = now.enums[name].value
            yield from (f"{name}.{each.name}" for each in values if each.name not in known)


def main() -> int:
    """Prints what stands nowhere; the exit status says whether there is something."""
    with TemporaryDirectory() as folder:
        version, compiled = protos.last_release(Path(folder))
        if compiled is None:
            return 0
        before = Contract(compiled.read_bytes())
        now = Contract(protos.compiled(protos.PROTO, Path(folder) / "now.binpb").read_bytes())
    missing = sorted(set(new_names(before, now)) - GATED.keys() - UNGATED.keys())
    for name in missing:
        print(f"{name} is new since {version}: say in proto/mailraft/wire/feature_levels.py which")
        print("  feature level it needs (GATED), or why a node that does not know it does no harm")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

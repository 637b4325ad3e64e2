"""One sample of every stored record and log command: what a release may find on its disk."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from mailraft.internal.v1 import command_pb2, meta_pb2, raft_pb2, record_pb2

FOLDER = Path(__file__).parents[1] / "golden"
_STORED = (record_pb2, command_pb2, meta_pb2)  # every message of these files lies on disk
_ALSO_STORED = (raft_pb2.Configuration,)  # within a GroupRecord, and as a log entry
_DEPTH_MAX = 4


def stored_types() -> list[type[Message]]:
    """Every message type that a release may find on its disk."""
    found: list[type[Message]] = list(_ALSO_STORED)
    for module in _STORED:
        for name in sorted(module.DESCRIPTOR.message_types_by_name):
            found.append(getattr(module, name))  # noqa: PERF401 - reads better with the loop above
    return found


def sample(kind: type[Message]) -> Message:
    """A message with every field set to a value of its own. A oneof has its last member."""
    return _filled(kind, 1)


def covers(message: Message) -> set[str]:
    """The fields of the message itself that a sample sets; those of a oneof count as set."""
    chosen = {field.name for field, _ in message.ListFields()}
    either = {
        field.name
        for oneof in message.DESCRIPTOR.oneofs
        if len(oneof.fields) > 1
        for field in oneof.fields
    }
    return chosen | either


def files_of(version: str, kind: type[Message]) -> tuple[Path, Path]:
    """The serialized bytes as hex, and the values as text."""
    stem = FOLDER / version / kind.DESCRIPTOR.name
    return stem.with_suffix(".hex"), stem.with_suffix(".txt")


def text_of(message: Message) -> str:
    """The values, with the names of their fields."""
    return text_format.MessageToString(message, as_utf8=True, print_unknown_fields=True)


def hex_of(message: Message) -> str:
    """The serialized bytes, 32 a line."""
    wire = message.SerializeToString(deterministic=True)
    return "".join(wire[at : at + 32].hex() + "\n" for at in range(0, len(wire), 32))


def _filled(kind: type[Message], depth: int) -> Message:
    message = kind()
    if depth > _DEPTH_MAX:
        return message
    for field in kind.DESCRIPTOR.fields:
        assert isinstance(field, FieldDescriptor)
        if field.name == "format":
            setattr(message, field.name, 1)
        elif field.message_type is not None:
            assert isinstance(field.message_type, Descriptor)
            child = _filled(GetMessageClass(field.message_type), depth + 1)
            if field.is_repeated:
                getattr(message, field.name).add().CopyFrom(child)
            else:
                getattr(message, field.name).CopyFrom(child)
        elif field.is_repeated:
            getattr(message, field.name).extend([_value(field, 0), _value(field, 1)])
        else:
            setattr(message, field.name, _value(field, 0))
    return message


def _value(field: FieldDescriptor, place: int) -> object:
    number = field.number * 16 + place
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = f"{field.name} {number} é"
            return text if field.type == FieldDescriptor.TYPE_STRING else text.encode()
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_ENUM:
            assert field.enum_type is not None
            return field.enum_type.values[-1].number
        case FieldDescriptor.CPPTYPE_UINT64 | FieldDescriptor.CPPTYPE_INT64:
            return (1 << 40) + number
        case _:
            return number

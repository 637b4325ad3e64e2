"""What calls that change messages share: which messages, and one command for them.

A command touches at most 1,000 messages. A selector by ids holds no more; one by UIDs may, and then
the response says which UIDs remain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import Message

from mailraft.internal.v1 import command_pb2
from mailraft.v1 import common_pb2
from mailraft.wire import limits, tokens

from . import convert, levels, mutations, validate, write_levels
from .base import Call, Shards

# Of one command. What is behind them is for the next call, as what is behind 1,000 messages is.
PAIRS_MAX = 1_000


class Request(Protocol):
    """A mutation of one account."""

    account_id: str
    request_id: bytes

    @property
    def write_options(self) -> common_pb2.WriteOptions: ...


class _Action(Protocol):
    """A command that has a precondition."""

    @property
    def if_in_state(self) -> command_pb2.AccountState: ...

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Chosen:
    """A MessageSelector as a command takes it, and what to say of the rest of it."""

    selection: command_pb2.Selection
    content: bytes  # for the fingerprint: all that was asked
    unknown_ids: Sequence[str] = ()  # not of this store: they name nothing
    uid_set: common_pb2.UidSet | None = None
    pairs: Sequence[tuple[int, int]] = ()

    def not_found_ids(self, numbers: Iterable[int]) -> list[str]:
        return [*self.unknown_ids, *map(tokens.message_id, numbers)]

    def remaining(self, resume_uid: int) -> common_pb2.UidSet | None:
        """UIDs that were not reached: from resume_uid (0: none of the command's), and behind it."""
        rest = list(self.pairs[PAIRS_MAX:])
        if resume_uid:
            asked = self.pairs[:PAIRS_MAX]
            rest = [(max(first, resume_uid), last) for first, last in asked if last >= resume_uid]
            rest += self.pairs[PAIRS_MAX:]
        if self.uid_set is None or not rest:
            return None
        return common_pb2.UidSet(
            mailbox_id=self.uid_set.mailbox_id,
            uid_validity=self.uid_set.uid_validity,
            ranges=[number for pair in rest for number in pair],
        )


def chosen(asked: common_pb2.MessageSelector, field: str = "messages") -> Chosen:
    """Raises BAD_FIELD; MAILBOX_NOT_FOUND for UIDs of what is no mailbox of this store."""
    content = asked.SerializeToString(deterministic=True)
    match asked.WhichOneof("selector"):
        case "ids":
            numbers, unknown = message_ids(asked.ids, f"{field}.ids")
            return Chosen(command_pb2.Selection(messages=numbers), content, unknown)
        case "uid_set":
            pairs = validate.uid_set(asked.uid_set, f"{field}.uid_set")
            selection = command_pb2.Selection()
            selection.uids.mailbox = validate.mailbox_id(asked.uid_set.mailbox_id)
            selection.uids.uid_validity = asked.uid_set.uid_validity
            for pair in pairs[:PAIRS_MAX]:
                selection.uids.ranges.extend(pair)
            return Chosen(selection, content, (), asked.uid_set, pairs)
        case _:
            raise validate.bad(field, "ids or uid_set")


def message_ids(asked: common_pb2.MessageIds, field: str) -> tuple[list[int], list[str]]:
    """Their numbers, and those that name nothing."""
    if not 1 <= len(asked.ids) <= limits.MESSAGES_PER_COMMAND_MAX:
        raise validate.bad(field, f"1 to {limits.MESSAGES_PER_COMMAND_MAX}")
    validate.unique(asked.ids, field)
    numbers, unknown = [], []
    for each in asked.ids:
        try:
            numbers.append(tokens.parse_message_id(each))
        except ValueError:
            unknown.append(each)
    return numbers, unknown


def check(request: Request) -> None:
    """What every mutation of one account is held to."""
    validate.account_id(request.account_id)
    validate.request_id(request.request_id)
    write_levels.check(request.write_options)


async def change(
    shards: Shards,
    request: Request,
    call: Call,
    name: str,
    action: _Action,
    content: bytes = b"",
    *,
    if_object: str = "",
) -> mutations.Done:
    """Has one command committed. Its fingerprint is what the action says, and `content`.

    Preconditions are not content: a retry answers as the first time, whatever they are now.
    """
    said = action.SerializeToString(deterministic=True)
    command = command_pb2.Command(
        request_id=request.request_id, fingerprint=mutations.fingerprint(name, said, content)
    )
    asked = getattr(command, name)
    assert isinstance(asked, Message)
    asked.ParseFromString(said)
    asked.SetInParent()
    if_in_state = levels.if_in_state(request.write_options)
    if if_in_state is not None:
        asked.if_in_state.CopyFrom(if_in_state)  # type: ignore[attr-defined]  # see _Action
    if if_object:
        asked.if_object.CopyFrom(convert.parse_etag(if_object))  # type: ignore[attr-defined]
    return await mutations.mutate(
        shards, request.account_id, command, call, options=request.write_options
    )

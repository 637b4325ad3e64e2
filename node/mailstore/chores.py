"""Work that is due later, or that is too much for one command: a row each, in the order of time.

The state machine writes and removes the rows; whoever leads the shard proposes what is due
(due_commands), as DoChore commands that each do a bounded step (chore_steps.py). So a chore
survives crashes and changes of leadership, and finding out that nothing is due is one seek.

A row says when, what, which account, which mailbox. It may be stale (the account is gone, the rule
was changed): a step verifies against the records, and removes a row that means nothing any more.
"""

from __future__ import annotations

from itertools import islice
from typing import TypeAlias

from mailraft.internal.v1 import command_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import View

from .overlay import Overlay

Kind: TypeAlias = "command_pb2.ChoreKind.ValueType"

CLEAR_MAILBOX: Kind = command_pb2.CHORE_KIND_CLEAR_MAILBOX
CLEAR_ACCOUNT: Kind = command_pb2.CHORE_KIND_CLEAR_ACCOUNT
FORGET_EXPUNGED: Kind = command_pb2.CHORE_KIND_FORGET_EXPUNGED
APPLY_RETENTION: Kind = command_pb2.CHORE_KIND_APPLY_RETENTION
TRIM_CHANGES: Kind = command_pb2.CHORE_KIND_TRIM_CHANGES
EXPIRE_UPLOADS: Kind = command_pb2.CHORE_KIND_EXPIRE_UPLOADS

NOW = 0  # a due time before every other


def enqueue(overlay: Overlay, due_ms: int, kind: Kind, prefix: bytes, number: int = 0) -> None:
    overlay.put(keys.chore(due_ms, kind, prefix, number), b"")


def remove(overlay: Overlay, due_ms: int, kind: Kind, prefix: bytes, number: int = 0) -> None:
    overlay.delete(keys.chore(due_ms, kind, prefix, number))


def due_commands(view: View, now_ms: int, count: int) -> list[command_pb2.Command]:
    """At most `count` commands for what is due by now_ms, the longest due first.

    They carry no time: who proposes sets it. Proposing one twice does no harm.
    """
    found = []
    for key, _ in islice(view.scan(keys.chore(0), keys.chore(now_ms + 1)), count):
        due_ms, kind, account, number = keys.chore_of(key)
        asked = command_pb2.DoChore(
            account_id=account.decode(),
            kind=kind,  # type: ignore[arg-type]  # stored as its number
            due_ms=due_ms,
            number=number,
        )
        found.append(command_pb2.Command(do_chore=asked))
    free = view.scan(keys.free_body(0), keys.free_body(now_ms + 1))
    if len(found) < count and next(free, None) is not None:
        found.append(command_pb2.Command(collect_bodies=command_pb2.CollectBodies()))
    return found

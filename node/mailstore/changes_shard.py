"""What changed in a shard since a time of its clock: for indexers (WatchShard).

Every change record has the shard's clock of its command, which never falls and is the same on all
replicas. So a time is a cursor that any replica understands: each account's records are read
backwards until they are older.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from mailraft.internal.v1 import command_pb2, record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import View

from . import rules
from .account_change import prefix_of
from .changes import state_too_old

ROWS_MAX = 200  # change records of one account that are read in one go


@dataclass(frozen=True, slots=True)
class AccountChange:
    """One change, with the account's state with it."""

    change: record_pb2.ObjectChange
    state: command_pb2.AccountState


def clock_ms(view: View) -> int:
    stored = view.get(keys.SHARD_CLOCK)
    return 0 if stored is None else record_pb2.ClockRecord.FromString(stored).clock_ms


def check_time(view: View, since_ms: int) -> None:
    """Raises STATE_TOO_OLD for a time from which changes may be trimmed already."""
    if since_ms < clock_ms(view) - rules.CHANGES_KEPT_MS:
        raise state_too_old("changes of that time are no longer held")


def accounts(view: View, after: str, count: int) -> tuple[list[str], str]:
    """Accounts of the shard that there are or were, behind `after`; where to go on, or empty."""
    found: list[str] = []
    start = keys.after(prefix_of(after)) if after else b""
    while len(found) < count:
        key, _ = next(view.scan(start, keys.SHARD_ROWS), (b"", b""))
        if not key:
            return found, ""
        name = keys.account_of(key)
        found.append(name.decode())
        start = keys.after(key[: keys.ACCOUNT_HEADER_BYTES + len(name)])
    return found, found[-1]


def changes_since(
    view: View, account_id: str, since_ms: int, after_modseq: int
) -> tuple[list[AccountChange], int]:
    """Changes of an account at or after a time, oldest first, behind a MODSEQ (0: any); and the
    MODSEQ to go on behind, 0 when these were all. Its deletion comes first.
    """
    prefix = prefix_of(account_id)
    found = [] if after_modseq else list(_deleted(view, prefix, since_ms))
    stored = view.get(keys.account_record(prefix))
    if stored is None:
        return found, 0
    account = record_pb2.AccountRecord.FromString(stored)
    begin = after_modseq + 1 if after_modseq else _first_since(view, prefix, account, since_ms)
    following = 0
    end = keys.change(prefix, account.modseq + 1)
    for key, value in islice(view.scan(keys.change(prefix, begin), end), ROWS_MAX):
        modseq = int(keys.U64.unpack(key[-8:])[0])
        state = command_pb2.AccountState(
            restore_epoch=account.restore_epoch,
            creation_index=account.creation_index,
            modseq=modseq,
        )
        row = record_pb2.ChangeRecord.FromString(value)
        found += [AccountChange(each, state) for each in row.changes]
        following = modseq if modseq < account.modseq else 0
    return found, following


def _first_since(
    view: View, prefix: bytes, account: record_pb2.AccountRecord, since_ms: int
) -> int:
    """The first MODSEQ whose change is not older than a time; times never fall. Most look for one
    of the last, so steps back grow; then the last of them is halved.
    """
    low, high, step = account.trimmed_modseq + 1, account.modseq + 1, 1
    while low < high:
        middle = max(low, high - step) if step else (low + high) // 2
        key, value = next(
            view.scan(keys.change(prefix, middle), keys.change(prefix, high)), (b"", b"")
        )
        if not key or record_pb2.ChangeRecord.FromString(value).time_ms >= since_ms:
            high, step = middle, 2 * step
        else:
            low, step = int(keys.U64.unpack(key[-8:])[0]) + 1, 0
    return low


def _deleted(view: View, prefix: bytes, since_ms: int) -> Iterator[AccountChange]:
    stored = view.get(keys.tombstone(prefix))
    if stored is None:
        return
    row = record_pb2.AccountTombstone.FromString(stored)
    if row.deleted_ms >= since_ms:
        change = record_pb2.ObjectChange(
            object=record_pb2.OBJECT_KIND_ACCOUNT, change=record_pb2.CHANGE_KIND_DESTROYED
        )
        state = command_pb2.AccountState(
            restore_epoch=row.restore_epoch, creation_index=row.creation_index, modseq=row.modseq
        )
        yield AccountChange(change, state)

"""WatchShard: tells an indexer of everything that changes in a shard, at any replica of it.

As Watch, it remembers which accounts changed and not what: their change records tell that when the
stream can take it. The cursor is a time of the shard's clock up to which everything was told, so it
is good at every replica; changes of that very millisecond may be told twice.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Iterable

from mailraft.internal.v1 import record_pb2
from mailraft.node.engine import keys
from mailraft.node.interfaces import Delete, Effect, Put
from mailraft.node.mailstore import changes_shard
from mailraft.node.shard import Replica
from mailraft.v1 import change_pb2
from mailraft.wire import errors, tokens

from . import convert, levels, validate
from .base import Call, Shards
from .changes import TYPES

HEARTBEAT_S = 15.0
CHECK_S = 1.0
# Accounts that changed and were not told yet; past it all of the shard are looked through.
TOUCHED_MAX = 100_000
ACCOUNTS_AT_ONCE = 50
CHANGES_PER_RESPONSE_MAX = 1_000

_CURSOR = struct.Struct(">Q")


class WatchShard:
    def __init__(self, shards: Shards, stopping: asyncio.Event) -> None:
        self._shards, self._stopping = shards, stopping

    async def WatchShard(
        self, request: change_pb2.WatchShardRequest, call: Call
    ) -> AsyncIterator[change_pb2.WatchShardResponse]:
        """Raises SHARD_NOT_FOUND, STATE_TOO_OLD; SHUTTING_DOWN when this replica ends."""
        if request.read_options.min_state:
            raise validate.bad("read_options.min_state", "must be empty: it is of one account")
        level = levels.level_of(self._shards, request.read_options)
        replica = self._replica(request.shard, request.read_options.require_replica)
        point = await levels.at(self._shards, replica, level, call)
        since_ms = _opened(request) if request.cursor else changes_shard.clock_ms(point.view)
        changes_shard.check_time(point.view, since_ms)
        touched = _Touched(everything=bool(request.cursor))
        end = replica.listen(touched.applied)
        try:
            yield _response(request.shard, since_ms, ())
            async for response in self._tell(request.shard, replica, since_ms, touched):
                yield response
        finally:
            end()

    async def _tell(
        self, shard: int, replica: Replica, since_ms: int, touched: _Touched
    ) -> AsyncGenerator[change_pb2.WatchShardResponse, None]:
        view, said_s = replica.view, self._shards.now_s()
        while True:
            if self._stopping.is_set() or replica.stopped:
                raise errors.ShuttingDownError("this replica stops")
            if replica.view is not view:  # it began anew with a snapshot
                view = replica.view
                touched.everything = True
            if not touched.due:
                if self._shards.now_s() - said_s >= HEARTBEAT_S:
                    yield _response(shard, since_ms, ())
                    said_s = self._shards.now_s()
                await touched.wait(CHECK_S)
                continue
            # What comes from here on is of the next round, and not older than this.
            until_ms = changes_shard.clock_ms(view)
            async for name in _names(replica, touched):
                after = 0
                while True:
                    found, after = changes_shard.changes_since(replica.view, name, since_ms, after)
                    for start in range(0, len(found), CHANGES_PER_RESPONSE_MAX):
                        part = found[start : start + CHANGES_PER_RESPONSE_MAX]
                        yield _response(shard, since_ms, (_shown(name, each) for each in part))
                    if not after:
                        break
            since_ms = until_ms
            yield _response(shard, since_ms, ())
            said_s = self._shards.now_s()

    def _replica(self, shard: int, required: int) -> Replica:
        for replica in self._shards.replicas():
            if replica.group == shard and required in (0, replica.replica):
                return replica
        if required:
            raise errors.ReplicaNotFoundError(f"replica {required} of shard {shard} is not here")
        raise errors.ShardNotFoundError(f"no replica of shard {shard} is here")


class _Touched:
    """Accounts that changed since they were asked for last."""

    def __init__(self, *, everything: bool) -> None:
        self.everything = everything
        self._names: dict[bytes, None] = {}
        self._due = asyncio.Event()

    @property
    def due(self) -> bool:
        return self.everything or bool(self._names)

    def applied(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Put(key) | Delete(key) if keys.is_account_record(key):
                    self._names[keys.account_of(key)] = None
        if len(self._names) > TOUCHED_MAX:
            self.everything = True
            self._names.clear()
        if self.due:
            self._due.set()

    def take(self) -> list[str] | None:
        """The accounts of a new round; None: all there are."""
        names, self._names = self._names, {}
        if self.everything:
            self.everything = False
            return None
        return [name.decode() for name in names]

    async def wait(self, timeout_s: float) -> None:
        self._due.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._due.wait()
        except TimeoutError:
            pass


async def _names(replica: Replica, touched: _Touched) -> AsyncGenerator[str, None]:
    names, after = touched.take(), ""
    if names is not None:
        for name in names:
            yield name
        return
    while True:
        page, after = changes_shard.accounts(replica.view, after, ACCOUNTS_AT_ONCE)
        for name in page:
            yield name
        if not after:
            return
        await asyncio.sleep(0)


def _response(
    shard: int, since_ms: int, changes: Iterable[change_pb2.ShardChange]
) -> change_pb2.WatchShardResponse:
    cursor = tokens.page_token(("WatchShard", shard), _CURSOR.pack(since_ms))
    return change_pb2.WatchShardResponse(cursor=cursor, changes=changes)


def _opened(request: change_pb2.WatchShardRequest) -> int:
    try:
        position = tokens.open_page_token(request.cursor, ("WatchShard", request.shard))
        return int(_CURSOR.unpack(position)[0])
    except (errors.BadPageTokenError, struct.error):
        raise validate.bad("cursor", "of a response about this shard") from None


def _shown(account_id: str, told: changes_shard.AccountChange) -> change_pb2.ShardChange:
    change = told.change
    match change.object:
        case record_pb2.OBJECT_KIND_MAILBOX:
            object_id = tokens.mailbox_id(change.number)
        case record_pb2.OBJECT_KIND_MESSAGE:
            object_id = tokens.message_id(change.number)
        case _:
            object_id = account_id
    return change_pb2.ShardChange(
        account_id=account_id,
        type=TYPES[change.object],
        id=object_id,
        kind=change_pb2.ChangeKind.ValueType(change.change),
        state=convert.state_token(told.state),
    )

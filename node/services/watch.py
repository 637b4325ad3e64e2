"""Watch: one stream tells of changes in many accounts, at whatever replica is here.

Nothing is queued but which accounts have changed: an event is made when its stream can take it,
from what was told last and what is there now. So a slow reader gets fewer events and misses none,
and a stream costs no more memory than its subscriptions. One that takes nothing at all for
base.SLOW_READER_S is told so (OVERLOADED) and ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass

from mailraft.node.engine import keys
from mailraft.node.interfaces import Delete, DeleteRange, Effect, Put
from mailraft.node.mailstore import changes, queries
from mailraft.node.mailstore.account_change import prefix_of
from mailraft.node.mailstore.errors import Refused
from mailraft.node.shard import Replica
from mailraft.v1 import change_pb2, common_pb2
from mailraft.wire import access, errors, tokens

from . import convert, levels, validate
from .base import Call, Shards, to_error
from .changes import TYPES, at_least, kinds_of, place_of, state, token_at

ACCOUNTS_PER_STREAM_MAX = 10_000
# Subscriptions that were answered and not read: past it, requests wait.
ANSWERS_WAITING_MAX = 1_000
HEARTBEAT_S = 15.0
# How often a stream sees to it that its replicas still are what they were.
CHECK_S = 1.0
SUBSCRIBE_DEADLINE_S = 5.0


@dataclass(slots=True)
class _Subscription:
    replica: Replica
    key: bytes  # of the account's record
    since: tokens.State  # for its incarnation
    place: changes.Place  # up to where the stream has told
    kinds: frozenset[changes.Kind] | None
    view: object  # the one that was read last: another one begins with a snapshot


class Watch:
    def __init__(self, shards: Shards, stopping: asyncio.Event) -> None:
        self._shards, self._stopping = shards, stopping
        self._hub = _Hub()

    async def Watch(
        self, requests: AsyncIterator[change_pb2.WatchRequest]
    ) -> AsyncGenerator[change_pb2.WatchResponse, None]:
        """Until the caller ends its side, or this node stops (SHUTTING_DOWN)."""
        stream = _Stream(self._shards, self._hub)
        reading = asyncio.ensure_future(stream.read(requests))
        stop = asyncio.ensure_future(self._stopping.wait())
        ends = (reading, stop)
        for end in ends:
            end.add_done_callback(lambda _: stream.wake())
        said_s = self._shards.now_s()
        try:
            while not stop.done():
                response = stream.next()
                if response is None and reading.done():
                    reading.result()  # raises what reading raised
                    return
                if response is None and self._shards.now_s() - said_s >= HEARTBEAT_S:
                    heartbeat = change_pb2.WatchHeartbeat(time_ms=self._shards.wall_ms())
                    response = change_pb2.WatchResponse(heartbeat=heartbeat)
                if response is None:
                    await stream.wait(CHECK_S)
                    continue
                yield response
                said_s = self._shards.now_s()
            raise errors.ShuttingDownError("this node stops")
        finally:
            for end in ends:
                end.cancel()
            stream.close()


class _Hub:
    """Which streams want to hear of an account; listens to the replicas of those alone."""

    def __init__(self) -> None:
        self._streams: dict[bytes, dict[_Stream, str]] = {}  # by the key of the account's record
        self._listening: dict[Replica, tuple[Callable[[], None], int]] = {}

    def add(self, stream: _Stream, account_id: str, subscription: _Subscription) -> None:
        self._streams.setdefault(subscription.key, {})[stream] = account_id
        end, count = self._listening.get(subscription.replica, (None, 0))
        if end is None:
            end = subscription.replica.listen(self._applied)
        self._listening[subscription.replica] = end, count + 1

    def remove(self, stream: _Stream, subscription: _Subscription) -> None:
        streams = self._streams[subscription.key]
        del streams[stream]
        if not streams:
            del self._streams[subscription.key]
        end, count = self._listening.pop(subscription.replica)
        if count > 1:
            self._listening[subscription.replica] = end, count - 1
        else:
            end()

    def _applied(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Put(key) | Delete(key):
                    if keys.is_account_record(key):
                        self._touch(key)
                case DeleteRange(start, end) if start < keys.SHARD_ROWS:
                    for key in [key for key in self._streams if start <= key < end]:
                        self._touch(key)

    def _touch(self, key: bytes) -> None:
        for stream, account_id in self._streams.get(key, {}).items():
            stream.touch(account_id)


class _Stream:
    """One caller's subscriptions, and what it is to be told next."""

    def __init__(self, shards: Shards, hub: _Hub) -> None:
        self._shards, self._hub = shards, hub
        self._subscriptions: dict[str, _Subscription] = {}
        self._answers: deque[change_pb2.WatchResponse] = deque()
        self._touched: dict[str, None] = {}  # in the order of their first change
        self._due, self._room = asyncio.Event(), asyncio.Event()
        self._checked_s = shards.now_s()

    def wake(self) -> None:
        self._due.set()

    def touch(self, account_id: str) -> None:
        self._touched[account_id] = None
        self._due.set()

    async def wait(self, timeout_s: float) -> None:
        """Until there may be something to tell, and not much longer than timeout_s."""
        self._due.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._due.wait()
        except TimeoutError:
            pass

    def close(self) -> None:
        for subscription in self._subscriptions.values():
            self._hub.remove(self, subscription)
        self._subscriptions.clear()

    # ---- what the caller asks

    async def read(self, requests: AsyncIterator[change_pb2.WatchRequest]) -> None:
        async for request in requests:
            while len(self._answers) >= ANSWERS_WAITING_MAX:
                self._room.clear()
                await self._room.wait()
            try:
                match request.WhichOneof("action"):
                    case "subscribe":
                        await self._subscribe(request.account_id, request.subscribe)
                    case "unsubscribe":
                        self._end(request.account_id, None)
                    case _:
                        raise validate.bad("action", "subscribe or unsubscribe")
            except Exception as error:  # noqa: BLE001 - to_error logs what is a bug
                self._end(request.account_id, to_error(error, "a subscription of Watch"))

    async def _subscribe(self, account_id: str, asked: change_pb2.WatchSubscribe) -> None:
        validate.account_id(account_id)
        access.check_account(account_id)
        known = account_id in self._subscriptions
        if not known and len(self._subscriptions) >= ACCOUNTS_PER_STREAM_MAX:
            metadata = {"limit": "watched_accounts_per_stream", "max": str(ACCOUNTS_PER_STREAM_MAX)}
            raise errors.LimitReachedError(
                f"at most {ACCOUNTS_PER_STREAM_MAX} accounts a stream", metadata=metadata
            )
        kinds = kinds_of(asked.types, "types")
        since = state(asked.since_state, "since_state") if asked.since_state else None
        at = await self._reading(account_id, since)
        # From here to the end nothing is awaited, so no change can come between.
        if since is None:
            since = tokens.decode_state(at.state)
        place = place_of(since)
        changes.check_held(at.view, account_id, place)
        self._drop(account_id)
        key = keys.account_record(prefix_of(account_id))
        subscription = _Subscription(at.replica, key, since, place, kinds, at.replica.view)
        self._subscriptions[account_id] = subscription
        self._hub.add(self, account_id, subscription)
        change = change_pb2.WatchChange(state=token_at(since, place), subscribed=True)
        self._answer(change_pb2.WatchResponse(account_id=account_id, change=change))
        self.touch(account_id)

    async def _reading(self, account_id: str, since: tokens.State | None) -> levels.Reading:
        call = Call(self._shards.now_s() + SUBSCRIBE_DEADLINE_S)
        options = common_pb2.ReadOptions(consistency=common_pb2.CONSISTENCY_SESSION)
        if since is not None:
            return await levels.read(self._shards, account_id, at_least(options, since), call)
        try:
            return await levels.read(self._shards, account_id, options, call)
        except (errors.AccountNotFoundError, Refused):
            # It may have been created where this replica has not got to yet.
            options.consistency = common_pb2.CONSISTENCY_LINEARIZABLE
            return await levels.read(self._shards, account_id, options, call)

    def _end(self, account_id: str, error: errors.MailraftError | None) -> None:
        self._drop(account_id)
        end = change_pb2.WatchEnd()
        if error is not None:
            end.code, end.reason, end.message = error.code.value[0], error.reason, error.message
        self._answer(change_pb2.WatchResponse(account_id=account_id, end=end))

    def _drop(self, account_id: str) -> None:
        subscription = self._subscriptions.pop(account_id, None)
        if subscription is not None:
            self._hub.remove(self, subscription)
        self._touched.pop(account_id, None)

    def _answer(self, response: change_pb2.WatchResponse) -> None:
        self._answers.append(response)
        self._due.set()

    # ---- what it is told

    def next(self) -> change_pb2.WatchResponse | None:
        """What to tell now; None when there is nothing."""
        now_s = self._shards.now_s()
        if now_s - self._checked_s >= CHECK_S:
            self._checked_s = now_s
            self._check()
        while self._answers or self._touched:
            if self._answers:
                response = self._answers.popleft()
                self._room.set()
                return response
            account_id = next(iter(self._touched))
            del self._touched[account_id]
            try:
                change = self._change(account_id)
            except Exception as error:  # noqa: BLE001 - to_error logs what is a bug
                self._end(account_id, to_error(error, "Watch"))
                continue
            if change is not None:
                return change_pb2.WatchResponse(account_id=account_id, change=change)
        return None

    def _check(self) -> None:
        """Replicas that stopped or went end their subscriptions; a new view may hold anything."""
        here = set(self._shards.replicas())
        seen = {(each.replica, id(each.view)) for each in self._subscriptions.values()}
        if all(r in here and not r.stopped and view == id(r.view) for r, view in seen):
            return
        for account_id, subscription in list(self._subscriptions.items()):
            replica = subscription.replica
            if replica.stopped or replica not in here:
                self._end(account_id, errors.ShuttingDownError("the replica here stopped"))
            elif subscription.view is not replica.view:
                self.touch(account_id)

    def _change(self, account_id: str) -> change_pb2.WatchChange | None:
        subscription = self._subscriptions[account_id]
        view = subscription.view = subscription.replica.view
        now = convert.state_of(queries.account_state(view, account_id))
        if now.incarnation != subscription.since.incarnation:
            raise errors.StateTooOldError("the account began another life")
        if now.modseq <= subscription.place.modseq:
            return None
        told = changes.summary(view, account_id, subscription.place)
        subscription.place = changes.Place(told.modseq)
        kinds = frozenset(TYPES) if told.kinds is None else told.kinds
        if subscription.kinds is not None:
            kinds &= subscription.kinds
        if not kinds:
            return None
        change = change_pb2.WatchChange(
            state=token_at(subscription.since, subscription.place),
            types=sorted(TYPES[kind] for kind in kinds),
        )
        if common_pb2.OBJECT_TYPE_MAILBOX in change.types and told.mailboxes is not None:
            for number in sorted(told.mailboxes):
                change.mailboxes.add(
                    mailbox_id=tokens.mailbox_id(number), highest_modseq=told.mailboxes[number]
                )
        return change

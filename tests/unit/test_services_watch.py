"""Watch over a real gRPC stream."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from tests.unit.test_services_node import (
    ALICE,
    BOB,
    ELSEWHERE,
    MAIL,
    OTHER_NODE,
    Calls,
    account_in,
    delivery,
    refusal,
    request_id,
    running,
)

from mailraft.node.interfaces import replica_id
from mailraft.node.services import base, watch
from mailraft.v1 import (
    account_pb2,
    change_pb2,
    common_pb2,
    delivery_pb2,
    error_pb2,
    mailbox_pb2,
)
from mailraft.wire import errors, tokens

Request = change_pb2.WatchRequest
Response = change_pb2.WatchResponse
Reason = error_pb2.ErrorReason
NO_DELIVERY = error_pb2.ERROR_REASON_UNSPECIFIED


class Stream:
    """One Watch call; every wait in it has an end."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def subscribe(self, account_id: str, since: str = "", *types: Any) -> None:
        asked = change_pb2.WatchSubscribe(since_state=since, types=types)
        await self.call.write(Request(account_id=account_id, subscribe=asked))

    async def unsubscribe(self, account_id: str) -> None:
        asked = change_pb2.WatchUnsubscribe()
        await self.call.write(Request(account_id=account_id, unsubscribe=asked))

    async def next(self) -> Response:
        async with asyncio.timeout(5):
            response = await self.call.read()
        assert isinstance(response, Response), response
        return response

    async def change(self) -> tuple[str, change_pb2.WatchChange]:
        response = await self.next()
        assert response.WhichOneof("event") == "change", response
        return response.account_id, response.change

    async def end(self) -> tuple[str, int]:
        response = await self.next()
        assert response.WhichOneof("event") == "end", response
        return response.account_id, response.end.reason

    async def silent(self) -> None:
        """Nothing comes for a moment."""
        reading = asyncio.ensure_future(self.call.read())
        done, _ = await asyncio.wait([reading], timeout=0.15)
        assert not done, reading.result()
        reading.cancel()


@asynccontextmanager
async def watching(calls: Calls) -> AsyncIterator[Stream]:
    """A Watch call that ends with the block."""
    call = calls.watch()
    try:
        yield Stream(call)
    finally:
        call.cancel()


async def test_one_stream_tells_of_many_accounts() -> None:
    """Each subscription begins with where it begins; then each change comes with its state, what
    kinds changed, and which mailboxes.
    """
    async with running() as (_, calls), watching(calls) as stream:
        states = {each: (await calls.create(each)).state for each in (ALICE, BOB)}
        for each in (ALICE, BOB):
            await stream.subscribe(each)
            account_id, first = await stream.change()
            assert (account_id, first.state, first.subscribed) == (each, states[each], True)
        [[to_bob, to_alice]] = await calls.deliver(delivery(MAIL, BOB, ALICE))
        told = dict([await stream.change(), await stream.change()])
        assert told[BOB].state == to_bob.state
        assert told[ALICE].state == to_alice.state
        assert common_pb2.OBJECT_TYPE_MESSAGE in told[ALICE].types
        [inbox] = told[ALICE].mailboxes
        listed = await calls.mailboxes.ListMailboxes(
            mailbox_pb2.ListMailboxesRequest(account_id=ALICE)
        )
        assert inbox.mailbox_id == listed.mailboxes[0].id
        assert inbox.highest_modseq == listed.mailboxes[0].highest_modseq


async def test_a_stream_resumes_where_it_was() -> None:
    """since_state: what was missed comes as one change; from the state of now nothing comes."""
    async with running() as (_, calls):
        before = (await calls.create(ALICE)).state
        last = delivery_pb2.RecipientResult()
        for _ in range(3):
            [[last]] = await calls.deliver(delivery(MAIL, ALICE))
        async with watching(calls) as stream:
            await stream.subscribe(ALICE, before)
            _, first = await stream.change()
            assert (first.state, first.subscribed) == (before, True)
            _, missed = await stream.change()
            assert (missed.state, missed.subscribed) == (last.state, False)
            await stream.subscribe(ALICE, missed.state)
            _, again = await stream.change()
            assert again.subscribed
            await stream.silent()


async def test_only_the_kinds_that_are_asked_for() -> None:
    """A change of other kinds is not told, and the next one of these is."""
    async with running() as (_, calls), watching(calls) as stream:
        await calls.create(ALICE)
        await stream.subscribe(ALICE, "", common_pb2.OBJECT_TYPE_ACCOUNT)
        await stream.change()
        await calls.deliver(delivery(MAIL, ALICE))
        await stream.silent()
        await stream.subscribe(ALICE, "", common_pb2.OBJECT_TYPE_MESSAGE)
    async with running() as (_, calls), watching(calls) as stream:
        await calls.create(ALICE)
        await stream.subscribe(ALICE, "", common_pb2.OBJECT_TYPE_MESSAGE)
        await stream.change()
        await calls.deliver(delivery(MAIL, ALICE))
        _, change = await stream.change()
        assert list(change.types) == [common_pb2.OBJECT_TYPE_MESSAGE]
        assert not change.mailboxes


async def test_what_is_unsubscribed_is_told_no_more() -> None:
    """It ends with code 0, the others go on, and the node listens no longer than it must."""
    async with running() as (node, calls), watching(calls) as stream:
        for each in (ALICE, BOB):
            await calls.create(each)
            await stream.subscribe(each)
            await stream.change()
        await stream.unsubscribe(ALICE)
        assert await stream.end() == (ALICE, NO_DELIVERY)
        await calls.deliver(delivery(MAIL, ALICE, BOB))
        account_id, _ = await stream.change()
        assert account_id == BOB
        await stream.silent()
        assert not node.shard_of(ALICE).replica._listeners
    async with asyncio.timeout(5):
        while node.shard_of(BOB).replica._listeners:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


async def test_an_account_that_cannot_be_watched_ends_alone() -> None:
    """WatchEnd names the reason; the stream goes on for others."""
    async with running() as (_, calls), watching(calls) as stream:
        state = tokens.decode_state((await calls.create(ALICE)).state)
        older = tokens.encode_state(tokens.State(0, state.creation_index - 1, 1))
        cases = {
            ("nobody" * 50, ""): errors.BadFieldError.reason,
            (account_in(0, "nobody"), ""): errors.AccountNotFoundError.reason,
            (ELSEWHERE, ""): errors.StaleRouteError.reason,
            (ALICE, "what"): errors.BadFieldError.reason,
            (ALICE, older): errors.StateTooOldError.reason,
        }
        for (account_id, since), reason in cases.items():
            await stream.subscribe(account_id, since)
            assert await stream.end() == (account_id, reason)
        await stream.call.write(Request(account_id=ALICE))
        assert await stream.end() == (ALICE, errors.BadFieldError.reason)
        await stream.subscribe(ALICE)
        assert (await stream.change())[1].subscribed


async def test_history_that_is_gone_is_told() -> None:
    """STATE_TOO_OLD, never a silent gap, when the changes since the state are not held any more."""
    async with running() as (node, calls), watching(calls) as stream:
        before = (await calls.create(ALICE)).state
        await calls.deliver(delivery(MAIL, ALICE))
        rows = node.shard_of(ALICE).view.rows
        first = min(key for key in rows if b"alice" in key and key[3 + key[2]] == 7)
        del rows[first]
        node.shard_of(ALICE).view.apply(())
        del rows[min(key for key in rows if b"alice" in key and key[3 + key[2]] == 7)]
        node.shard_of(ALICE).view.apply(())
        await stream.subscribe(ALICE, before)
        assert await stream.end() == (ALICE, errors.StateTooOldError.reason)


async def test_a_follower_tells_too() -> None:
    """Applied entries wake a stream at any replica, not at the leader alone."""
    async with running() as (node, calls), watching(calls) as stream:
        await calls.create(ALICE)
        shard = node.shard_of(ALICE)
        await stream.subscribe(ALICE)
        await stream.change()
        shard.stalled = True
        delivering = asyncio.ensure_future(calls.deliver(delivery(MAIL, ALICE)))
        while not shard.replica._queue:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        shard.stalled = False
        shard.step()
        shard.follow(replica_id(OTHER_NODE, 1))
        _, change = await stream.change()
        [[stored]] = await delivering
        assert change.state == stored.state


async def test_a_stream_that_is_idle_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat comes when nothing else was told for a while."""
    monkeypatch.setattr(watch, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(watch, "CHECK_S", 0.01)
    async with running() as (_, calls), watching(calls) as stream:
        await stream.call.write(Request(account_id=BOB))
        await stream.end()
        response = await stream.next()
        assert response.WhichOneof("event") == "heartbeat"
        assert response.account_id == ""


async def test_a_bounded_number_of_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    """LIMIT_REACHED for the account beyond it; one that is subscribed already may be again."""
    monkeypatch.setattr(watch, "ACCOUNTS_PER_STREAM_MAX", 1)
    async with running() as (_, calls), watching(calls) as stream:
        for each in (ALICE, BOB):
            await calls.create(each)
        for _ in range(2):
            await stream.subscribe(ALICE)
            assert (await stream.change())[1].subscribed
        await stream.subscribe(BOB)
        assert await stream.end() == (BOB, errors.LimitReachedError.reason)


async def test_a_slow_reader_gets_fewer_changes_and_misses_none() -> None:
    """Changes that were not taken are told as one, with the newest state."""
    async with running() as (node, calls):
        before = (await calls.create(ALICE)).state
        hub = watch._Hub()
        stream = watch._Stream(node, hub)

        async def requests() -> AsyncIterator[Request]:
            asked = change_pb2.WatchSubscribe(since_state=before)
            yield Request(account_id=ALICE, subscribe=asked)

        await stream.read(requests())
        last = delivery_pb2.RecipientResult()
        for _ in range(50):
            [[last]] = await calls.deliver(delivery(MAIL, ALICE))
        first, second = stream.next(), stream.next()
        assert first is not None
        assert first.change.subscribed
        assert second is not None
        assert second.change.state == last.state
        assert stream.next() is None
        stream.close()


async def test_a_reader_that_takes_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream ends with OVERLOADED, so that it knows to subscribe again from its last states."""
    monkeypatch.setattr(base, "SLOW_READER_S", 0.2)
    monkeypatch.setattr(watch, "ANSWERS_WAITING_MAX", 10_000)

    async def read_all(stream: Stream) -> None:
        while True:
            await stream.next()

    async with running() as (_, calls), watching(calls) as stream:
        # Ends are answers of their own, so they cannot be joined; the name makes them long.
        # What gRPC holds in its own buffers counts as taken.
        for _ in range(8_000):
            await stream.subscribe("n" * 1_000)
        await asyncio.sleep(1)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await read_all(stream)
        assert isinstance(errors.from_rpc_error(failed.value), errors.OverloadedError)


async def test_a_node_that_stops_says_so() -> None:
    """The stream ends with SHUTTING_DOWN; a replica that stops alone ends its accounts."""
    async with running() as (node, calls), watching(calls) as stream:
        for each in (ALICE, BOB):
            await calls.create(each)
            await stream.subscribe(each)
            await stream.change()
        node.shard_of(ALICE).replica.stop("test")
        assert await stream.end() == (ALICE, errors.ShuttingDownError.reason)
        assert node.stopping is not None
        node.stopping.set()
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stream.call.read()
        assert isinstance(errors.from_rpc_error(failed.value), errors.ShuttingDownError)


# ---- WatchShard ----------------------------------------------------------------------------------


class Shard:
    """One WatchShard call."""

    def __init__(self, calls: Calls, shard: int, cursor: str = "") -> None:
        request = change_pb2.WatchShardRequest(shard=shard, cursor=cursor)
        self.call = calls.messages.WatchShard(request)
        self.cursor = cursor

    async def begun(self) -> None:
        """The first response, which tells where the stream begins."""
        await self._next()

    async def _next(self) -> change_pb2.WatchShardResponse:
        async with asyncio.timeout(5):
            response = await self.call.read()
        assert isinstance(response, change_pb2.WatchShardResponse), response
        self.cursor = response.cursor
        return response

    async def round(self) -> list[tuple[str, str, int]]:
        """Account, id and kind of what is told until the cursor goes on."""
        found: list[tuple[str, str, int]] = []
        while True:
            response = await self._next()
            found += [(each.account_id, each.id, each.kind) for each in response.changes]
            if not response.changes:
                return found


async def test_an_indexer_hears_of_every_change_of_its_shard() -> None:
    """Of all accounts of the shard and of no other; it resumes by its cursor, at any replica, and
    hears again of at most the last moment.
    """
    other = account_in(0, "other")
    async with running() as (node, calls):
        await calls.create(ALICE)
        shard = Shard(calls, 0)
        await shard.begun()
        node.time_ms += 10
        await calls.create(other)
        assert (other, other, change_pb2.CHANGE_KIND_CREATED) in await shard.round()
        node.time_ms += 10
        await calls.create(BOB)
        [[to_alice, _]] = await calls.deliver(delivery(MAIL, ALICE, BOB))
        told = await shard.round()
        assert (ALICE, to_alice.message_id, change_pb2.CHANGE_KIND_CREATED) in told
        assert {account for account, _, _ in told} == {ALICE}
        shard.call.cancel()
        node.time_ms += 10
        [[later]] = await calls.deliver(delivery(MAIL, other))
        again = Shard(calls, 0, shard.cursor)
        await again.begun()
        told = await again.round()
        assert (other, later.message_id, change_pb2.CHANGE_KIND_CREATED) in told
        assert (other, other, change_pb2.CHANGE_KIND_CREATED) not in told
        deleting = account_pb2.DeleteAccountRequest(
            account_id=other, request_id=request_id(), force=True
        )
        node.time_ms += 10
        await calls.accounts.DeleteAccount(deleting)
        assert (other, other, change_pb2.CHANGE_KIND_DESTROYED) in await again.round()
        again.call.cancel()


async def test_a_shard_that_cannot_be_watched() -> None:
    """Not here, a cursor of another shard or of long ago, a state of one account."""
    month_ms = 40 * 24 * 3600 * 1000
    async with running() as (node, calls):
        await calls.create(ALICE)
        shard = Shard(calls, 0)
        await shard.begun()
        shard.call.cancel()
        for request, kind in (
            (change_pb2.WatchShardRequest(shard=2), errors.ShardNotFoundError),
            (change_pb2.WatchShardRequest(shard=1, cursor=shard.cursor), errors.BadFieldError),
            (change_pb2.WatchShardRequest(shard=0, cursor="x"), errors.BadFieldError),
            (
                change_pb2.WatchShardRequest(read_options=common_pb2.ReadOptions(min_state="x")),
                errors.BadFieldError,
            ),
        ):
            assert isinstance(await refusal(calls.messages.WatchShard(request).read()), kind)
        node.time_ms += month_ms
        await calls.deliver(delivery(MAIL, ALICE))
        old = change_pb2.WatchShardRequest(shard=0, cursor=shard.cursor)
        error = await refusal(calls.messages.WatchShard(old).read())
        assert isinstance(error, errors.StateTooOldError)

"""The client's calls that change and follow mail, against the handlers of a real node."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing

import pytest
from tests.unit.test_services_node import ALICE, BOB, MAIL, FakeNode, running

from mailraft.client import AsyncClient, Client, ObjectType, errors
from mailraft.client import ids as client_ids
from mailraft.client.watching import PAUSE_MAX_S, Watching
from mailraft.node.services import watch as node_watch
from mailraft.node.services import watch_shard as node_watch_shard
from mailraft.v1 import change_pb2, common_pb2, error_pb2, message_service_pb2, search_pb2


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[FakeNode, AsyncClient, str]]:
    """A node in the present, a client of it, and where it is."""
    async with running() as (node, _):
        node.time_ms = time.time_ns() // 1_000_000
        target = f"127.0.0.1:{node.port}"
        async with AsyncClient(target, insecure=True, direct=False) as mail:
            yield node, mail, target


def uid_set(mailbox_id: str, uid_validity: int, *ranges: int) -> common_pb2.UidSet:
    """UIDs of a mailbox."""
    return common_pb2.UidSet(mailbox_id=mailbox_id, uid_validity=uid_validity, ranges=ranges)


async def test_messages_are_changed_moved_and_brought_back() -> None:
    """Keywords, memberships, moves, copies, expunge, undelete, by ids and by UIDs."""
    async with connected() as (_, mail, _):
        await mail.create_account(ALICE)
        inbox = await mail.get_mailbox(ALICE, "INBOX")
        box = await mail.create_mailbox(ALICE, "Box")
        stored = await mail.append(ALICE, [MAIL, MAIL + b"2", MAIL + b"3"])
        ids = [each.message_id for each in stored]
        uids = uid_set(inbox.id, inbox.uid_validity, 1, 2)
        changed = await mail.modify_keywords(ALICE, uids, add=["$seen"], deleted=True)
        assert [(each.uid, each.deleted) for each in changed.changed] == [(1, True), (2, True)]
        refused = await mail.modify_keywords(ALICE, ids, replace=[], unchanged_since=1)
        assert list(refused.modified_ids) == ids
        marked = await mail.update_memberships(
            ALICE, [ids[2]], add=[box.id], deleted={box.id: True}
        )
        assert len(marked.changed[0].memberships) == 2
        copied = await mail.copy_messages(ALICE, [ids[0]], box.id, duplicate=True)
        assert copied.copied[0].new_message_id
        moved = await mail.move_messages(ALICE, [ids[1]], box.id, source=inbox.id)
        assert moved.moved[0].mailbox_id == box.id
        gone = await mail.expunge_messages(
            ALICE, uid_set(inbox.id, inbox.uid_validity, 1, 2**32 - 1), only_deleted=True
        )
        assert list(gone.destroyed_ids) == [ids[0]]
        back = await mail.undelete_messages(ALICE, [ids[0]], to="INBOX")
        assert [each.id for each in back.messages] == [ids[0]]
        since = message_service_pb2.ExpungedSince(mailbox_id=inbox.id)
        assert not (await mail.undelete_messages(ALICE, since, validate_only=True)).messages
        renamed = await mail.update_mailbox(ALICE, box.id, name="Case", sort_order=0)
        assert (renamed.name, renamed.id) == ("Case", box.id)
        with pytest.raises(errors.MailboxNotEmptyError):
            await mail.delete_mailbox(ALICE, box.id)
        await mail.delete_mailbox(ALICE, box.id, force=True, etag=renamed.etag)
        assert await mail.list_uids(ALICE) == [(3, 4)]
        with pytest.raises(errors.AccountNotEmptyError):
            await mail.delete_account(ALICE)
        await mail.delete_account(ALICE, force=True)
        with pytest.raises(errors.AccountNotFoundError):
            await mail.get_account(ALICE)


async def test_many_uids_are_done_in_steps() -> None:
    """What one command does not reach is sent again, under an id that follows from the first: the
    replies are one, and the whole can be repeated.
    """
    async with connected() as (node, mail, _):
        await mail.create_account(ALICE)
        inbox = await mail.get_mailbox(ALICE, "INBOX")
        for start in range(0, 2_100, 150):
            await mail.append(ALICE, [b"%d" % number for number in range(start, start + 150)])
        uids = uid_set(inbox.id, inbox.uid_validity, 1, 2**32 - 1)
        request_id = client_ids.request_ids.next()
        entries = node.shard_of(ALICE).entries
        done = await mail.modify_keywords(ALICE, uids, add=["a"], request_id=request_id)
        assert [each.uid for each in done.changed] == list(range(1, 2_101))
        assert not done.HasField("remaining")
        assert node.shard_of(ALICE).entries == entries + 3
        again = await mail.modify_keywords(ALICE, uids, add=["a"], request_id=request_id)
        assert again.changed == done.changed


def test_ids_that_follow() -> None:
    """Always the same, all different, UUIDv7 of the first one's time."""
    first = client_ids.request_ids.next()
    found = [client_ids.following_id(first, number) for number in range(100)]
    assert found[0] == first
    assert len(set(found)) == 100
    assert found == [client_ids.following_id(first, number) for number in range(100)]
    assert all(each[:6] == first[:6] and each[6] >> 4 == 7 and each[8] >> 6 == 2 for each in found)


async def test_changes_threads_searches_and_structures() -> None:
    """What changed, what belongs together, what matches, and where the parts are."""
    async with connected() as (_, mail, _):
        state = await _state_of(mail)
        inbox = await mail.get_mailbox(ALICE, "INBOX")
        stored = await mail.append(ALICE, [MAIL, MAIL.replace(b"hello", b"bye")])
        told = await mail.list_changes(ALICE, state, types=[ObjectType.MESSAGE], page_size=1)
        assert told.more
        assert list(told.changes[0].created) == [stored[0].message_id]
        rest = await mail.list_changes(ALICE, told.new_state, types=[ObjectType.MESSAGE])
        assert list(rest.changes[0].created) == [stored[1].message_id]
        changed = await mail.list_mailbox_changes(ALICE, inbox.id, inbox.uid_validity, 0)
        assert [each.uid for each in changed.changed] == [1, 2]
        [thread] = await mail.get_threads(ALICE, [stored[0].thread_id])
        assert len(thread.message_ids) == 2
        only = search_pb2.MessageFilter(
            text=search_pb2.TextMatch(field=search_pb2.TEXT_FIELD_SUBJECT, value="BYE")
        )
        found = [each.id async for each in mail.iter_search(ALICE, only, page_size=1)]
        assert found == [stored[1].message_id]
        part = (await mail.get_structure(ALICE, stored[0].message_id)).root
        body = await mail.fetch_body(
            ALICE,
            stored[0].message_id,
            offset=part.body_offset_bytes,
            length=part.body_size_bytes,
        )
        assert body == b"Body\r\n"


async def _state_of(mail: AsyncClient) -> str:
    await mail.create_account(ALICE)
    return mail.session.state_of(ALICE)


async def test_a_watch_tells_of_every_change() -> None:
    """Where each account begins, then what changes; an account that cannot be watched is told once
    and left.
    """
    async with connected() as (_, mail, _):
        for each in (ALICE, BOB):
            await mail.create_account(each)
        stream = mail.watch([ALICE, BOB, "no" * 200], types=[ObjectType.MESSAGE])
        async with asyncio.timeout(10), aclosing(stream):
            first = [await anext(stream) for _ in range(3)]
            assert sorted(each.WhichOneof("event") or "" for each in first) == [
                "change",
                "change",
                "end",
            ]
            receipt = await mail.deliver(MAIL, to=[BOB])
            event = await anext(stream)
            assert (event.account_id, event.change.state) == (BOB, receipt.recipients[0].state)
        ended = mail.watch(["x" * 300])
        async with asyncio.timeout(10):
            assert [each.end.reason async for each in ended] == [error_pb2.ERROR_REASON_BAD_FIELD]


async def test_a_watch_outlives_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that breaks is opened again and goes on from the last states: no change is left out
    and no beginning is told twice.
    """
    monkeypatch.setattr(node_watch, "CHECK_S", 0.02)
    async with connected() as (node, mail, _):
        await mail.create_account(ALICE)
        async with asyncio.timeout(20), aclosing(mail.watch([ALICE])) as stream:
            assert (await anext(stream)).change.subscribed
            assert node.stopping is not None
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.05)
            node.stopping.set()
            await asyncio.sleep(0.1)
            receipt = await mail.deliver(MAIL, to=[ALICE])
            node.stopping.clear()
            event = await waiting
            assert event.change.state == receipt.recipients[0].state
            assert not event.change.subscribed


async def test_the_twin_watches_too() -> None:
    """Client does it with threads, and closing the generator ends them."""
    async with connected() as (node, mail, target):
        await mail.create_account(ALICE)

        def scenario() -> list[change_pb2.WatchResponse]:
            with (
                Client(target, insecure=True, direct=False) as blocking,
                closing(blocking.watch({ALICE: ""})) as stream,
            ):
                first = next(stream)
                blocking.deliver(MAIL, to=[ALICE])
                return [first, next(stream)]

        first, second = await asyncio.to_thread(scenario)
        assert (first.change.subscribed, second.change.subscribed) == (True, False)
        async with asyncio.timeout(10):
            while node.shard_of(ALICE).replica._listeners:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)


async def _told(
    stream: AsyncGenerator[change_pb2.WatchShardResponse, None], wanted: str
) -> tuple[str, set[str]]:
    """What is told until an id has come, and the cursor behind that."""
    found: set[str] = set()
    async with asyncio.timeout(20):
        async for response in stream:
            found |= {each.id for each in response.changes}
            if wanted in found and not response.changes:
                return response.cursor, found
    raise AssertionError("the stream ended")


async def test_a_shard_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over streams that break, and by its cursor later: no change is left out."""
    monkeypatch.setattr(node_watch_shard, "CHECK_S", 0.02)
    async with connected() as (node, mail, _):
        await mail.create_account(ALICE)
        async with aclosing(mail.watch_shard(0)) as stream:
            assert (await anext(stream)).cursor
            node.time_ms += 10
            [one] = (await mail.deliver(MAIL, to=[ALICE])).recipients
            await _told(stream, one.message_id)
            assert node.stopping is not None
            node.stopping.set()
            await asyncio.sleep(0.1)
            node.time_ms += 10
            [two] = (await mail.deliver(MAIL, to=[ALICE])).recipients
            node.stopping.clear()
            cursor, _ = await _told(stream, two.message_id)
        node.time_ms += 10
        [three] = (await mail.deliver(MAIL, to=[ALICE])).recipients
        async with aclosing(mail.watch_shard(0, cursor)) as stream:
            _, told = await _told(stream, three.message_id)
            assert one.message_id not in told
        async with aclosing(mail.watch_shard(9)) as stream:
            with pytest.raises(errors.ShardNotFoundError):
                await anext(stream)


async def test_the_twin_follows_a_shard_too() -> None:
    """The same call of Client."""
    async with connected() as (node, mail, target):
        await mail.create_account(ALICE)

        def scenario() -> bool:
            with (
                Client(target, insecure=True, direct=False) as blocking,
                closing(blocking.watch_shard(0)) as stream,
            ):
                next(stream)
                node.time_ms += 10
                [one] = blocking.deliver(MAIL, to=[ALICE]).recipients
                return any(
                    one.message_id in {each.id for each in response.changes} for response in stream
                )

        async with asyncio.timeout(20):
            assert await asyncio.to_thread(scenario)


def _end(account_id: str, error: errors.MailraftError) -> change_pb2.WatchResponse:
    end = change_pb2.WatchEnd(code=error.code.value[0], reason=error.reason)
    return change_pb2.WatchResponse(account_id=account_id, end=end)


def test_what_a_watch_remembers() -> None:
    """States, what has begun, and how long to wait; what cannot pass is raised."""
    watching = Watching({"a": "s1", "b": ""}, [])
    assert [each.subscribe.since_state for each in watching.requests()] == ["s1", ""]
    begun = change_pb2.WatchChange(state="s1", subscribed=True)
    assert watching.take(change_pb2.WatchResponse(account_id="a", change=begun))
    change = change_pb2.WatchChange(state="s2")
    assert watching.take(change_pb2.WatchResponse(account_id="a", change=change))
    assert not watching.take(change_pb2.WatchResponse(heartbeat=change_pb2.WatchHeartbeat()))
    assert watching.pause_s() == 0
    assert not watching.take(_end("a", errors.ShuttingDownError()))
    assert watching.broken
    assert [each.subscribe.since_state for each in watching.requests()] == ["s2", ""]
    assert not watching.take(change_pb2.WatchResponse(account_id="a", change=begun))
    assert watching.take(_end("b", errors.StateTooOldError()))
    assert list(watching.accounts) == ["a"]
    pauses = []
    for _ in range(20):
        watching.failed(errors.UnavailableError())
        pauses.append(watching.pause_s())
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSE_MAX_S
    with pytest.raises(errors.MethodNotAllowedError):
        watching.failed(errors.MethodNotAllowedError())
    with pytest.raises(TypeError):
        Watching("alice", [])

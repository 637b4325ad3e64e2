"""What is due is done by whoever leads, and by nobody else."""

from __future__ import annotations

import asyncio

from tests.unit.test_services_node import (
    ALICE,
    MAIL,
    START_MS,
    Calls,
    FakeNode,
    item,
    request_id,
    running,
)

from mailraft.node.housekeeper import STEPS_PER_TURN_MAX, Housekeeper
from mailraft.node.mailstore import chores
from mailraft.v1 import common_pb2, mailbox_pb2, message_pb2, message_service_pb2
from mailraft.wire import tokens

DAY_MS = 24 * 3600 * 1000


def keeper(node: FakeNode, wall_ms: int = START_MS) -> Housekeeper:
    """Of a node, at a time."""
    return Housekeeper(node.replicas, now_s=node.now_s, wall_ms=lambda: wall_ms, settle=node.settle)


async def test_a_large_mailbox_is_cleared_in_the_background() -> None:
    """The call that deletes it answers at once; in a few turns nothing of it is left."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        create = mailbox_pb2.CreateMailboxRequest(
            account_id=ALICE, request_id=request_id(), mailbox=mailbox_pb2.Mailbox(name="Large")
        )
        large = (await calls.mailboxes.CreateMailbox(create)).mailbox
        for _ in range(5):
            await calls.append(ALICE, *(item(MAIL, targets=[target(large.id)]) for _ in range(250)))
        await calls.mailboxes.DeleteMailbox(
            mailbox_pb2.DeleteMailboxRequest(
                account_id=ALICE, request_id=request_id(), mailbox_id=large.id, force=True
            )
        )
        view = node.shard_of(ALICE).view
        assert chores.due_commands(view, START_MS, 9)
        while await keeper(node).turn():
            pass
        assert not chores.due_commands(view, START_MS, 9)


async def test_a_turn_is_bounded() -> None:
    """However much is due, one turn takes a few steps, and says that there is more."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        for number in range(STEPS_PER_TURN_MAX + 2):
            await calls.append(ALICE, item(MAIL))
            await expunge(calls, number + 1)
        shard = node.shard_of(ALICE)
        before = shard.entries
        late = keeper(node, START_MS + 400 * DAY_MS)
        while await late.turn():
            assert shard.entries - before <= STEPS_PER_TURN_MAX
            before = shard.entries
        assert not chores.due_commands(shard.view, START_MS + 400 * DAY_MS, 9)


async def test_a_follower_proposes_nothing() -> None:
    """And a leader that loses its shard in the middle only stops."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        await calls.append(ALICE, item(MAIL))
        await expunge(calls, 1)
        shard = node.shard_of(ALICE)
        late = keeper(node, START_MS + 400 * DAY_MS)
        shard.follow(8 << 32 | 1)
        entries = shard.entries
        assert not await late.turn()
        assert shard.entries == entries
        shard.lead()
        shard.stalled = True
        turn = asyncio.create_task(late.turn())
        await asyncio.sleep(0.01)
        shard.follow(8 << 32 | 1)
        assert not await turn


async def test_it_runs_until_it_is_cancelled() -> None:
    """Without work it sleeps."""
    async with running() as (node, _):
        task = asyncio.create_task(keeper(node).run())
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


def target(mailbox_id: str) -> message_pb2.MailboxTarget:
    """Where to append."""
    return message_pb2.MailboxTarget(mailbox_id=mailbox_id)


async def expunge(calls: Calls, number: int) -> None:
    """By id."""
    selector = common_pb2.MessageSelector(
        ids=common_pb2.MessageIds(ids=[tokens.message_id(number)])
    )
    request = message_service_pb2.ExpungeMessagesRequest(
        account_id=ALICE, request_id=request_id(), messages=selector
    )
    await calls.messages.ExpungeMessages(request)

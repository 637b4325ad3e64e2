"""Levels of reads; accounts and mailboxes."""

import asyncio
from typing import Any

import pytest
from tests.unit.test_services_node import (
    ALICE,
    ELSEWHERE,
    MAIL,
    Calls,
    account_in,
    delivery,
    item,
    pages,
    read_at,
    refusal,
    request_id,
    running,
)

from mailraft.node.services import levels
from mailraft.v1 import (
    account_pb2,
    common_pb2,
    error_pb2,
    mailbox_pb2,
)
from mailraft.wire import errors, tokens

INBOX = common_pb2.MAILBOX_ROLE_INBOX


# ---- levels


async def get_account(
    calls: Calls, account_id: str, options: common_pb2.ReadOptions | None = None
) -> account_pb2.GetAccountResponse:
    """The cheapest read there is."""
    request = account_pb2.GetAccountRequest(account_id=account_id, read_options=options)
    response = await calls.accounts.GetAccount(request)
    assert isinstance(response, account_pb2.GetAccountResponse)
    return response


async def test_a_reply_says_how_it_was_served() -> None:
    """The level with the default filled in, the replica, the index; LINEARIZABLE costs none."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        shard = node.shard_of(ALICE)
        served = (await get_account(calls, ALICE)).served
        assert served.consistency_asked == common_pb2.CONSISTENCY_SESSION
        assert served.consistency_met == common_pb2.CONSISTENCY_SESSION
        assert (served.shard, served.replica_id) == (0, shard.replica.replica)
        assert (served.node, served.index, served.map_epoch) == ("node-7", 2, 5)
        assert served.complete
        level = read_at(common_pb2.CONSISTENCY_LINEARIZABLE)
        served = (await get_account(calls, ALICE, level)).served
        assert (served.index, served.age_ms) == (2, 0)
        shard.follow(8 << 32)
        assert isinstance(await refusal(get_account(calls, ALICE, level)), errors.NotLeaderError)


async def test_levels_that_cannot_be_kept_are_refused() -> None:
    """Never silently lowered: unknown, or with an option of another level."""
    async with running() as (_, calls):
        await calls.create(ALICE)
        for options in (
            read_at(55),  # type: ignore[arg-type]
            read_at(common_pb2.CONSISTENCY_LOCAL, replicas=2),
            read_at(common_pb2.CONSISTENCY_LOCAL, max_staleness_ms=2),
            read_at(common_pb2.CONSISTENCY_QUORUM, max_staleness_ms=2),
            read_at(common_pb2.CONSISTENCY_QUORUM, replicas=2),  # of one voter
            read_at(common_pb2.CONSISTENCY_BOUNDED),
            read_at(common_pb2.CONSISTENCY_BOUNDED, max_staleness_ms=3_600_001),
            common_pb2.ReadOptions(min_state="?"),
        ):
            error = await refusal(get_account(calls, ALICE, options))
            assert isinstance(error, errors.BadFieldError)


async def test_a_replica_can_be_demanded() -> None:
    """require_replica is served there and nowhere else, and never forwarded."""
    async with running() as (node, calls):
        await calls.create(ALICE)
        own = node.shard_of(ALICE).replica.replica
        await get_account(calls, ALICE, common_pb2.ReadOptions(require_replica=own))
        for account_id, required in ((ALICE, own + 1), (ELSEWHERE, 8 << 32 | 3)):
            options = common_pb2.ReadOptions(require_replica=required)
            error = await refusal(get_account(calls, account_id, options))
            assert isinstance(error, errors.ReplicaNotFoundError)


async def test_a_session_sees_its_own_writes() -> None:
    """A replica behind min_state waits a little, then says so; old lives are STATE_TOO_OLD."""
    async with running() as (node, calls):
        state = tokens.decode_state((await calls.create(ALICE)).state)
        shard = node.shard_of(ALICE)

        def session(modseq: int, creation_index: int = 0) -> common_pb2.ReadOptions:
            life = creation_index or state.creation_index
            wanted = tokens.State(state.restore_epoch, life, state.modseq + modseq)
            return common_pb2.ReadOptions(min_state=tokens.encode_state(wanted))

        await get_account(calls, ALICE, session(0))
        shard.follow(8 << 32)
        error = await refusal(get_account(calls, ALICE, session(1)))
        assert isinstance(error.detail, error_pb2.ReplicaLagging)
        assert error.detail.replica_id == shard.replica.replica
        error = await refusal(get_account(calls, ALICE, session(0, state.creation_index + 9)))
        assert isinstance(error, errors.ReplicaLaggingError)
        error = await refusal(get_account(calls, ALICE, session(5, state.creation_index - 1)))
        assert isinstance(error, errors.StateTooOldError)
        shard.lead()
        for level in (common_pb2.CONSISTENCY_SESSION, common_pb2.CONSISTENCY_LINEARIZABLE):
            options = session(1)
            options.consistency = level
            error = await refusal(get_account(calls, ALICE, options))
            assert isinstance(error, errors.StateTooOldError)


async def test_a_session_waits_for_what_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is applied within the wait is served, at the level asked."""
    monkeypatch.setattr(levels, "CATCH_UP_MS", 5_000)
    async with running() as (_, calls):
        state = tokens.decode_state((await calls.create(ALICE)).state)
        wanted = tokens.State(state.restore_epoch, state.creation_index, state.modseq + 1)
        options = common_pb2.ReadOptions(min_state=tokens.encode_state(wanted))
        reading = asyncio.ensure_future(get_account(calls, ALICE, options))
        await asyncio.sleep(0.05)
        [[result]] = await calls.deliver(delivery(MAIL, ALICE))
        assert (await reading).state == result.state


async def test_who_may_be_behind_denies_no_account() -> None:
    """A session's read on a follower says "no such account" only when a quorum says so too; who
    asks for what lies there is told that.
    """
    async with running() as (node, calls):
        error = await refusal(get_account(calls, ALICE))
        assert isinstance(error, errors.AccountNotFoundError)
        shard = node.shard_of(ALICE)
        shard.follow(8 << 32)  # whose leader cannot be asked
        error = await refusal(get_account(calls, ALICE))
        assert isinstance(error, errors.NotLeaderError)
        local = common_pb2.ReadOptions(consistency=common_pb2.CONSISTENCY_LOCAL)
        error = await refusal(get_account(calls, ALICE, local))
        assert isinstance(error, errors.AccountNotFoundError)


# ---- accounts and mailboxes


async def test_accounts_are_listed_shard_by_shard() -> None:
    """All that this node leads, each once, whatever the page size; others are unreachable."""
    async with running() as (node, calls):
        names = sorted(account_in(shard, f"{n}-") for shard in (0, 1) for n in range(5))
        for name in names:
            await calls.create(name)
        for size in (1, 2, 3, 5, 100):
            request = account_pb2.ListAccountsRequest(page_size=size)
            found = await pages(calls.accounts.ListAccounts, request)
            told = [each.account_id for page in found for each in page.accounts]
            assert sorted(told) == names
        request = account_pb2.ListAccountsRequest(shards=[1, 2])
        error = await refusal(calls.accounts.ListAccounts(request))
        assert isinstance(error.detail, error_pb2.StaleRoute)
        request.return_partial_success = True
        response = await calls.accounts.ListAccounts(request)
        assert (len(response.accounts), list(response.unreachable)) == (5, [2])
        node.shards[0].follow(8 << 32)
        response = await calls.accounts.ListAccounts(account_pb2.ListAccountsRequest())
        assert {each.shard for each in response.served} == {1}


async def test_mailboxes_are_listed_and_found() -> None:
    """With their counts; by id and by role."""
    async with running() as (_, calls):
        await calls.create(ALICE)
        await calls.append(ALICE, item(MAIL), item(MAIL), item(MAIL))
        for name in ("b", "a"):
            created = mailbox_pb2.CreateMailboxRequest(account_id=ALICE, request_id=request_id())
            created.mailbox.name = name
            await calls.mailboxes.CreateMailbox(created)
        request = mailbox_pb2.ListMailboxesRequest(account_id=ALICE, page_size=2)
        found = await pages(calls.mailboxes.ListMailboxes, request)
        mailboxes = [each for page in found for each in page.mailboxes]
        assert [each.name for each in mailboxes] == ["INBOX", "b", "a"]
        assert (mailboxes[0].total_messages, mailboxes[0].uid_next) == (3, 4)
        for which in ({"mailbox_id": mailboxes[0].id}, {"mailbox_role": INBOX}):
            got = await calls.mailboxes.GetMailbox(
                mailbox_pb2.GetMailboxRequest(account_id=ALICE, **which)
            )
            assert got.mailbox == mailboxes[0]
        bad_ones: tuple[dict[str, Any], ...] = ({}, {"name": "a\nb"}, {"name": "c", "role": 99})
        for fields in bad_ones:
            created = mailbox_pb2.CreateMailboxRequest(
                account_id=ALICE, request_id=request_id(), mailbox=mailbox_pb2.Mailbox(**fields)
            )
            error = await refusal(calls.mailboxes.CreateMailbox(created))
            assert isinstance(error, errors.BadFieldError)
        twin = mailbox_pb2.CreateMailboxRequest(
            account_id=ALICE, request_id=request_id(), mailbox=mailbox_pb2.Mailbox(name="a")
        )
        error = await refusal(calls.mailboxes.CreateMailbox(twin))
        assert isinstance(error, errors.MailboxExistsError)

"""All that an account shows, alike at each replica: to see that a call changed nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from mailraft.v1 import (
    account_pb2,
    blob_pb2,
    cluster_pb2,
    common_pb2,
    mailbox_pb2,
    message_pb2,
    message_service_pb2,
)
from mailraft.wire import tokens
from plain_stubs import CALL_DEADLINE_S, Door, refusal_of

INBOX = common_pb2.MAILBOX_ROLE_INBOX
PAGE_SIZE = 1_000
# Bodies that one log entry could have left behind.
ORDINALS = range(2)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Equal exactly if everything that can be read of the account is."""

    state: str
    account: bytes  # quota, what is used of it, counts
    mailboxes: tuple[bytes, ...]  # with their counts
    messages: tuple[bytes, ...]  # of the INBOX
    uids: tuple[int, ...]


async def take(router: Door, shard: cluster_pb2.Shard, account: str) -> tuple[Snapshot, int]:
    """What every replica shows now, and the log index that it was read at.

    Fails if two replicas differ.
    """
    now = common_pb2.ReadOptions(consistency=common_pb2.CONSISTENCY_LINEARIZABLE)
    request = account_pb2.GetAccountRequest(account_id=account, read_options=now)
    newest = await router.accounts.GetAccount(request, timeout=CALL_DEADLINE_S)
    seen = [
        await _at(router, account, newest.state, replica.replica_id) for replica in shard.replicas
    ]
    assert set(seen) == {seen[0]}, "replicas of one shard differ at one state"
    return seen[0], newest.served.index


@asynccontextmanager
async def unchanged(router: Door, shard: cluster_pb2.Shard, *accounts: str) -> AsyncIterator[None]:
    """Fails if what is done meanwhile changes any of the accounts, all of one shard.

    Nothing may be left behind out of sight either: no log entry of the meantime holds bytes that
    one of the accounts could read.
    """
    before = [await take(router, shard, account) for account in accounts]
    yield
    after = [await take(router, shard, account) for account in accounts]
    for account, (was, first), (is_now, last) in zip(accounts, before, after, strict=True):
        assert is_now == was, f"{account} has changed"
        for index in range(first + 1, last + 1):
            for ordinal in ORDINALS:
                assert not await _readable(router, account, tokens.blob_id(index, ordinal))


async def _at(router: Door, account: str, state: str, replica: int) -> Snapshot:
    options = common_pb2.ReadOptions(
        consistency=common_pb2.CONSISTENCY_SESSION, min_state=state, require_replica=replica
    )
    found = await router.accounts.GetAccount(
        account_pb2.GetAccountRequest(account_id=account, read_options=options),
        timeout=CALL_DEADLINE_S,
    )
    mailboxes = await router.mailboxes.ListMailboxes(
        mailbox_pb2.ListMailboxesRequest(
            account_id=account, read_options=options, page_size=PAGE_SIZE
        ),
        timeout=CALL_DEADLINE_S,
    )
    messages = await router.messages.ListMessages(
        message_service_pb2.ListMessagesRequest(
            account_id=account,
            read_options=options,
            mailbox_role=INBOX,
            page_size=PAGE_SIZE,
            view=message_pb2.MESSAGE_VIEW_BASIC,
        ),
        timeout=CALL_DEADLINE_S,
    )
    uids = await router.messages.ListUids(
        message_service_pb2.ListUidsRequest(
            account_id=account, read_options=options, mailbox_role=INBOX
        ),
        timeout=CALL_DEADLINE_S,
    )
    for reply in (found, mailboxes, messages, uids):
        assert reply.state == state, "somebody else changed the account"
        assert reply.served.replica_id == replica
    assert not mailboxes.next_page_token
    assert not messages.next_page_token
    return Snapshot(
        state,
        found.account.SerializeToString(deterministic=True),
        tuple(each.SerializeToString(deterministic=True) for each in mailboxes.mailboxes),
        tuple(each.SerializeToString(deterministic=True) for each in messages.messages),
        tuple(uids.ranges),
    )


async def _readable(router: Door, account: str, blob_id: str) -> bool:
    request = blob_pb2.GetBlobRequest(account_id=account, blob_id=blob_id)
    try:
        await router.blobs.GetBlob(request, timeout=CALL_DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        if refusal_of(error).reason == "BLOB_NOT_FOUND":
            return False
        raise
    return True

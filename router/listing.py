"""ListAccounts over every shard: one after the other, in pages that may span several."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from google.protobuf.message import Message

from mailraft.router.methods import METHODS, Method
from mailraft.router.table import RoutingTable
from mailraft.v1 import account_pb2
from mailraft.wire import errors, limits, tokens

# A page stops after this many shards, full or not: an empty cluster of 4,096 shards is no one call.
SHARDS_PER_PAGE_MAX = 64

# return_partial_success: how long one shard may hold up the page, and how much of the call's time
# is kept back to answer with what there is.
PARTIAL_SHARD_S = 1.0
PARTIAL_RESERVE_S = 0.2

# With as much of it a page stops, too: what one more shard answers at most has to fit the reply.
PAGE_BYTES = 512 * 1024

_LIST = METHODS["/mailraft.v1.AccountService/ListAccounts"]
Ask = Callable[[Method, Message, float], Awaitable[Message]]


async def list_accounts(
    ask: Ask,
    table: RoutingTable,
    request: Message,
    deadline_s: float,
    *,
    now: Callable[[], float] = time.monotonic,
) -> account_pb2.ListAccountsResponse:
    """One page; deadline_s is on the clock `now`.

    Raises BadPageTokenError, ShardNotFoundError, or why a shard cannot be read.
    """
    assert isinstance(request, account_pb2.ListAccountsRequest)
    shards = sorted(set(request.shards) or table.topology.shards)
    for shard in shards:
        table.topology.places(shard)  # raises for one that is not there
    binding: tuple[str | int, ...] = ("ListAccounts", *sorted(set(request.shards)))
    at, inner = _open(request.page_token, binding)
    room = min(request.page_size or limits.PAGE_SIZE_DEFAULT, limits.PAGE_SIZE_MAX)
    page = account_pb2.ListAccountsResponse()
    asked = 0
    for shard in [shard for shard in shards if shard >= at]:
        late = request.return_partial_success and now() > deadline_s - PARTIAL_RESERVE_S
        full = room <= 0 or page.ByteSize() >= PAGE_BYTES
        if full or asked >= SHARDS_PER_PAGE_MAX or (late and asked):
            page.next_page_token = _token(shard, inner, binding)
            return page
        asked += 1
        part = account_pb2.ListAccountsRequest(
            shards=[shard], page_size=room, page_token=inner if shard == at else ""
        )
        if request.HasField("read_options"):
            part.read_options.CopyFrom(request.read_options)
        inner = ""
        until_s = deadline_s
        if request.return_partial_success:
            until_s = min(deadline_s - PARTIAL_RESERVE_S, now() + PARTIAL_SHARD_S)
        try:
            answer = await ask(_LIST, part, until_s)
        except (errors.UnavailableError, errors.TimedOutError):
            if not request.return_partial_success:
                raise
            page.unreachable.append(shard)
            continue
        assert isinstance(answer, account_pb2.ListAccountsResponse)
        page.accounts.extend(answer.accounts)
        page.served.extend(answer.served)
        room -= len(answer.accounts)
        if answer.next_page_token:
            page.next_page_token = _token(shard, answer.next_page_token, binding)
            return page
    return page


def _token(shard: int, inner: str, binding: tuple[str | int, ...]) -> str:
    return tokens.page_token(binding, f"{shard}.{inner}".encode())


def _open(page_token: str, binding: tuple[str | int, ...]) -> tuple[int, str]:
    if not page_token:
        return 0, ""
    shard, _, inner = tokens.open_page_token(page_token, binding).decode().partition(".")
    if not shard.isdecimal():
        raise errors.BadPageTokenError
    return int(shard), inner

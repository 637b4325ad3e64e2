"""AccountService."""

from __future__ import annotations

from mailraft.internal.v1 import command_pb2
from mailraft.node.mailstore import queries
from mailraft.node.mailstore.accounts import INBOX
from mailraft.node.shard import Replica
from mailraft.v1 import account_pb2, error_pb2
from mailraft.wire import errors, tokens

from . import changing, convert, levels, mutations, validate, write_levels
from .base import REPLY_MAX_BYTES, Call, Service, Shards

_MASK = ("quota", "quota.max_bytes", "quota.max_messages", "attributes", "undelete_window_ms")


class Accounts:
    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def service(self) -> Service:
        return Service(
            account_pb2.DESCRIPTOR.services_by_name["AccountService"],
            unary={
                "CreateAccount": self.CreateAccount,
                "GetAccount": self.GetAccount,
                "ListAccounts": self.ListAccounts,
                "UpdateAccount": self.UpdateAccount,
                "DeleteAccount": self.DeleteAccount,
            },
        )

    async def CreateAccount(
        self, request: account_pb2.CreateAccountRequest, call: Call
    ) -> account_pb2.CreateAccountResponse:
        validate.account_id(request.account_id)
        validate.request_id(request.request_id)
        write_levels.check(request.write_options)
        account = request.account
        if request.write_options.if_in_state:
            raise validate.bad("write_options.if_in_state", "must be empty: there is no state yet")
        if account.account_id and account.account_id != request.account_id:
            raise validate.bad("account.account_id", "must be empty or equal account_id")
        validate.attributes(account.attributes, "account.attributes")
        action = command_pb2.CreateAccount(
            account_id=request.account_id,
            quota_bytes=account.quota.max_bytes,
            quota_messages=account.quota.max_messages,
            attributes=convert.attributes(account.attributes.items()),
            undelete_window_ms=account.undelete_window_ms,
        )
        command = command_pb2.Command(
            request_id=request.request_id,
            fingerprint=mutations.fingerprint(
                "create_account", action.SerializeToString(deterministic=True)
            ),
            create_account=action,
        )
        done = await mutations.mutate(
            self._shards, request.account_id, command, call, options=request.write_options
        )
        return account_pb2.CreateAccountResponse(
            state=done.state,
            served=done.served,
            account=convert.account(request.account_id, done.reply.account),
            inbox_id=tokens.mailbox_id(INBOX),
        )

    async def GetAccount(
        self, request: account_pb2.GetAccountRequest, call: Call
    ) -> account_pb2.GetAccountResponse:
        validate.account_id(request.account_id)
        at = await levels.read(self._shards, request.account_id, request.read_options, call)
        record = queries.account(at.view, request.account_id)
        return account_pb2.GetAccountResponse(
            state=at.state, served=at.served, account=convert.account(request.account_id, record)
        )

    async def UpdateAccount(
        self, request: account_pb2.UpdateAccountRequest, call: Call
    ) -> account_pb2.UpdateAccountResponse:
        changing.check(request)
        action = _update(request)
        done = await changing.change(
            self._shards, request, call, "update_account", action, if_object=request.account.etag
        )
        return account_pb2.UpdateAccountResponse(
            state=done.state,
            served=done.served,
            account=convert.account(request.account_id, done.reply.account),
        )

    async def DeleteAccount(
        self, request: account_pb2.DeleteAccountRequest, call: Call
    ) -> account_pb2.DeleteAccountResponse:
        changing.check(request)
        action = command_pb2.DeleteAccount(account_id=request.account_id, force=request.force)
        done = await changing.change(
            self._shards, request, call, "delete_account", action, if_object=request.etag
        )
        return account_pb2.DeleteAccountResponse(state=done.state, served=done.served)

    async def ListAccounts(
        self, request: account_pb2.ListAccountsRequest, call: Call
    ) -> account_pb2.ListAccountsResponse:
        """Of one node: without `shards` those that it leads, so that asking every node lists each
        account once; with `shards` those of them that have a replica here. A shard that is not here
        is unreachable: the router asks another node.
        """
        options = request.read_options
        level = levels.level_of(self._shards, options)
        if options.min_state or options.require_replica:
            raise validate.bad("read_options", "min_state and require_replica are of one account")
        here = {replica.group: replica for replica in self._shards.replicas()}
        shards = sorted(set(request.shards)) or sorted(
            group for group, replica in here.items() if replica.leadership.leading
        )
        bound: tuple[str | int, ...] = ("ListAccounts", *sorted(set(request.shards)))
        first_shard, after = _opened(request.page_token, bound)
        page = _Page(self._shards, bound, validate.page_size(request.page_size))
        for shard in (shard for shard in shards if shard >= first_shard):
            resume = after if shard == first_shard else ""
            replica = here.get(shard)
            try:
                if replica is None:
                    raise _not_here(self._shards, shard)
                full = await page.add(replica, resume, level, call)
            except errors.UnavailableError:
                if not request.return_partial_success:
                    raise
                page.response.unreachable.append(shard)
                continue
            if full:
                break
        return page.response


class _Page:
    """A page of accounts, filled shard by shard."""

    def __init__(self, shards: Shards, bound: tuple[str | int, ...], count: int) -> None:
        self.response = account_pb2.ListAccountsResponse()
        self._shards, self._bound, self._left = shards, bound, count
        self._left_bytes = REPLY_MAX_BYTES

    async def add(self, replica: Replica, after: str, level: levels.ReadLevel, call: Call) -> bool:
        """Accounts of one shard behind `after`; whether the page is full with them."""
        if not self._left:
            return self._end(replica, after)
        point = await levels.at(self._shards, replica, level, call)
        self.response.served.append(levels.served_read(self._shards, replica, point))
        found, following = queries.accounts(point.view, after, self._left)
        for account_id, record in found:
            shown = convert.account(account_id, record)
            self._left_bytes -= shown.ByteSize() + 8
            if self._left_bytes < 0 and self.response.accounts:
                return self._end(replica, after)
            self._left -= 1
            self.response.accounts.append(shown)
            after = account_id
        return bool(following) and self._end(replica, following)

    def _end(self, replica: Replica, after: str) -> bool:
        position = replica.group.to_bytes(4) + after.encode()
        self.response.next_page_token = tokens.page_token(self._bound, position)
        return True


def _opened(token: str, bound: tuple[str | int, ...]) -> tuple[int, str]:
    if not token:
        return 0, ""
    position = tokens.open_page_token(token, bound)
    try:
        return int.from_bytes(position[:4]), position[4:].decode()
    except UnicodeDecodeError:
        raise errors.BadPageTokenError from None


def _update(request: account_pb2.UpdateAccountRequest) -> command_pb2.UpdateAccount:
    paths = set(request.update_mask.paths)
    if not paths or not paths <= set(_MASK):
        raise validate.bad("update_mask", f"one or more of {', '.join(_MASK)}")
    account = request.account
    action = command_pb2.UpdateAccount(account_id=request.account_id)
    if paths & {"quota", "quota.max_bytes"}:
        action.quota_bytes = account.quota.max_bytes
    if paths & {"quota", "quota.max_messages"}:
        action.quota_messages = account.quota.max_messages
    if "undelete_window_ms" in paths:
        action.undelete_window_ms = account.undelete_window_ms
    if "attributes" in paths:
        validate.attributes(account.attributes, "account.attributes")
        action.set_attributes = True
        action.attributes.extend(convert.attributes(account.attributes.items()))
    return action


def _not_here(shards: Shards, shard: int) -> errors.StaleRouteError:
    cluster = shards.cluster
    return errors.StaleRouteError(
        f"shard {shard} has no replica on this node",
        detail=error_pb2.StaleRoute(
            epoch=cluster.epoch, shard=shard, cluster_id=cluster.cluster_id
        ),
    )

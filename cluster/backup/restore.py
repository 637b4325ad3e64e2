"""Brings accounts back: one, or all of a cluster into another."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from google.protobuf.json_format import ParseDict

from mailraft.client import AsyncClient
from mailraft.client.ids import request_ids
from mailraft.cluster.backup.account import AccountAt, account_at, account_ids
from mailraft.cluster.backup.manifest import Manifest, backups
from mailraft.cluster.backup.nodes import Nodes
from mailraft.cluster.backup.replay import NotArchivedError, ShardAt, shard_at
from mailraft.cluster.backup.store import BackupStore
from mailraft.cluster.backup.together import together
from mailraft.cluster.backup.writing import AccountWriter, Written
from mailraft.cluster.errors import ClusterError, ExitCode
from mailraft.internal.v1 import backup_service_pb2 as pb
from mailraft.v1 import account_pb2, admin_pb2, cluster_pb2
from mailraft.wire import errors
from mailraft.wire.slots import slot_of

# Accounts that are written at a time.
CONCURRENT = 8

Tell = Callable[[int], None]


class NoAccountThenError(ClusterError):
    """The account was not there at that time."""

    exit_code = ExitCode.NOT_FOUND
    reason = "NO_ACCOUNT_THEN"


@dataclass(slots=True)
class ClusterRestored:
    """What a restore of a cluster did."""

    shards: int = 0
    accounts: int = 0
    messages: int = 0
    appended: int = 0
    new_bytes: int = 0
    clock_ms: int = 0  # the time of the newest command that is in it
    left: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Target:
    """The cluster to write to. nodes: needed where accounts come from another one."""

    client: AsyncClient
    nodes: Nodes

    @property
    def map(self) -> cluster_pb2.ClusterMap:
        return self.nodes.map


async def restore_account(
    store: BackupStore,
    cluster_id: str,
    target: Target,
    account_id: str,
    *,
    at_ms: int | None = None,
    into: str = "",
    keep_new: bool = False,
    dry_run: bool = False,
    folder: Path | None = None,
    tell: Tell = lambda _: None,
) -> Written:
    """An account as it was at a time: in place, or into another account.

    In another cluster than its own it begins a new life (docs/decisions/0012). Raises
    NoAccountThenError, NotArchivedError, DamagedBackupError, MailraftError.
    """
    name = into or account_id
    # Slots do not move between shards: any map of that cluster tells the shard.
    was_map = ParseDict(_newest(store, cluster_id).cluster_map, cluster_pb2.ClusterMap())
    group = _shard_of(was_map, account_id)
    with shard_at(store, cluster_id, group, at_ms, folder=folder, tell=tell) as shard:
        was = account_at(shard, account_id)
        if was is None:
            raise NoAccountThenError(f"there was no account {account_id!r} at that time")
        same_cluster = target.map.cluster_id == cluster_id
        now = await _account(target.client, name)
        if now is None and dry_run:
            return Written(name, len(was.mailboxes), len(was.messages), len(was.messages))
        if now is None:
            await _create(target, was, name, above_earlier=not same_cluster)
        # The same life of it: else its ids may stand for others by now.
        same = now is not None and name == account_id and same_cluster
        same = same and now is not None and now.created_time_ms == was.record.created_ms
        writer = AccountWriter(
            target.client,
            was,
            name,
            same_account=same,
            keep_new_ms=shard.clock_ms if keep_new else 0,
            tell=tell,
        )
        return await writer.write(dry_run=dry_run)


async def restore_cluster(
    store: BackupStore,
    cluster_id: str,
    target: Target,
    *,
    at_ms: int | None = None,
    backup: str = "",
    dry_run: bool = False,
    folder: Path | None = None,
    tell: Tell = lambda _: None,
) -> ClusterRestored:
    """Every account into another cluster, of whatever size. Run it again, and it goes on.

    backup: begin with this one; default: the newest that serves. Raises as restore_account.
    """
    check_other(target, cluster_id)
    if not dry_run:
        await target.nodes.know_restoring()
    done = ClusterRestored()
    for group in [shard.group for shard in _newest(store, cluster_id).shards]:
        with shard_at(
            store, cluster_id, group, at_ms, backup=backup, folder=folder, tell=tell
        ) as shard:
            await _restore_shard(target, shard, done, dry_run=dry_run, tell=tell)
            done.shards += 1
            done.clock_ms = max(done.clock_ms, shard.clock_ms)
    return done


def check_other(target: Target, cluster_id: str) -> None:
    """Raises ClusterError where the target is the cluster that was backed up."""
    if target.map.cluster_id == cluster_id:
        raise ClusterError(
            "this is the cluster that was backed up",
            "restore into a new one; or accounts, one by one: mailraft restore account",
        )


def settings_at(
    store: BackupStore, cluster_id: str, *, at_ms: int | None = None, backup: str = ""
) -> admin_pb2.Settings | None:
    """Of the whole cluster, as the newest backup has them that may serve; None: it has none.

    Raises DamagedBackupError.
    """
    found = [
        each
        for each in backups(store, cluster_id)
        if each.id == backup or (not backup and (at_ms is None or each.began_ms <= at_ms))
    ]
    if not found or not found[-1].settings:
        return None
    told = ParseDict(found[-1].settings, admin_pb2.Settings(), ignore_unknown_fields=True)
    told.ClearField("etag")
    return told


async def _restore_shard(
    target: Target, shard: ShardAt, done: ClusterRestored, *, dry_run: bool, tell: Tell
) -> None:
    async def one(account_id: str) -> None:
        was = account_at(shard, account_id)
        assert was is not None, "it was listed"
        _count(done, await _restore_one(target, was, dry_run=dry_run, tell=tell))

    await together((partial(one, each) for each in account_ids(shard)), CONCURRENT)


async def _restore_one(target: Target, was: AccountAt, *, dry_run: bool, tell: Tell) -> Written:
    if dry_run:
        size_bytes = sum(each.size_bytes for each in was.messages)
        count = len(was.messages)
        return Written(was.account_id, len(was.mailboxes), count, count, new_bytes=size_bytes)
    if await _account(target.client, was.account_id) is None:
        await _create(target, was, was.account_id, above_earlier=True)
    writer = AccountWriter(target.client, was, was.account_id, same_account=False, tell=tell)
    return await writer.write()


def _count(done: ClusterRestored, written: Written) -> None:
    done.accounts += 1
    done.messages += written.messages
    done.appended += written.appended
    done.new_bytes += written.new_bytes
    done.left += [f"{written.account_id}/{each}" for each in written.left]


async def _account(client: AsyncClient, account_id: str) -> account_pb2.Account | None:
    with suppress(errors.AccountNotFoundError):
        return await client.get_account(account_id)
    return None


async def _create(target: Target, was: AccountAt, name: str, *, above_earlier: bool) -> None:
    """above_earlier: the name may have lived in another cluster, where `was` is from."""
    record = was.record
    if not above_earlier:
        await target.client.create_account(
            name,
            max_bytes=record.quota_bytes,
            max_messages=record.quota_messages,
            attributes={each.key: each.value for each in record.attributes},
            undelete_window_ms=record.undelete_window_ms,
        )
        return
    request = pb.CreateRestoredRequest(
        account_id=name,
        quota_bytes=record.quota_bytes,
        quota_messages=record.quota_messages,
        attributes=record.attributes,
        undelete_window_ms=record.undelete_window_ms,
        # Seconds, so that two restores of the same backup differ.
        restore_epoch=max(record.restore_epoch + 1, int(time.time())),
        last_uid_validity=record.last_uid_validity,
        request_id=request_ids.next(),
    )
    await target.nodes.create_restored(_shard_of(target.map, name), request)


def _shard_of(cluster_map: cluster_pb2.ClusterMap, account_id: str) -> int:
    slot = slot_of(account_id)
    parts = cluster_map.slots
    return next(each.shard for each in parts if each.first_slot <= slot <= each.last_slot)


def _newest(store: BackupStore, cluster_id: str) -> Manifest:
    found = backups(store, cluster_id)
    if not found:
        raise NotArchivedError(f"no backup of cluster {cluster_id}", "see: mailraft backup list")
    return found[-1]

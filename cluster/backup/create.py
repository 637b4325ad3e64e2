"""Takes a backup: every shard at an applied index, from a replica that has time for it."""

from __future__ import annotations

import asyncio
import datetime as dt
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import version

import grpc
from google.protobuf.json_format import MessageToDict

from mailraft.cluster.backup.chunks import ShardWriter
from mailraft.cluster.backup.manifest import Manifest, ShardBackup, backups
from mailraft.cluster.backup.nodes import Nodes
from mailraft.cluster.backup.sealed import DamagedBackupError
from mailraft.cluster.backup.store import BackupStore
from mailraft.cluster.backup.together import together
from mailraft.internal.v1 import backup_service_pb2 as pb
from mailraft.v1 import admin_pb2
from mailraft.wire import errors

TRIES, PAUSE_S = 5, 1.0
# Shards at a time, on different nodes.
CONCURRENT = 8

Tell = Callable[[int], None]


async def create(
    nodes: Nodes,
    store: BackupStore,
    *,
    settings: admin_pb2.Settings | None = None,
    full: bool = False,
    bytes_per_s: int = 0,
    tell: Tell = lambda _: None,
    locked: bool = False,
) -> Manifest:
    """A new backup of the cluster; its manifest is what makes it one, and is put last.

    full: do not take over the bodies of the newest one. bytes_per_s: of a node. tell: bytes read.
    locked: the caller holds the store's lock.

    Raises StoreBusyError, MailraftError (a shard could not be read), DamagedBackupError.
    """
    lock: AbstractContextManager[None] = nullcontext() if locked else store.lock()
    with lock:
        cluster_id = nodes.map.cluster_id
        earlier = backups(store, cluster_id)
        parent = earlier[-1] if earlier and not full else None
        began_ms = time.time_ns() // 1_000_000
        shard = partial(_shard, nodes, store, parent, bytes_per_s, tell)
        done = await together((partial(shard, group) for group in nodes.groups), CONCURRENT)
        done.sort(key=lambda each: each[0].group)
        manifest = Manifest(
            id=new_id(began_ms),
            cluster_id=cluster_id,
            release=version("mailraft"),
            began_ms=began_ms,
            ended_ms=time.time_ns() // 1_000_000,
            parent=parent.id if parent is not None else "",
            new_bytes=sum(new_bytes for _, new_bytes in done),
            cluster_map=MessageToDict(nodes.map),
            settings=MessageToDict(settings) if settings is not None else {},
            shards=tuple(shard for shard, _ in done),
        )
        store.put(manifest.name, manifest.encode())
        return manifest


def new_id(began_ms: int) -> str:
    """Sorts by time, and two of one second differ."""
    began = dt.datetime.fromtimestamp(began_ms / 1000, dt.UTC)
    return f"b-{began:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


async def _shard(
    nodes: Nodes,
    store: BackupStore,
    parent: Manifest | None,
    bytes_per_s: int,
    tell: Tell,
    group: int,
) -> tuple[ShardBackup, int]:
    """The shard, and how many bytes were stored for it; from another replica if one breaks off."""
    before = parent.shard(group) if parent is not None else None
    candidates = nodes.replicas(group, leader_first=False)
    for attempt in range(TRIES):
        node = candidates[attempt % len(candidates)]
        request = pb.ReadShardRequest(
            group=group,
            bodies_above=before.index if before is not None else 0,
            bytes_per_s=bytes_per_s,
        )
        try:
            async with nodes.turns[node]:
                return await _read(nodes, node, request, store, before, tell)
        except (errors.MailraftError, grpc.aio.AioRpcError, DamagedBackupError) as error:
            if attempt == TRIES - 1:
                if isinstance(error, grpc.aio.AioRpcError):
                    raise errors.from_rpc_error(error) from error
                raise
        await asyncio.sleep(PAUSE_S)
    raise AssertionError("the last try raises")


async def _read(
    nodes: Nodes,
    node: int,
    request: pb.ReadShardRequest,
    store: BackupStore,
    before: ShardBackup | None,
    tell: Tell,
) -> tuple[ShardBackup, int]:
    read = nodes.read_shard(node, request)
    try:
        await read.begin()
        writer = ShardWriter(store, request.group, read.applied, before)
        async for family, rows in read.rows():
            for key, value in rows:
                writer.add(family, key, value)
            tell(sum(len(key) + len(value) for key, value in rows))
        return writer.finish(), writer.new_bytes
    finally:
        read.cancel()

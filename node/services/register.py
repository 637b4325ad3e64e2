"""Puts every public service of a node on its server. The peer service is the runtime's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mailraft.v1 import message_service_pb2

from .accounts import Accounts
from .append import Append
from .base import Service, Shards, generic_handler
from .batch import Batch
from .blobs import Blobs
from .changes import Changes
from .cluster import Cluster, Maps
from .delivery import Delivery
from .expunge import Expunge
from .keywords import Keywords
from .mailboxes import Mailboxes
from .messages import Messages
from .moves import Moves
from .search import Search
from .threads import Threads
from .waiting import WaitCommitted
from .watch import Watch
from .watch_shard import WatchShard


def services_of(shards: Shards, maps: Maps, version: str, stopping: asyncio.Event) -> list[Service]:
    accounts = Accounts(shards).service()
    mailboxes = Mailboxes(shards).service()
    messages = _message_service(shards, stopping)
    blobs = Blobs(shards).service()
    batch = Batch(shards, (accounts, mailboxes, messages, blobs)).service()
    return [accounts, mailboxes, messages, blobs, batch, Cluster(shards, maps, version).service()]


async def register(
    server: grpc.aio.Server,
    shards: Shards,
    maps: Maps,
    version: str,
    stopping: asyncio.Event | None = None,
    *,
    extra: Sequence[Service] = (),
) -> health.aio.HealthServicer:
    """Adds the services of mailraft.v1, health and reflection; to be awaited before server.start().

    The health servicer is for who knows about readiness: each service starts as SERVING here.
    stopping: set before server.stop(), it ends the streams that have no end of their own.
    extra: services of the composition root.
    """
    services = [*services_of(shards, maps, version, stopping or asyncio.Event()), *extra]
    handlers = [generic_handler(service, shards) for service in services]
    server.add_generic_rpc_handlers(tuple(handlers))
    names = [service.descriptor.full_name for service in services]
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection(
        (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server
    )
    for name in ("", *names):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    return servicer


def _message_service(shards: Shards, stopping: asyncio.Event) -> Service:
    delivery, append, messages = Delivery(shards), Append(shards), Messages(shards)
    changes, moves, expunge = Changes(shards), Moves(shards), Expunge(shards)
    return Service(
        message_service_pb2.DESCRIPTOR.services_by_name["MessageService"],
        unary={
            "DeliverMessages": delivery.DeliverMessages,
            "AppendMessages": append.AppendMessages,
            "ModifyKeywords": Keywords(shards).ModifyKeywords,
            "UpdateMemberships": moves.UpdateMemberships,
            "MoveMessages": moves.MoveMessages,
            "CopyMessages": moves.CopyMessages,
            "ExpungeMessages": expunge.ExpungeMessages,
            "UndeleteMessages": expunge.UndeleteMessages,
            "GetMessage": messages.GetMessage,
            "BatchGetMessages": messages.BatchGetMessages,
            "ListMessages": messages.ListMessages,
            "ListUids": messages.ListUids,
            "SearchMessages": Search(shards).SearchMessages,
            "BatchGetThreads": Threads(shards).BatchGetThreads,
            "ListChanges": changes.ListChanges,
            "ListMailboxChanges": changes.ListMailboxChanges,
            "WaitCommitted": WaitCommitted(shards).WaitCommitted,
        },
        streams={"WatchShard": WatchShard(shards, stopping).WatchShard},
        duplex={"Watch": Watch(shards, stopping).Watch},
    )

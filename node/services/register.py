"""Puts every public service of a node on its server. The peer service is the runtime's."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mailraft.v1 import message_service_pb2

from .accounts import Accounts
from .append import Append
from .base import Service, Shards, generic_handler
from .batch import Batch
from .blobs import Blobs
from .cluster import Cluster, Maps
from .delivery import Delivery
from .mailboxes import Mailboxes
from .messages import Messages

_LATER = {
    "BatchGetThreads": "planned with threads",
    "SearchMessages": "planned with search",
    "ModifyKeywords": "planned with flags and moves",
    "UpdateMemberships": "planned with flags and moves",
    "MoveMessages": "planned with flags and moves",
    "CopyMessages": "planned with flags and moves",
    "ExpungeMessages": "planned with flags and moves",
    "UndeleteMessages": "planned with undelete",
    "ListChanges": "planned with the change feed",
    "ListMailboxChanges": "planned with the change feed",
    "Watch": "planned with the change feed",
    "WatchShard": "planned with the change feed",
    "WaitCommitted": "planned with the level ACCEPTED",
}


def services_of(shards: Shards, maps: Maps, version: str) -> list[Service]:
    accounts = Accounts(shards).service()
    mailboxes = Mailboxes(shards).service()
    messages = _message_service(shards)
    blobs = Blobs(shards).service()
    batch = Batch((accounts, mailboxes, messages, blobs)).service()
    return [accounts, mailboxes, messages, blobs, batch, Cluster(shards, maps, version).service()]


async def register(
    server: grpc.aio.Server, shards: Shards, maps: Maps, version: str
) -> health.aio.HealthServicer:
    """Adds the services of mailraft.v1, health and reflection; to be awaited before server.start().

    The health servicer is for who knows about readiness: each service starts as SERVING here.
    """
    services = services_of(shards, maps, version)
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


def _message_service(shards: Shards) -> Service:
    delivery, append, messages = Delivery(shards), Append(shards), Messages(shards)
    return Service(
        message_service_pb2.DESCRIPTOR.services_by_name["MessageService"],
        unary={
            "DeliverMessages": delivery.DeliverMessages,
            "AppendMessages": append.AppendMessages,
            "GetMessage": messages.GetMessage,
            "BatchGetMessages": messages.BatchGetMessages,
            "ListMessages": messages.ListMessages,
            "ListUids": messages.ListUids,
        },
        later=_LATER,
    )

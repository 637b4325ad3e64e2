"""How every call of mailraft.v1 is routed: the one table, for the router process and the client."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import cast

from google.protobuf import message_factory
from google.protobuf.message import Message

from mailraft.v1 import (
    account_pb2,
    admin_pb2,
    batch_pb2,
    blob_pb2,
    cluster_pb2,
    common_pb2,
    delivery_pb2,
    job_pb2,
    mailbox_pb2,
    message_service_pb2,
)


class Route(enum.Enum):
    """Who answers a call."""

    READ = "a replica of the account's shard, as its ReadOptions say"
    WRITE = "the leader of the account's shard"
    DELIVER = "the leader of each recipient's shard"
    BATCH = "each item by itself"
    SHARD = "any replica of the shard in field 1"
    EVERY_SHARD = "each shard in turn"
    UPLOAD = "the leader of the shard of the account in the stream's header"
    WATCH = "a replica of each account that the stream subscribes to"
    MAP = "whoever holds the cluster map"
    ANY = "any node; it knows better, or who does"


class Pace(enum.Enum):
    """How long one try may take."""

    # Answered at once by a node that lives: retry elsewhere after a short time, and coalesce reads.
    QUICK = "quick"
    # May take its time at a healthy node: one try gets all the time that is left.
    PATIENT = "patient"


# Messages that a mutation names, for it to travel with others.
SMALL_CHANGE_MAX = 16

# By service: method -> how. A READ that is QUICK and has a place in BatchItem is coalesced.
_Q, _P = Pace.QUICK, Pace.PATIENT
_ACCOUNT = {
    "CreateAccount": (Route.WRITE, _Q),
    "GetAccount": (Route.READ, _Q),
    "ListAccounts": (Route.EVERY_SHARD, _P),
    "UpdateAccount": (Route.WRITE, _Q),
    "DeleteAccount": (Route.WRITE, _P),  # a series of proposals
}
_MAILBOX = {
    "CreateMailbox": (Route.WRITE, _Q),
    "GetMailbox": (Route.READ, _Q),
    "ListMailboxes": (Route.READ, _Q),
    "UpdateMailbox": (Route.WRITE, _Q),
    "DeleteMailbox": (Route.WRITE, _P),
}
_MESSAGE = {
    "DeliverMessages": (Route.DELIVER, _Q),
    "AppendMessages": (Route.WRITE, _Q),
    "GetMessage": (Route.READ, _Q),
    "BatchGetMessages": (Route.READ, _Q),
    "BatchGetThreads": (Route.READ, _Q),
    "ListMessages": (Route.READ, _Q),
    "ListUids": (Route.READ, _Q),
    "SearchMessages": (Route.READ, _P),
    "ModifyKeywords": (Route.WRITE, _Q),
    "UpdateMemberships": (Route.WRITE, _Q),
    "MoveMessages": (Route.WRITE, _Q),
    "CopyMessages": (Route.WRITE, _Q),
    "ExpungeMessages": (Route.WRITE, _Q),
    "UndeleteMessages": (Route.WRITE, _Q),
    "ListChanges": (Route.READ, _Q),
    "ListMailboxChanges": (Route.READ, _Q),
    "Watch": (Route.WATCH, _P),
    "WatchShard": (Route.SHARD, _P),
    # The leader that took the write knows first; it waits until the fate is known.
    "WaitCommitted": (Route.WRITE, _P),
}
_BLOB = {
    "GetBlob": (Route.READ, _Q),
    "UploadBlob": (Route.UPLOAD, _P),
    "DownloadBlob": (Route.READ, _P),
    "GetStructure": (Route.READ, _P),  # parses a whole message
}
_CLUSTER = {
    "GetClusterMap": (Route.MAP, _Q),
    "WatchClusterMap": (Route.MAP, _P),
    "ListNodes": (Route.ANY, _Q),
    "GetShard": (Route.ANY, _Q),
    "ListShards": (Route.ANY, _Q),
    "Locate": (Route.MAP, _Q),
    "GetCapabilities": (Route.MAP, _Q),
}
_ADMIN = {
    "GetClusterStatus": (Route.ANY, _Q),
    "AddNode": (Route.ANY, _P),
    "DrainNode": (Route.ANY, _P),
    "UndrainNode": (Route.ANY, _P),
    "DecommissionNode": (Route.ANY, _P),
    "RemoveNode": (Route.ANY, _P),
    "TransferLeadership": (Route.ANY, _P),
    "MoveShard": (Route.ANY, _P),
    "Rebalance": (Route.ANY, _P),
    "FinalizeUpgrade": (Route.ANY, _P),
    "GetSettings": (Route.ANY, _Q),
    "UpdateSettings": (Route.ANY, _P),
}
_JOB = {
    "StartJob": (Route.ANY, _P),
    "GetJob": (Route.ANY, _Q),
    "ListJobs": (Route.ANY, _Q),
    "CancelJob": (Route.ANY, _P),
    "WatchJob": (Route.ANY, _P),
}
_SERVICES: tuple[tuple[ModuleType, str, Mapping[str, tuple[Route, Pace]]], ...] = (
    (account_pb2, "AccountService", _ACCOUNT),
    (mailbox_pb2, "MailboxService", _MAILBOX),
    (message_service_pb2, "MessageService", _MESSAGE),
    (blob_pb2, "BlobService", _BLOB),
    (batch_pb2, "BatchService", {"Execute": (Route.BATCH, _Q)}),
    (cluster_pb2, "ClusterService", _CLUSTER),
    (admin_pb2, "AdminService", _ADMIN),
    (job_pb2, "JobService", _JOB),
)


@dataclass(frozen=True, slots=True, eq=False)
class Method:
    """One call of the API."""

    service: str  # mailraft.v1.MessageService
    name: str  # GetMessage
    route: Route
    pace: Pace
    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool
    mutation: bool  # has a request_id
    batch_field: str  # its place in BatchItem and BatchResult; empty: none

    @property
    def path(self) -> str:
        """As HTTP/2 spells it."""
        return f"/{self.service}/{self.name}"

    @property
    def may_change_together(self) -> bool:
        """A mutation of which small ones travel with others (see `small_change`)."""
        return self.mutation and self.pace is Pace.QUICK and bool(self.batch_field)

    @property
    def coalesced(self) -> bool:
        """Travels with others in BatchService.Execute."""
        return self.route is Route.READ and self.pace is Pace.QUICK and bool(self.batch_field)


def _load() -> dict[str, Method]:
    items = {
        field.message_type.full_name: field.name
        for field in batch_pb2.BatchItem.DESCRIPTOR.fields
        if field.message_type is not None
    }
    methods = {}
    for module, service_name, table in _SERVICES:
        service = module.DESCRIPTOR.services_by_name[service_name]
        for name, (route, pace) in table.items():
            found = service.methods_by_name[name]
            request = found.input_type
            method = Method(
                service=service.full_name,
                name=name,
                route=route,
                pace=pace,
                request=message_factory.GetMessageClass(request),
                response=message_factory.GetMessageClass(found.output_type),
                client_streaming=found.client_streaming,
                server_streaming=found.server_streaming,
                mutation=_is_mutation(name, request.fields_by_name),
                batch_field=items.get(request.full_name, ""),
            )
            methods[method.path] = method
    return methods


def _is_mutation(name: str, fields: Mapping[str, object]) -> bool:
    return name in {"DeliverMessages", "Execute", "UploadBlob"} or (
        "request_id" in fields and name != "WaitCommitted"
    )


METHODS: Mapping[str, Method] = _load()
SERVICES: tuple[str, ...] = tuple(dict.fromkeys(method.service for method in METHODS.values()))
_BY_REQUEST = {method.request: method for method in METHODS.values()}
_BY_BATCH_FIELD = {method.batch_field: method for method in METHODS.values() if method.batch_field}


def method_of(request: Message) -> Method:
    """The call that a request belongs to: each call of the API has its own request type."""
    return _BY_REQUEST[type(request)]


def batched_method(field: str) -> Method:
    """The call in a BatchItem."""
    return _BY_BATCH_FIELD[field]


def small_change(method: Method, request: Message) -> bool:
    """Whether it changes so few messages that it travels with others through BatchService: what it
    takes and answers is bounded, and it holds up nobody beside it.
    """
    if not method.may_change_together:
        return False
    chosen = getattr(request, "messages", None)
    return (
        isinstance(chosen, common_pb2.MessageSelector)
        and chosen.HasField("ids")
        and len(chosen.ids.ids) <= SMALL_CHANGE_MAX
    )


def account_of(request: Message) -> str:
    """Field 1 of a request about one account; empty for others."""
    return cast("str", getattr(request, "account_id", ""))


def repeatable(method: Method, request: Message) -> bool:
    """Whether sending it again does nothing twice: it reads, or every part has a request_id."""
    if not method.mutation:
        return True
    if isinstance(request, delivery_pb2.DeliverMessagesRequest):
        return all(delivery.request_id for delivery in request.deliveries)
    return bool(getattr(request, "request_id", b""))


# Levels that wait for replicas until the deadline: a try that is cut short would lower them.
_WAITING_ACKS = frozenset(
    {common_pb2.ACK_LEVEL_REPLICAS, common_pb2.ACK_LEVEL_EACH_ZONE, common_pb2.ACK_LEVEL_ALL}
)


def waits_for_replicas(
    write_options: common_pb2.WriteOptions | None, policy: cluster_pb2.LevelPolicy
) -> bool:
    asked = write_options.ack if write_options is not None else 0
    return (asked or policy.default_ack) in _WAITING_ACKS

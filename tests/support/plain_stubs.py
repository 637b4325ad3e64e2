"""A cluster as somebody sees it who has only the generated stubs: no client of ours in between.

A door is one process of the cluster. Which node leads a shard may change at any time, so a call
that must go to a leader is a function of the door, and is asked again at the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from mailraft.cluster.local import LocalCluster
from mailraft.v1 import (
    account_pb2_grpc,
    batch_pb2_grpc,
    blob_pb2_grpc,
    mailbox_pb2_grpc,
    message_service_pb2_grpc,
)
from mailraft.wire.credentials import open_channel

Via = Literal["router", "leader"]
CALL_DEADLINE_S = 20.0
STATUS_KEY = "grpc-status-details-bin"
# How often a call that must go to a leader is asked again, and after how long.
TRIES_MAX = 40
TRY_PAUSE_S = 0.25
_ELSEWHERE = ("NOT_LEADER", "NO_LEADER")

Reply = TypeVar("Reply")
Detail = TypeVar("Detail", bound=Message)


class Door:
    """The services of one process."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.accounts = account_pb2_grpc.AccountServiceStub(channel)
        self.mailboxes = mailbox_pb2_grpc.MailboxServiceStub(channel)
        self.messages = message_service_pb2_grpc.MessageServiceStub(channel)
        self.blobs = blob_pb2_grpc.BlobServiceStub(channel)
        self.batches = batch_pb2_grpc.BatchServiceStub(channel)


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a call was refused."""

    code: str  # of gRPC: NOT_FOUND
    domain: str  # of the ErrorInfo; this and the reason are empty if there was none
    reason: str
    message: str
    details: Sequence[any_pb2.Any]

    def detail(self, kind: type[Detail]) -> Detail:
        """The one detail of this type."""
        (found,) = [each for each in self.details if each.TypeName() == kind.DESCRIPTOR.full_name]
        return kind.FromString(found.value)

    @property
    def fields(self) -> list[str]:
        """Of a BAD_FIELD: the paths that are wrong."""
        bad = self.detail(error_details_pb2.BadRequest)
        return [violation.field for violation in bad.field_violations]


def refusal_of_status(status: status_pb2.Status) -> Refusal:
    """What a google.rpc.Status tells."""
    code = next(each for each in grpc.StatusCode if each.value[0] == status.code)
    infos = [
        error_details_pb2.ErrorInfo.FromString(each.value)
        for each in status.details
        if each.TypeName() == error_details_pb2.ErrorInfo.DESCRIPTOR.full_name
    ]
    assert len(infos) <= 1
    info = infos[0] if infos else error_details_pb2.ErrorInfo()
    return Refusal(code.name, info.domain, info.reason, status.message, status.details)


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """What a failed call tells. Its code and the Status that travels with it are the same."""
    untyped: Any = error  # its stubs do not know that metadata can be iterated
    told = [value for key, value in untyped.trailing_metadata() or () if key == STATUS_KEY]
    if not told:
        return Refusal(error.code().name, "", "", error.details() or "", ())
    (serialized,) = told
    refusal = refusal_of_status(status_pb2.Status.FromString(serialized))
    assert refusal.code == error.code().name
    return refusal


class Doors:
    """Channels to every process of a cluster: `async with Doors(cluster) as doors`."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self.router = self._open(cluster.router_address)
        self.nodes = {node: self._open(cluster.address_of(node)) for node in cluster.nodes}

    def _open(self, address: str) -> Door:
        return Door(open_channel(address, self._cluster.credentials("client")))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        doors = (self.router, *self.nodes.values())
        await asyncio.gather(*(door.channel.close(None) for door in doors))

    async def ask(self, via: Via, shard: int, call: Callable[[Door], Awaitable[Reply]]) -> Reply:
        """The reply: of the router, or of the node that leads the shard. Raises AioRpcError."""
        if via == "router":
            return await call(self.router)
        for _ in range(TRIES_MAX):
            leader = await self._cluster.leader_of(shard)
            if leader is not None:
                try:
                    return await call(self.nodes[leader])
                except grpc.aio.AioRpcError as error:
                    if refusal_of(error).reason not in _ELSEWHERE:
                        raise
            await asyncio.sleep(TRY_PAUSE_S)
        raise AssertionError(f"nobody led shard {shard} for {TRIES_MAX * TRY_PAUSE_S:.0f} s")

    async def refused(
        self, via: Via, shard: int, call: Callable[[Door], Awaitable[object]]
    ) -> Refusal:
        """How a call is refused that has to be."""
        try:
            reply = await self.ask(via, shard, call)
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)
        raise AssertionError(f"it was not refused but answered: {reply}")

"""A node in one process for the tests of services: real handlers behind a real gRPC server, real
replicas and state machines, and instead of consensus and disk a loop that commits at once.

No test is in here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf import message_factory

from dict_view import DictView
from mailraft.internal.v1 import command_pb2
from mailraft.node import services
from mailraft.node.interfaces import Configuration, DeleteBody, Entry, Peer, replica_id
from mailraft.node.mailstore.machine import MailStateMachine
from mailraft.node.quorum_reads import Position
from mailraft.node.shard import Leadership, Replica
from mailraft.v1 import (
    account_pb2,
    batch_pb2,
    blob_pb2,
    change_pb2,
    cluster_pb2,
    common_pb2,
    delivery_pb2,
    mailbox_pb2,
    message_service_pb2,
)
from mailraft.wire import errors, feature_levels, limits
from mailraft.wire.slots import SLOTS, slot_of

NODE = 7
OTHER_NODE = 8
SHARDS = 3  # the last one has its replica on the other node only
HERE = (0, 1)
START_MS = 1_750_000_000_000
MAIL = (
    b"From: Bob <bob@example.org>\r\nSubject: hello\r\nMessage-ID: <1@example.org>\r\n\r\nBody\r\n"
)

_numbers = iter(range(1, 1 << 60))


def request_id(time_ms: int = START_MS) -> bytes:
    """A UUIDv7 (RFC 9562 section 5.7), another one each time."""
    return time_ms.to_bytes(6) + b"\x70\x00\x80" + next(_numbers).to_bytes(7)


class FakeShard:
    """One replica that leads, and commits whatever is proposed at the next turn of the loop."""

    def __init__(self, group: int) -> None:
        self.view = DictView()
        self.bodies: dict[tuple[int, int], bytes] = {}
        self.stalled = False
        self.entries = 0
        self.heard_s = 0.0
        self.others: dict[int, int] = {}  # voter -> durable index
        self.silent: set[int] = set()
        self.positions: list[Position] = []  # that others tell
        self.watched = False
        self._last = 1
        self.replica = Replica(
            group,
            replica_id(NODE, group + 1),
            MailStateMachine(),
            self.view,
            1,
            wake=self._wake,
            now=time.monotonic,
            standing=self,
        )
        self.lead()

    # ---- Standing: this replica and those of `others` are voters

    def leader_heard_s(self) -> float:
        return self.heard_s

    def in_contact(self) -> frozenset[int]:
        return frozenset({self.replica.replica, *self.others} - self.silent)

    def durable(self) -> dict[int, int]:
        if not self.replica.leadership.leading:
            return {}
        return {self.replica.replica: self._last, **self.others}

    def feature_level(self) -> int:
        return feature_levels.LEVEL

    def watch_disks(self) -> None:
        self.watched = True

    # ---- for tests

    def position(self, **changes: Any) -> Position:
        """How far this replica is, or another that differs in this."""
        replica = self.replica
        own = Position(
            replica.replica,
            replica.applied_index,
            self._last,
            1,
            (replica.replica, *self.others),
        )
        return dataclasses.replace(own, **changes)

    def on_disk(self, other: int, index: int) -> None:
        """Another voter has it on disk, and says so."""
        self.others[other] = index
        self.watched = self.replica.told_disks(self.durable())

    def lead(self) -> None:
        self.replica.lead(Leadership(self.replica.replica, 1, leading=True))

    def follow(self, leader: int) -> None:
        self.replica.lead(Leadership(leader, 2, leading=False))
        self.heard_s = time.monotonic()

    def _wake(self) -> None:
        asyncio.get_running_loop().call_soon(self.step)

    def step(self) -> None:
        if not self.stalled and (read := self.replica.next_read()) is not None:
            if self.replica.leadership.leading:
                self.replica.read_ready(read, self.replica.applied_index)
            else:  # as when the leader cannot be asked
                self.replica.read_refused(read)
        while not self.stalled and (proposed := self.replica.next_entry()) is not None:
            self._last += 1
            self.entries += 1
            entry = Entry(self._last, 1, proposed.kind, proposed.payload, proposed.bodies)
            self.replica.placed(proposed.token, entry.index, entry.term)
            done = self.replica.apply(entry)
            self.view.apply(done.effects)
            for ordinal, packed in enumerate(entry.bodies):
                self.bodies[entry.index, ordinal] = packed
            for effect in done.effects:
                if isinstance(effect, DeleteBody):
                    del self.bodies[effect.index, effect.ordinal]
            self.replica.applied(entry, done)


class FakeCluster:
    """Implements ClusterView."""

    cluster_id = "test-cluster"
    node = NODE
    epoch = 5
    feature_level = feature_levels.LEVEL

    def remember_level(self, level: int) -> None:
        """It has no folder."""

    def peers(self) -> list[Peer]:
        return []

    def groups(self) -> list[tuple[int, Configuration]]:
        return []

    def shard_of_slot(self, slot: int) -> int:
        return slot % SHARDS

    def configuration_version(self, _: int) -> int:
        return 1

    def is_new(self, _: int) -> bool:
        return False

    def adopted(self) -> None:
        """This map stays."""

    async def wait_newer(self, _: int, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)


class FakeNode:
    """Implements Shards and Maps."""

    node_name = "node-7"

    def __init__(self) -> None:
        self.cluster = FakeCluster()
        self.shards = {group: FakeShard(group) for group in HERE}
        self.meta_shard: FakeShard | None = None
        self.map = _map()
        self.stopping: asyncio.Event | None = None
        self.port = 0
        self.time_ms = START_MS

    def replica_for_account(self, account_id: str) -> Replica:
        group = self.cluster.shard_of_slot(slot_of(account_id))
        if group not in self.shards:
            raise errors.StaleRouteError(f"shard {group} is not here")
        return self.shards[group].replica

    def replicas(self) -> Iterable[Replica]:
        return [shard.replica for shard in self.shards.values()]

    @property
    def meta(self) -> Replica | None:
        return self.meta_shard.replica if self.meta_shard is not None else None

    def body(self, group: int, index: int, ordinal: int) -> bytes | None:
        return self.shards[group].bodies.get((index, ordinal))

    def digests(self, group: int) -> list[tuple[int, bytes]]:
        return [(self.shards[group].replica.applied_index, bytes(16))]

    def differing(self, group: int) -> frozenset[int]:
        return frozenset()

    def position(self, group: int) -> Position | None:
        return self.shards[group].position()

    async def other_positions(
        self, _own: Position, group: int, count: int, *, deadline_s: float
    ) -> list[Position]:
        assert deadline_s > self.now_s()
        return self.shards[group].positions[:count]

    def policy(self) -> cluster_pb2.LevelPolicy:
        return self.map.policy

    def now_s(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return self.time_ms

    def stamp_ms(self) -> int:
        return self.time_ms

    def settle(self, command: command_pb2.Command) -> None:
        command.undelete_window_ms = self.map.policy.undelete_window_ms

    def admit(self, replica: Replica, command: command_pb2.Command) -> None:
        """There is room."""

    def current(self) -> cluster_pb2.ClusterMap:
        return self.map

    async def wait_newer(self, epoch: int, timeout_s: float) -> None:
        await asyncio.sleep(min(timeout_s, 0.02))

    # ---- for tests

    def shard_of(self, account_id: str) -> FakeShard:
        return self.shards[self.cluster.shard_of_slot(slot_of(account_id))]

    def rows(self) -> dict[int, dict[bytes, bytes]]:
        """All that is stored, to see that nothing was."""
        clock = b"\xff\xff"
        return {
            group: {key: value for key, value in shard.view.rows.items() if key[:2] != clock}
            for group, shard in self.shards.items()
        }


def account_in(shard: int, name: str = "user") -> str:
    """An account id that lives in a shard."""
    return next(
        account_id
        for account_id in (f"{name}{number}" for number in range(10_000))
        if slot_of(account_id) % SHARDS == shard
    )


ALICE, BOB, ELSEWHERE = account_in(0, "alice"), account_in(1, "bob"), account_in(2, "eve")


def stub(channel: grpc.aio.Channel, module: Any, name: str) -> Any:
    """As the generated stub of a service, for the calls that take one request."""
    service = module.DESCRIPTOR.services_by_name[name]
    methods = SimpleNamespace()
    for method in service.methods:
        if not method.client_streaming:
            make = channel.unary_stream if method.server_streaming else channel.unary_unary
            call = make(
                f"/{service.full_name}/{method.name}",
                request_serializer=message_factory.GetMessageClass(
                    method.input_type
                ).SerializeToString,
                response_deserializer=message_factory.GetMessageClass(
                    method.output_type
                ).FromString,
            )
            setattr(methods, method.name, call)
    return methods


class Calls:
    """Stubs of every service, and the calls that most tests begin with."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.accounts = stub(channel, account_pb2, "AccountService")
        self.mailboxes = stub(channel, mailbox_pb2, "MailboxService")
        self.messages = stub(channel, message_service_pb2, "MessageService")
        self.blobs = stub(channel, blob_pb2, "BlobService")
        self.batch = stub(channel, batch_pb2, "BatchService")
        self.cluster = stub(channel, cluster_pb2, "ClusterService")
        self.channel = channel
        self.watch: Any = channel.stream_stream(
            "/mailraft.v1.MessageService/Watch",
            request_serializer=change_pb2.WatchRequest.SerializeToString,
            response_deserializer=change_pb2.WatchResponse.FromString,
        )

    async def create(self, account_id: str, **quota: int) -> account_pb2.CreateAccountResponse:
        request = account_pb2.CreateAccountRequest(account_id=account_id, request_id=request_id())
        if quota:
            request.account.quota.CopyFrom(account_pb2.Quota(**quota))
        response: account_pb2.CreateAccountResponse = await self.accounts.CreateAccount(request)
        return response

    async def deliver(self, *deliveries: delivery_pb2.Delivery) -> list[Any]:
        """The results, by delivery."""
        request = delivery_pb2.DeliverMessagesRequest(deliveries=deliveries)
        response = await self.messages.DeliverMessages(request)
        return [list(each.recipients) for each in response.results]

    async def append(
        self, account_id: str, *items: delivery_pb2.AppendItem, **options: Any
    ) -> delivery_pb2.AppendMessagesResponse:
        request = delivery_pb2.AppendMessagesRequest(
            account_id=account_id, request_id=request_id(), messages=items, **options
        )
        response: delivery_pb2.AppendMessagesResponse
        response = await self.messages.AppendMessages(request)
        return response

    async def fetch(self, account_id: str, message_id: str) -> bytes:
        """The whole message, as DownloadBlob sends it."""
        request = blob_pb2.DownloadBlobRequest(account_id=account_id, message_id=message_id)
        return b"".join([part.chunk.data async for part in self.blobs.DownloadBlob(request)])


def delivery(raw: bytes, *recipients: str, request: bytes = b"") -> delivery_pb2.Delivery:
    """One mail for some accounts' inboxes."""
    return delivery_pb2.Delivery(
        request_id=request or request_id(),
        content=delivery_pb2.Content(raw=raw),
        recipients=[delivery_pb2.Recipient(account_id=each) for each in recipients],
    )


def item(raw: bytes, **fields: Any) -> delivery_pb2.AppendItem:
    """One message to append."""
    return delivery_pb2.AppendItem(content=delivery_pb2.Content(raw=raw), **fields)


async def refusal(call: Any) -> errors.MailraftError:
    """The error that a call ends with; it must carry its ErrorInfo."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        failed = error
    else:
        raise AssertionError("the call was answered")
    told = errors.from_rpc_error(failed)
    assert told.reason, f"no ErrorInfo: {failed}"
    assert told.code is failed.code()
    return told


async def pages(call: Any, request: Any) -> list[Any]:
    """Every page of a listing."""
    found = []
    while True:
        response = await call(request)
        found.append(response)
        if not response.next_page_token:
            return found
        request.page_token = response.next_page_token


@asynccontextmanager
async def running() -> AsyncIterator[tuple[FakeNode, Calls]]:
    """A node that serves, and its caller."""
    node = FakeNode()
    stopping = node.stopping = asyncio.Event()
    size = [(f"grpc.max_{way}_message_length", limits.RPC_MAX_BYTES) for way in ("send", "receive")]
    server = grpc.aio.server(options=size)
    await services.register(server, node, node, "0.0.0", stopping)
    port = node.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=size) as channel:
        yield node, Calls(channel)
    await server.stop(None)


def read_at(level: common_pb2.Consistency.ValueType, **more: Any) -> common_pb2.ReadOptions:
    """ReadOptions with a level, known or not."""
    return common_pb2.ReadOptions(consistency=level, **more)


def _map() -> cluster_pb2.ClusterMap:
    told = cluster_pb2.ClusterMap(cluster_id=FakeCluster.cluster_id, epoch=5, slot_count=SLOTS)
    for shard in range(SHARDS):
        node = NODE if shard in HERE else OTHER_NODE
        told.shards.add(id=shard).replicas.add(replica_id=replica_id(node, shard + 1), node_id=node)
    told.nodes.add(id=NODE, name="node-7", address="127.0.0.1:1")
    told.nodes.add(id=OTHER_NODE, name="node-8", address="127.0.0.1:2")
    return told

"""Connections: one channel a node, calls bounded in number and in bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import Message

from mailraft.router.failures import LostError, NoAnswerError, UnreachableError, failure
from mailraft.router.methods import Method
from mailraft.wire import credentials as wire_credentials
from mailraft.wire import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

CALLS_PER_NODE_MAX = 1_024
BYTES_PER_NODE_MAX = 128 * 1024 * 1024
STREAMS_PER_NODE_MAX = 1_024
# A node that lives accepts a connection in this time; TLS and a busy event loop included.
CONNECT_TIMEOUT_S = 1.0
# For how long a node that could not be reached, or did not answer, is tried last.
SUSPECT_S = 3.0
# How often certificates are looked at, and how long calls under the old ones may go on.
CERTIFICATES_S = 1.0
OLD_CALLS_S = 60.0

Metadata = Sequence[tuple[str, str]]


class Node:
    """One node as it is reached from here."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.calls_in_flight = 0
        self.bytes_in_flight = 0
        self.streams = 0
        self.suspect_until_s = float("-inf")
        self._answered_s = float("-inf")
        self._channel = channel
        self._callables: dict[Method, Any] = {}
        self._connecting: asyncio.Task[None] | None = None

    @property
    def suspect(self) -> bool:
        """It failed a short while ago."""
        return self.suspect_until_s > asyncio.get_running_loop().time()

    async def unary(
        self,
        method: Method,
        request: Message,
        timeout_s: float,
        metadata: Metadata,
        size_bytes: int = 0,
    ) -> Message:
        """One call, one try.

        Raises OverloadedError or UnreachableError (not sent), LostError (fate not known), or what
        the node answers.
        """
        with self._slot(size_bytes):
            await self._connect(timeout_s)
            started_s = asyncio.get_running_loop().time()
            try:
                response: Message = await self._callable(method)(
                    request, timeout=timeout_s, metadata=metadata
                )
            except grpc.aio.AioRpcError as error:
                raise self.failure(error, started_s) from None
            self._answered()
            return response

    async def stream(
        self, method: Method, request: Message, timeout_s: float | None, metadata: Metadata
    ) -> AsyncGenerator[Message, None]:
        """The responses of a server-streaming call. Errors as those of `unary`."""
        with self._stream_slot():
            await self._connect(timeout_s)
            call = self._callable(method)(request, timeout=timeout_s, metadata=metadata)
            try:
                async for response in call:
                    yield response
            except grpc.aio.AioRpcError as error:
                raise self.failure(error) from None
            finally:
                call.cancel()

    async def open_stream(self, method: Method, timeout_s: float | None, metadata: Metadata) -> Any:
        """A client-streaming or bidirectional grpc.aio call; `failure` translates its errors."""
        if self.streams >= STREAMS_PER_NODE_MAX:
            raise errors.OverloadedError(f"{self.streams} streams to {self.address} are open")
        await self._connect(timeout_s)
        call = self._callable(method)(timeout=timeout_s, metadata=metadata)
        self.streams += 1
        call.add_done_callback(self._stream_done)
        return call

    def failure(
        self, error: grpc.aio.AioRpcError, started_s: float | None = None
    ) -> errors.MailraftError:
        """What a failed call says: the node's own error, or UnreachableError or LostError."""
        told = failure(self.address, errors.from_rpc_error(error))
        if told.reason:
            self._answered()
        elif isinstance(told, NoAnswerError):
            # A slow call among others that are answered says nothing about the node.
            if started_s is None or self._answered_s < started_s:
                self.mark_suspect()
        elif isinstance(told, LostError | UnreachableError):
            self.mark_suspect()
        return told

    def mark_suspect(self) -> None:
        self.suspect_until_s = asyncio.get_running_loop().time() + SUSPECT_S

    def _answered(self) -> None:
        self._answered_s = asyncio.get_running_loop().time()
        self.suspect_until_s = float("-inf")

    async def close(self, grace_s: float | None = None) -> None:
        if grace_s is None and self._connecting is not None:
            self._connecting.cancel()
        await self._channel.close(grace_s)

    # ---- inside ----------------------------------------------------------------------------------

    @contextmanager
    def _slot(self, size_bytes: int) -> Iterator[None]:
        if (
            self.calls_in_flight >= CALLS_PER_NODE_MAX
            or self.bytes_in_flight + size_bytes > BYTES_PER_NODE_MAX
        ):
            raise errors.OverloadedError(f"{self.calls_in_flight} calls to {self.address} are open")
        self.calls_in_flight += 1
        self.bytes_in_flight += size_bytes
        try:
            yield
        finally:
            self.calls_in_flight -= 1
            self.bytes_in_flight -= size_bytes

    @contextmanager
    def _stream_slot(self) -> Iterator[None]:
        if self.streams >= STREAMS_PER_NODE_MAX:
            raise errors.OverloadedError(f"{self.streams} streams to {self.address} are open")
        self.streams += 1
        try:
            yield
        finally:
            self.streams -= 1

    def _stream_done(self, _: object) -> None:
        self.streams -= 1

    def _callable(self, method: Method) -> Any:
        found = self._callables.get(method)
        if found is None:
            if method.client_streaming:
                kind = "stream_stream" if method.server_streaming else "stream_unary"
            else:
                kind = "unary_stream" if method.server_streaming else "unary_unary"
            found = getattr(self._channel, kind)(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            self._callables[method] = found
        return found

    async def _connect(self, timeout_s: float | None) -> None:
        """Have a connection before anything is sent, so that its lack is known as such."""
        if self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._wait_connected())
            self._connecting.add_done_callback(self._connected)
        limit_s = CONNECT_TIMEOUT_S if timeout_s is None else min(timeout_s, CONNECT_TIMEOUT_S)
        try:
            await asyncio.wait_for(asyncio.shield(self._connecting), limit_s)
        except TimeoutError:
            self.mark_suspect()
            raise UnreachableError(f"{self.address} does not accept connections") from None

    async def _wait_connected(self) -> None:
        while True:
            state = self._channel.get_state(try_to_connect=True)
            if state is grpc.ChannelConnectivity.READY:
                return
            if state in {
                grpc.ChannelConnectivity.TRANSIENT_FAILURE,
                grpc.ChannelConnectivity.SHUTDOWN,
            }:
                self.mark_suspect()
                raise UnreachableError(f"{self.address} refuses connections")
            await self._channel.wait_for_state_change(state)

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # seen, even if nobody waits any more


class Pool:
    """The nodes, by address."""

    def __init__(
        self,
        credentials: wire_credentials.AnyCredentials,
        options: wire_credentials.Options = (),
    ) -> None:
        self._credentials = credentials
        self._options = options
        self._nodes: dict[str, Node] = {}
        self._stamp = credentials.stamp()
        self._looked_s = float("-inf")
        self._closing: set[asyncio.Task[None]] = set()

    def node(self, address: str) -> Node:
        """The node at an address; its channel connects when it is first used."""
        self._follow_certificates()
        found = self._nodes.get(address)
        if found is None:
            channel = wire_credentials.open_channel(address, self._credentials, self._options)
            found = self._nodes[address] = Node(address, channel)
        return found

    def _follow_certificates(self) -> None:
        """Once they are changed, new calls go over new channels; old calls end on the old ones."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._looked_s + CERTIFICATES_S:
            return
        self._looked_s = now_s
        stamp = self._credentials.stamp()
        if not stamp or stamp == self._stamp:
            return
        old, self._nodes, self._stamp = self._nodes, {}, stamp
        for node in old.values():
            task = asyncio.create_task(node.close(OLD_CALLS_S))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def keep(self, addresses: Iterable[str]) -> None:
        """Close the channels of nodes that are gone from the map and have nothing in flight."""
        kept = set(addresses)
        for address, node in list(self._nodes.items()):
            if address not in kept and not node.calls_in_flight and not node.streams:
                del self._nodes[address]
                await node.close()

    async def close(self) -> None:
        nodes, self._nodes = self._nodes, {}
        for node in nodes.values():
            await node.close()

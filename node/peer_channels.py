"""Channels for calls from node to node, one an address, opened when they are first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc

from mailraft.node.interfaces import Peer
from mailraft.wire.credentials import AnyCredentials, open_channel

# Calls on a channel of certificates that were changed may go on for so long.
CALLS_END_S = 60.0


class PeerChannels:
    def __init__(self, credentials: AnyCredentials) -> None:
        self._credentials = credentials
        self._channels: dict[str, grpc.aio.Channel] = {}  # by address
        self._stamp = credentials.stamp()
        self._closing: set[asyncio.Task[None]] = set()

    def to(self, peer: Peer) -> grpc.aio.Channel:
        stamp = self._credentials.stamp()
        if stamp and stamp != self._stamp:  # certificates were changed
            self._stamp = stamp
            for old in self._channels.values():
                task = asyncio.create_task(old.close(CALLS_END_S))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            self._channels.clear()
        channel = self._channels.get(peer.address)
        if channel is None:
            channel = self._channels[peer.address] = open_channel(peer.address, self._credentials)
        return channel

    async def keep(self, peers: Iterable[Peer]) -> None:
        """Close the channels to all others: they have left, or moved."""
        gone = self._channels.keys() - {peer.address for peer in peers}
        await asyncio.gather(*(self._channels.pop(address).close(None) for address in gone))

    async def close(self) -> None:
        await self.keep(())

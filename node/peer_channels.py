"""Channels for calls from node to node, one an address, opened when they are first needed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc

from mailraft.node.interfaces import Peer
from mailraft.wire.credentials import AnyCredentials, open_channel


class PeerChannels:
    def __init__(self, credentials: AnyCredentials) -> None:
        self._credentials = credentials
        self._channels: dict[str, grpc.aio.Channel] = {}  # by address

    def to(self, peer: Peer) -> grpc.aio.Channel:
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

"""Channels for calls from node to node."""

from __future__ import annotations

from collections.abc import Iterable

import grpc

from mailraft.node.interfaces import Peer
from mailraft.wire.channels import Channels
from mailraft.wire.credentials import AnyCredentials


class PeerChannels:
    def __init__(self, credentials: AnyCredentials) -> None:
        self._channels = Channels(credentials)

    def to(self, peer: Peer) -> grpc.aio.Channel:
        return self._channels.to(peer.address)

    async def keep(self, peers: Iterable[Peer]) -> None:
        """Close the channels to all others: they have left, or moved."""
        await self._channels.keep(peer.address for peer in peers)

    async def close(self) -> None:
        await self._channels.close()

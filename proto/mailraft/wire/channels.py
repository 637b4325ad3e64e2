"""Channels that are kept, one an address, opened when they are first needed, and opened anew once
the certificates are changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc

from mailraft.wire.credentials import AnyCredentials, Options, open_channel

# Calls on a channel of certificates that were changed may go on for so long.
CALLS_END_S = 60.0


class Channels:
    """`to` is cheap: ask it before each call, rather than keep what it answers."""

    def __init__(self, credentials: AnyCredentials, options: Options = ()) -> None:
        self._credentials, self._options = credentials, options
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stamp = credentials.stamp()
        self._closing: set[asyncio.Task[None]] = set()

    def to(self, address: str) -> grpc.aio.Channel:
        """Raises InsecureAddressError for plain text to another machine."""
        stamp = self._credentials.stamp()
        if stamp and stamp != self._stamp:  # certificates were changed
            self._stamp = stamp
            for old in self._channels.values():
                task = asyncio.create_task(old.close(CALLS_END_S))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
            self._channels.clear()
        channel = self._channels.get(address)
        if channel is None:
            channel = open_channel(address, self._credentials, self._options)
            self._channels[address] = channel
        return channel

    async def keep(self, addresses: Iterable[str]) -> None:
        """Close the channels to all others."""
        gone = self._channels.keys() - set(addresses)
        await asyncio.gather(*(self._channels.pop(address).close(None) for address in gone))

    async def close(self) -> None:
        """All of them."""
        await self.keep(())
        for task in tuple(self._closing):
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)

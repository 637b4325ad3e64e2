"""What a server does with the rest of a stream that it refuses.

A stream that ends while its caller is in the middle of a write shows that caller a broken write
(in grpc.aio INTERNAL, without any detail) in place of the refusal. So what is on its way is taken
and thrown away first, for a short time, and then the refusal is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

QUIET_S = 0.1  # nothing for so long: the caller has ended, or is not writing now
DRAIN_MAX_S = 2.0  # a caller who goes on and on gets the broken write


async def drain(requests: AsyncIterator[Any]) -> None:
    """Take what comes until the stream ends, is quiet, or its time is over. Never raises."""
    with suppress(Exception):  # the end, the time, or a stream that broke: nothing is left to take
        async with asyncio.timeout(DRAIN_MAX_S):
            while True:
                async with asyncio.timeout(QUIET_S):
                    await anext(requests)

"""Large messages on a cluster of real processes, one of which dies meanwhile."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

import pytest

from mailraft.client import AsyncClient, NewMessage
from mailraft.cluster.local import LocalCluster

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.timeout(180)]

SIZE_BYTES = 12 * 1024 * 1024
LARGE = b"Subject: large\r\n\r\n" + hashlib.shake_128(b"large").digest(SIZE_BYTES)
DEADLINE_S = 120.0


class Watched(io.BytesIO):
    """Calls back when half of it is read to be sent, and knows where each sending began."""

    def __init__(self, raw: bytes, half_sent: Callable[[], None]) -> None:
        super().__init__(raw)
        self.begun: list[int] = []
        self._half_sent = half_sent
        self._called = False

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.begun.append(offset)
        return super().seek(offset, whence)

    def read(self, size_bytes: int | None = -1) -> bytes:
        sending = len(self.begun) > 1  # the first time it is only measured
        if sending and self.tell() > SIZE_BYTES // 2 and not self._called:
            self._called = True
            self._half_sent()
        return super().read(size_bytes)


async def test_an_upload_outlives_the_leader(cluster: LocalCluster, client: AsyncClient) -> None:
    """Killed when half has come: the same call goes on at the next leader with what is missing, and
    the message has the bytes that were sent, there and on the node that comes back.
    """
    await client.create_account("alice")
    shard = (await client.locate("alice")).shard.id
    leader = (await cluster.leaders())[shard]
    file = Watched(LARGE, lambda: cluster.kill(leader))
    blob_id = await client.upload("alice", file, deadline_s=DEADLINE_S)
    measured, first, *later = file.begun
    assert (measured, first) == (0, 0)
    assert later, "nothing broke"
    assert 0 < later[-1] < SIZE_BYTES, "it began anew"
    assert (await cluster.leaders())[shard] != leader
    [stored] = await client.append("alice", [NewMessage(b"", blob_id=blob_id)])
    assert await client.fetch_body("alice", stored.message_id) == LARGE
    cluster.start(leader)
    await cluster.wait_ready()
    again = await client.append("alice", [NewMessage(b"", blob_id=blob_id)])
    assert await client.fetch_body("alice", again[0].message_id) == LARGE

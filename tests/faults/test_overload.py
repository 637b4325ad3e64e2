"""Row 12: ten times as many callers as a cluster can serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.faults.rows import ROWS

from mailraft.client.ids import request_ids
from mailraft.cluster.child import Child
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.router.methods import METHODS
from mailraft.v1 import delivery_pb2
from mailraft.wire import errors
from mailraft.wire.credentials import open_channel

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

ACCOUNTS = tuple(f"account-{number}" for number in range(8))
# What the router admits; as many callers keep it busy and are never refused.
CALLS_MAX = 48
TIMES = 10
WARM_S, MEASURED_S = 3.0, 10.0
GOODPUT_MIN = 0.8
GROWTH_MAX_MIB = 64.0
_DELIVER = METHODS["/mailraft.v1.MessageService/DeliverMessages"]


class Small(LocalCluster):
    """A cluster behind a router that admits few calls."""

    def _make_router(self) -> Child:
        child = super()._make_router()
        with (self.folder / "router" / "router.toml").open("a", encoding="utf-8") as settings:
            settings.write(f"calls_max = {CALLS_MAX}\n")
        return child


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Three nodes and the router."""
    async with Small(tmp_path / "cluster", LocalOptions(shards=4)) as running:
        await running.wait_ready()
        yield running


@dataclass
class Callers:
    """Each delivers without pause, each call by itself, and comes back when it is told to."""

    deliver: Any
    begun: count[int] = field(default_factory=count)
    done: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    other: list[str] = field(default_factory=list)

    async def call(self) -> None:
        while True:
            account = ACCOUNTS[next(self.begun) % len(ACCOUNTS)]
            delivery = delivery_pb2.Delivery(
                request_id=request_ids.next(),
                content=delivery_pb2.Content(raw=b"Subject: hello\r\n\r\nbody"),
                recipients=[delivery_pb2.Recipient(account_id=account)],
            )
            request = delivery_pb2.DeliverMessagesRequest(deliveries=[delivery])
            began_s = time.monotonic()
            try:
                reply = await self.deliver(request, timeout=10.0)
            except grpc.aio.AioRpcError as failed:
                error = errors.from_rpc_error(failed)
                if isinstance(error, errors.OverloadedError) and error.retry_after_ms:
                    self.refused += 1
                    await asyncio.sleep(error.retry_after_ms / 1000)
                else:
                    self.other.append(repr(error))
                continue
            if code := reply.results[0].recipients[0].code:
                self.other.append(f"{code} {reply.results[0].recipients[0].message}")
            else:
                self.done += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)

    async def measured(self, callers: int) -> float:
        """Deliveries a second, once so many callers have been at it for a while."""
        tasks = [asyncio.create_task(self.call()) for _ in range(callers)]
        await asyncio.sleep(WARM_S)
        self.done, self.refused, self.slowest_s = 0, 0, 0.0
        began_s = time.monotonic()
        await asyncio.sleep(MEASURED_S)
        rate = self.done / (time.monotonic() - began_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return rate


def resident_mib(cluster: LocalCluster) -> float:
    """Memory of all processes of the cluster."""
    total = 0.0
    for child in cluster.children():
        for line in Path(f"/proc/{child.pid}/status").read_text("ascii").splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) / 1024
    return total


async def test_ten_times_as_many_callers(small: LocalCluster) -> None:
    """What is served stays at 80% of the peak or more, the rest is told when to come back, and no
    process grows.
    """
    async with small.client() as client:
        for account in ACCOUNTS:
            await client.create_account(account)
    async with open_channel(small.router_address, small.credentials()) as channel:
        deliver = channel.unary_unary(
            _DELIVER.path,
            request_serializer=_DELIVER.request.SerializeToString,
            response_deserializer=_DELIVER.response.FromString,
        )
        callers = Callers(deliver)
        # Before and after, since this machine has other things to do as well.
        peaks = [await callers.measured(CALLS_MAX)]
        assert not callers.refused
        before_mib = resident_mib(small)
        goodput = await callers.measured(TIMES * CALLS_MAX)
        done, refused, slowest_s = callers.done, callers.refused, callers.slowest_s
        grown_mib = resident_mib(small) - before_mib
        peaks.append(await callers.measured(CALLS_MAX))
        peak = sum(peaks) / len(peaks)
    remark = (
        f"peak {peak:.0f}/s, at {TIMES} times the callers {goodput:.0f}/s ({goodput / peak:.0%}), "
        f"{refused / MEASURED_S:.0f}/s refused, slowest {slowest_s:.2f} s, "
        f"{grown_mib:+.0f} MiB"
    )
    counts = (done + refused, done, done, 0, 0, "-", remark)
    ROWS.append(("12 ten times the callers", *map(str, counts)))
    assert not callers.other, callers.other[:3]
    assert done >= 1_000, "void"
    assert refused > 100, "void: nobody was refused"
    assert goodput >= GOODPUT_MIN * peak, remark
    assert grown_mib < GROWTH_MAX_MIB, remark

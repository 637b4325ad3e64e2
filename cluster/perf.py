"""A short look at how fast a cluster or a disk is, and whether that is what mailraft needs.

Harmless: small synced writes into a file that goes, calls that do nothing, and small deliveries
into an account that is deleted again; all bounded in number and time.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import grpc

from mailraft.client import AsyncClient
from mailraft.cluster.asking import ask_nodes
from mailraft.internal.v1 import inspect_service_pb2 as pb
from mailraft.internal.v1 import inspect_service_pb2_grpc
from mailraft.node.inspect import synced_writes_us
from mailraft.v1 import cluster_pb2
from mailraft.wire import errors
from mailraft.wire.credentials import AnyCredentials

# What is expected, in milliseconds. Every acknowledged write waits for a synced write on a majority
# of disks and for a round trip between nodes: much more than this, and mail waits for them.
SYNC_P50_MS_MAX, SYNC_P99_MS_MAX = 10.0, 50.0
ROUND_TRIP_P50_MS_MAX = 5.0
DELIVERIES_PER_S_MIN, DELIVERY_P99_MS_MAX = 100.0, 500.0

ROUNDS, MEASURE_S_MAX = 30, 60.0
FOLDER_ROUNDS = 100
CALLERS, MESSAGE_BYTES = 16, 4_096
ACCOUNT_PREFIX = "perf-check-"
LATE_S_MAX = 10.0  # for the last deliveries, and for the account to go


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was measured. figures and expected: for people."""

    what: str
    figures: str
    expected: str
    good: bool

    def __str__(self) -> str:
        word = "OK  " if self.good else "SLOW"
        return f"{word} {self.what}: {self.figures} (expected: {self.expected})"


def of_sync(where: str, took_us: Sequence[int]) -> Finding:
    """Small synced writes to a disk."""
    p50, p99 = _ms(took_us, 50), _ms(took_us, 99)
    return Finding(
        f"{where} synced write",
        f"p50={p50:.1f} ms p99={p99:.1f} ms",
        f"p50 below {SYNC_P50_MS_MAX:g} ms, p99 below {SYNC_P99_MS_MAX:g} ms",
        good=p50 < SYNC_P50_MS_MAX and p99 < SYNC_P99_MS_MAX,
    )


def of_peer(here: str, there: str, told: pb.PeerMeasured) -> Finding:
    """Calls between two nodes."""
    expected = f"p50 below {ROUND_TRIP_P50_MS_MAX:g} ms"
    if not told.round_trip_us:
        return Finding(
            f"{here} to {there} round trip", told.error or "no answer", expected, good=False
        )
    p50, p99 = _ms(told.round_trip_us, 50), _ms(told.round_trip_us, 99)
    figures = f"p50={p50:.1f} ms p99={p99:.1f} ms"
    return Finding(
        f"{here} to {there} round trip", figures, expected, good=p50 < ROUND_TRIP_P50_MS_MAX
    )


def of_deliveries(took_us: Sequence[int], failed: int, seconds: float) -> Finding:
    """Small deliveries, acknowledged as usual."""
    rate = len(took_us) / seconds
    p99 = _ms(took_us, 99) if took_us else float("inf")
    figures = f"{rate:.0f}/s of {MESSAGE_BYTES} bytes, p99={p99:.0f} ms"
    if failed:
        figures += f", {failed} failed"
    return Finding(
        f"deliveries by {CALLERS} callers",
        figures,
        f"{DELIVERIES_PER_S_MIN:g}/s or more, p99 below {DELIVERY_P99_MS_MAX:g} ms",
        good=not failed and rate >= DELIVERIES_PER_S_MIN and p99 < DELIVERY_P99_MS_MAX,
    )


def _ms(took_us: Sequence[int], percent: int) -> float:
    ordered = sorted(took_us)
    if percent == 50:
        return statistics.median(ordered) / 1000
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] / 1000


def check_folder(folder: Path) -> list[Finding]:
    """The disk that a folder is on. Raises OSError."""
    return [of_sync(str(folder), synced_writes_us(folder, FOLDER_ROUNDS))]


async def check_nodes(
    cluster_map: cluster_pb2.ClusterMap, credentials: AnyCredentials
) -> list[Finding]:
    """Every node's disk, and its way to every other. Raises OverloadedError: it is looked at."""
    request = pb.MeasureRequest(cluster_id=cluster_map.cluster_id, rounds=ROUNDS)

    async def ask(channel: grpc.aio.Channel) -> pb.MeasureResponse:
        stub = inspect_service_pb2_grpc.InspectServiceStub(channel)
        answer: pb.MeasureResponse = await stub.Measure(request, timeout=MEASURE_S_MAX)
        return answer

    asked = await ask_nodes(cluster_map, credentials, ask)
    name = {each.id: each.name for each in cluster_map.nodes}
    found = [of_sync(node, told.sync_us) for node, told in asked.answers.items()]
    for node, told in asked.answers.items():
        found += [of_peer(node, name.get(each.node_id, "?"), each) for each in told.peers]
    found += [Finding(node, "does not answer", "an answer", good=False) for node in asked.silent]
    return found


async def check_deliveries(client: AsyncClient, seconds: float) -> list[Finding]:
    """Deliver for so long into an account of its own, which is deleted again."""
    account = f"{ACCOUNT_PREFIX}{uuid4()}"
    await client.create_account(account)
    try:
        found = [await _deliveries(client, account, seconds)]
    finally:
        left = await _left_over(client, account)
    return [*found, left] if left is not None else found


async def _left_over(client: AsyncClient, account: str) -> Finding | None:
    """Delete it; what to tell if that did not go."""
    try:
        async with asyncio.timeout(LATE_S_MAX):
            await client.delete_account(account, force=True)
    except (errors.MailraftError, TimeoutError) as error:
        return Finding(
            f"account {account}", f"is left ({type(error).__name__})", "gone", good=False
        )
    return None


async def _deliveries(client: AsyncClient, account: str, seconds: float) -> Finding:
    took_us: list[int] = []
    failed = 0
    began_s = time.monotonic()

    async def caller() -> None:
        nonlocal failed
        while time.monotonic() - began_s < seconds:
            raw = b"Subject: perf check\r\n\r\n" + os.urandom(MESSAGE_BYTES // 2).hex().encode()
            called_ns = time.monotonic_ns()
            try:
                await client.deliver(raw, to=[account])
            except errors.MailraftError:
                failed += 1
            else:
                took_us.append((time.monotonic_ns() - called_ns) // 1000)

    try:
        async with asyncio.timeout(seconds + LATE_S_MAX):
            await asyncio.gather(*(caller() for _ in range(CALLERS)))
    except TimeoutError:
        failed += 1
    return of_deliveries(took_us, failed, time.monotonic() - began_s)

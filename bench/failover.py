"""How long a shard takes no writes after SIGKILL of its leader: make failover.

A write is sent the moment the leader is killed, by a client that still believes in it; measured is
until it is acknowledged. Terms say how many elections it took: 1 or 2 is right, more is a storm.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mailraft.client import AsyncClient
from mailraft.cluster.local import LocalCluster, LocalOptions

SHARD = 1
SHARDS = 4
TRIES = 20
REST_S = 2.0
DEADLINE_S = 30.0
AIM_P95_S = 1.0
TERMS_MAX = 2


async def account_of(client: AsyncClient) -> str:
    """A new account in the shard."""
    for number in range(1_000):
        account = f"account-{number}"
        if (await client.locate(account)).shard.id == SHARD:
            await client.create_account(account)
            return account
    raise AssertionError(f"no account in shard {SHARD}")


async def one_try(cluster: LocalCluster, client: AsyncClient, account: str) -> tuple[float, int]:
    """Seconds until the next write is acknowledged, and by how much the term rose."""
    await client.deliver(b"before", to=[account])
    before = (await cluster.hints())[SHARD]
    began_s = time.monotonic()
    cluster.kill_soon(before.node_id)
    await client.deliver(b"after", to=[account], deadline_s=DEADLINE_S)
    took_s = time.monotonic() - began_s
    cluster.kill(before.node_id)
    after = (await cluster.hints())[SHARD]
    cluster.start(before.node_id)
    await cluster.wait_ready()
    await asyncio.sleep(REST_S)
    return took_s, after.term - before.term


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all do not pass."""
    return sorted_values[max(0, math.ceil(share * len(sorted_values)) - 1)]


async def measure(tries: int, folder: Path) -> list[tuple[float, int]]:
    """Each try: seconds, terms."""
    found: list[tuple[float, int]] = []
    async with LocalCluster(folder, LocalOptions(shards=SHARDS)) as cluster:
        await cluster.wait_ready()
        async with cluster.client(deadline_s=DEADLINE_S) as client:
            account = await account_of(client)
            for number in range(1, tries + 1):
                took_s, terms = await one_try(cluster, client, account)
                found.append((took_s, terms))
                print(f"try {number:2}: {took_s:.3f} s, term +{terms}", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=TRIES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mailraft-failover-") as folder:
        found = asyncio.run(measure(arguments.tries, Path(folder)))
    times_s = sorted(took_s for took_s, _ in found)
    terms = [advanced for _, advanced in found]
    p50_s, p95_s = percentile(times_s, 0.5), percentile(times_s, 0.95)
    print(f"failover of {len(found)} tries: p50 {p50_s:.3f} s, p95 {p95_s:.3f} s", end=", ")
    print(f"max {times_s[-1]:.3f} s (aim: p95 <= {AIM_P95_S:.1f} s)")
    print(f"terms advanced by {min(terms)} to {max(terms)} (aim: 1 to {TERMS_MAX})")
    return 0 if p95_s <= AIM_P95_S and max(terms) <= TERMS_MAX else 1


if __name__ == "__main__":
    sys.exit(main())

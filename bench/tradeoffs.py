"""What each consistency level costs and survives, into docs/tradeoffs.md: make tradeoffs."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from bench import tradeoffs_report
from bench.tradeoffs_measure import (
    KILLS,
    PARTITIONS,
    Availabilities,
    availability,
    callers,
    costs,
)
from tests.faults.network import ProxiedCluster

from mailraft.cluster.local import LocalCluster, LocalOptions

DOCS = Path(__file__).parent.parent / "docs"
OPTIONS = LocalOptions(shards=1)


async def measure(folder: Path, seed: int) -> tradeoffs_report.Measured:
    """Cost on a cluster that is whole, then each fault."""
    under: dict[str, Availabilities] = {}
    async with LocalCluster(folder / "whole", OPTIONS) as whole:
        await whole.wait_ready()
        async with callers(whole) as mail:
            cost = await costs(mail, Random(seed))
            print("\n".join(tradeoffs_report.cost_tables(cost)), flush=True)
        for name in KILLS:
            under[name] = await availability(whole, KILLS[name])
    async with ProxiedCluster(folder / "proxied", OPTIONS) as proxied:
        await proxied.wait_ready()
        async with callers(proxied):
            for name in PARTITIONS:
                under[name] = await availability(proxied, PARTITIONS[name])
    return tradeoffs_report.Measured(cost, under)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mailraft-tradeoffs-") as folder:
        measured = asyncio.run(measure(Path(folder), arguments.seed))
    print("\n".join(tradeoffs_report.availability_tables(measured.under)))
    tradeoffs_report.write(measured, DOCS)
    print(f"written to docs/tradeoffs.md after {time.monotonic() - began_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

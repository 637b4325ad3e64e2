"""Runs many histories and counts what happened in them: `make sim SEEDS=n SEED0=k`."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.sim.histories import History, run_history
from tests.sim.shrink import shrink

CHUNK = 5


def counts_of(history: History) -> Counter[str]:
    """What happened in a history, by name."""
    done = history.acknowledged
    return Counter(
        {
            "operations": len(history.operations),
            "acknowledged": len(done),
            "reads": sum(operation.value is None for operation in done),
            "power cuts": history.world.power_cuts,
            "elections": history.elections,
            "faults": len(history.plan.faults),
            "histories": 1,
        }
    )


def run_chunk(first: int, *, end: int) -> tuple[Counter[str], str]:
    """Counts of the seeds from `first`, and the report of one that failed."""
    counts: Counter[str] = Counter()
    for seed in range(first, min(first + CHUNK, end)):
        try:
            counts += counts_of(run_history(seed))
        except Exception:  # noqa: BLE001 - whatever it was, it is tried again with fewer faults
            return counts, str(shrink(seed))
    return counts, ""


def main(argv: list[str]) -> int:
    """Prints the counts; at the first failure its seed and a minimal transcript, and answers 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=150)
    parser.add_argument("--seed0", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(argv)
    end = options.seed0 + options.seeds
    began_s = time.monotonic()
    counts: Counter[str] = Counter()
    with ProcessPoolExecutor(options.workers) as pool:
        chunks = range(options.seed0, end, CHUNK)
        for found, failure in pool.map(partial(run_chunk, end=end), chunks):
            counts += found
            if failure:
                pool.shutdown(wait=False, cancel_futures=True)
                print(failure)
                return 1
    took_s = time.monotonic() - began_s
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    print(f"no failure in seeds {options.seed0} to {end - 1} ({took_s:.0f} s): {told}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What each layer of a delivery costs, as a table; or whether one has become dearer.

    python -m bench.micro                 # the table
    python -m bench.micro --check         # against bench/micro/recorded.json: exits with 1
    python -m bench.micro --record        # write that file anew

Costs are processor time, of all threads, so that a busy machine changes little; they are told as
multiples of a fixed piece of work (reference.py) that is measured in turn with each layer. The best
of many short rounds counts, of layer and reference alike. So what is compared is never a time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.micro.layers import Layer, layers
from bench.micro.reference import reference

RECORDED = Path(__file__).with_name("recorded.json")
ROUNDS = 12
ROUND_S = 0.05
# A layer has regressed when it costs so many times what was recorded. Runs of the same code
# differed by 0.85 to 1.25, on two processors that twenty other processes wanted.
REGRESSED = 1.5


async def measure(found: dict[str, Layer]) -> dict[str, float]:
    """Of each layer, its cost a delivery in thousandths of the reference's."""
    units: dict[str, float] = {}
    for name, layer in found.items():
        for _ in range(3):
            await layer.run()
        own_s, reference_s = float("inf"), float("inf")
        for _ in range(ROUNDS):
            reference_s = min(reference_s, await _round(_reference))
            own_s = min(own_s, await _round(layer.run))
        units[name] = 1000 * own_s / reference_s
    return units


async def _reference() -> int:
    reference()
    return 1


async def _round(run: Callable[[], Awaitable[int]]) -> float:
    """Processor seconds for one thing."""
    done, began_s = 0, time.process_time()
    while time.process_time() - began_s < ROUND_S:
        done += await run()
    return (time.process_time() - began_s) / done


def regressions(recorded: dict[str, float], measured: dict[str, float]) -> list[str]:
    """What is worth failing for. A layer that only one of both has is told, too."""
    found = [f"{name}: recorded, not measured" for name in recorded.keys() - measured.keys()]
    found += [f"{name}: measured, not recorded" for name in measured.keys() - recorded.keys()]
    for name in sorted(recorded.keys() & measured.keys()):
        times = measured[name] / recorded[name]
        if times > REGRESSED:
            found.append(f"{name}: {times:.2f} times what was recorded (at most {REGRESSED})")
    return sorted(found)


def table(measured: dict[str, float], recorded: dict[str, float]) -> str:
    """One line a layer."""
    lines = [f"{'layer':22} {'cost':>7} {'recorded':>9} {'ratio':>6}   (1000 = the reference)"]
    for name, cost in measured.items():
        before = recorded.get(name)
        told = f"{before:9.1f} {cost / before:6.2f}" if before else f"{'-':>9} {'-':>6}"
        lines.append(f"{name:22} {cost:7.1f} {told}")
    return "\n".join(lines)


async def _measured() -> dict[str, float]:
    async with layers() as found:
        return await measure(found)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.micro", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 on a regression")
    parser.add_argument("--record", action="store_true", help="write recorded.json anew")
    options = parser.parse_args()
    recorded: dict[str, float] = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    measured = asyncio.run(_measured())
    print(table(measured, recorded))
    if options.record:
        rounded = {name: round(cost, 1) for name, cost in measured.items()}
        RECORDED.write_text(json.dumps(rounded, indent=2) + "\n")
    if not options.check:
        return 0
    found = regressions(recorded, measured)
    for line in found:
        print(f"REGRESSED  {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""What a cluster costs that does nothing: CPU and memory of a node, against its number of groups.

    .venv/bin/python bench/idle_groups.py [--groups 64 256] [--seconds 20]

Three nodes with replication 3, so every node has a replica of every group. CPU seconds are counted,
not time, so a busy machine changes the figures little.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from mailraft.cluster.local import LocalCluster, LocalOptions

SETTLE_S = 10.0
# Aims of the design: of one core, and of memory, per node.
CPU_AIM_PERCENT = {64: 5.0, 256: 10.0}
MEMORY_AIM_MIB = {64: 200}


async def measure(groups: int, seconds: float) -> list[tuple[float, float]]:
    """(percent of a core, MiB resident) per node, idle."""
    with tempfile.TemporaryDirectory(prefix="mailraft-idle-") as folder:
        async with LocalCluster(Path(folder) / "cluster", LocalOptions(shards=groups)) as cluster:
            await cluster.wait_ready(120.0)
            await asyncio.sleep(SETTLE_S)
            processes = [psutil.Process(cluster.pid_of(node)) for node in cluster.nodes]
            before = [_cpu_s(process) for process in processes]
            await asyncio.sleep(seconds)
            used = [_cpu_s(p) - b for p, b in zip(processes, before, strict=True)]
            memory = [process.memory_info().rss / 2**20 for process in processes]
    return [(100 * cpu / seconds, mib) for cpu, mib in zip(used, memory, strict=True)]


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU and memory of idle nodes")
    parser.add_argument("--groups", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    print("groups   cpu of a core, per node      MiB resident, per node")
    for groups in options.groups:
        figures = asyncio.run(measure(groups, options.seconds))
        cpu = " ".join(f"{percent:5.1f} %" for percent, _ in figures)
        memory = " ".join(f"{mib:5.0f}" for _, mib in figures)
        aims = [f"cpu {CPU_AIM_PERCENT[groups]} %"] if groups in CPU_AIM_PERCENT else []
        aims += [f"{MEMORY_AIM_MIB[groups]} MiB"] if groups in MEMORY_AIM_MIB else []
        print(f"{groups:6}   {cpu}     {memory}   {'aim: ' + ', '.join(aims) if aims else ''}")


if __name__ == "__main__":
    main()

"""Measure what happens with more of everything, into docs/scale.md and capacity.md: make scale."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from bench.mailbox_size import Mailbox, Shard, medians
from bench.scale import capacity_report, measure, report
from bench.scale.data import Data

DOCS = Path(__file__).parent.parent.parent / "docs"
DATA = DOCS / "scale.json"
MAILBOX_SIZES = (1_000, 10_000, 100_000, 1_000_000)
MAILBOX_ROUNDS = 200
PARTS = ("clusters", "idle", "mailboxes", "report")
SCATTERED = 0.1  # share of messages whose date has nothing to do with their UID


async def clusters(data: Data) -> None:
    """Every setting that is not there yet; saved after each."""
    wanted = [each for each in measure.settings() if each not in data.settings]
    for group in measure.by_cluster(wanted):
        with tempfile.TemporaryDirectory(prefix="mailraft-scale-") as folder:
            async with measure.rig(group[0], Path(folder) / "cluster") as rig:
                idle = await rig.idle()
                for setting in group:
                    data.seen.append(await rig.measure(setting))
                    print(report.line(data.seen[-1]), flush=True)
                    data.keep(measure.ClusterSeen(*setting.cluster, *idle, rig.disk_ratio))
                    data.save(DATA)


async def idle_clusters(data: Data) -> None:
    """Those that are only looked at, and are not there yet."""
    known = {each.shape for each in data.clusters}
    for nodes, shards in measure.IDLE_ONLY:
        if (nodes, shards) not in known:
            setting = measure.Setting(nodes, shards)
            with tempfile.TemporaryDirectory(prefix="mailraft-scale-") as folder:
                async with measure.rig(setting, Path(folder) / "cluster") as rig:
                    data.keep(measure.ClusterSeen(nodes, shards, *await rig.idle(), None))
            data.save(DATA)


def mailboxes(data: Data) -> None:
    """Every operation on mailboxes of all sizes."""
    with tempfile.TemporaryDirectory(prefix="mailraft-scale-") as folder:
        shard = Shard(Path(folder) / "data")
        built = [
            Mailbox(shard, size, random.randrange(1 << 32), SCATTERED) for size in MAILBOX_SIZES
        ]
        for mailbox in built:
            mailbox.build()
        shard.warm_up()
        for (name, size), took_us in medians(built, MAILBOX_ROUNDS).items():
            data.mailbox.setdefault(name, {})[size] = took_us
        shard.close()
    data.save(DATA)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--resume", action="store_true", help="only what docs/scale.json has not")
    arguments = parser.parse_args()
    parts = arguments.only
    began_s = time.monotonic()
    data = Data.load(DATA) if arguments.resume or "clusters" not in parts else Data.here()
    if "mailboxes" in parts and not (arguments.resume and data.mailbox):
        mailboxes(data)
    if "clusters" in parts:
        asyncio.run(clusters(data))
    if "idle" in parts:
        asyncio.run(idle_clusters(data))
    if "report" in parts:
        data = Data.load(DATA)  # as it is kept, rounded: the pages have to follow from it
        report.write(data, DOCS)
        capacity_report.write(data, DOCS)
    print(f"done after {time.monotonic() - began_s:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

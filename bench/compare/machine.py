"""What processes and the disk did: CPU seconds, and sectors written to a device."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from pathlib import Path

import psutil  # type: ignore[import-untyped]

SECTOR_BYTES = 512
SECTORS_WRITTEN = 6  # the seventh field of /sys/block/*/stat
QUIET_BYTES_PER_S = 256 * 1024
QUIET_FOR = 3  # looks, a second apart
SETTLE_MAX_S = 20.0


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of these processes and all their descendants, ended ones too."""
    used = 0.0
    for pid in pids:
        try:
            processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        for process in processes:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            used += times.user + times.system + times.children_user + times.children_system
    return used


def written_bytes(folder: Path) -> int | None:
    """Bytes written to the device below the folder since boot, all that was dirty included.

    None where the file system has no block device of its own (tmpfs, overlay). Sectors, since
    /proc/PID/io counts what a process dirties, not what reaches the disk.
    """
    device = folder.stat().st_dev
    path = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat")
    if not path.exists():
        return None
    os.sync()
    return int(path.read_text("ascii").split()[SECTORS_WRITTEN]) * SECTOR_BYTES


async def settled(folder: Path) -> bool:
    """Wait until nothing is written any more: compaction is done. False: it went on."""
    until = time.monotonic() + SETTLE_MAX_S
    before, quiet = written_bytes(folder), 0
    while before is not None and quiet < QUIET_FOR:
        if time.monotonic() > until:
            return False
        await asyncio.sleep(1.0)
        now = written_bytes(folder)
        assert now is not None
        quiet = quiet + 1 if now - before < QUIET_BYTES_PER_S else 0
        before = now
    return True

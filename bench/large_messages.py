"""What memory large messages take: `make large`.

A local cluster of real processes; ten messages of 50 MiB, each uploaded from a file, appended and
downloaded again, all ten at once, directly to the leaders and through the router. Per process: its
resident memory above idle at its greatest, sampled. Memtables and the block cache count in it, as
large as they are configured.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mailraft.client import AsyncClient, NewMessage
from mailraft.cluster import runfile
from mailraft.cluster.local import LocalCluster, LocalOptions
from mailraft.wire import limits

MIB: Final = 1024 * 1024
MESSAGES: Final = 10
SHARDS: Final = 4
SAMPLE_S: Final = 0.05
SETTLE_S: Final = 3.0
DEADLINE_S: Final = 600.0
HEADER: Final = b"Subject: large\r\n\r\n"


class Memory:
    """The greatest memory of some processes since this was made."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self.idle = self._sample()
        self.peak = dict(self.idle)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            for name, size_bytes in self._sample().items():
                self.peak[name] = max(self.peak[name], size_bytes)
            await asyncio.sleep(SAMPLE_S)

    def _sample(self) -> dict[str, int]:
        return {name: _resident_bytes(pid) for name, pid in self._pids.items()}


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no VmRSS: it ended")


def _make_file(path: Path, size_bytes: int) -> str:
    """A message that does not compress; its hash."""
    sha256 = hashlib.sha256()
    with path.open("wb") as file:
        left = size_bytes
        data = HEADER
        while left:
            file.write(data)
            sha256.update(data)
            left -= len(data)
            data = os.urandom(min(left, MIB))
    return sha256.hexdigest()


async def _one(mail: AsyncClient, account: str, path: Path, wanted: str) -> None:
    with path.open("rb") as file:
        blob_id = await mail.upload(account, file, deadline_s=DEADLINE_S)
    (stored,) = await mail.append(account, [NewMessage(blob_id=blob_id)])
    sha256 = hashlib.sha256()
    async for chunk in mail.download(account, stored.message_id, deadline_s=DEADLINE_S):
        sha256.update(chunk)
    if sha256.hexdigest() != wanted:
        raise AssertionError(f"{account}: other bytes came back")


async def _measure(folder: Path, say: Callable[[str], None]) -> None:
    files = [folder / f"{number}.eml" for number in range(MESSAGES)]
    hashes = [_make_file(path, limits.UPLOAD_MAX_BYTES) for path in files]
    async with LocalCluster(folder / "cluster", LocalOptions(shards=SHARDS)) as cluster:
        await cluster.wait_ready()
        for way in ("to the leaders", "through the router"):
            mail = AsyncClient(
                cluster.router_address,
                certs=cluster.certs_folder,
                insecure=cluster.certs_folder is None,
                deadline_s=30.0,
                direct=way == "to the leaders",
            )
            async with mail:
                names = [f"{way}-{number}" for number in range(MESSAGES)]
                for name in names:
                    await mail.create_account(name)
                running = runfile.read(cluster.folder)
                assert running is not None
                pids = {each.name: each.pid for each in (*running.nodes, running.router)}
                await asyncio.sleep(SETTLE_S)
                memory = Memory({**pids, "client": os.getpid()})
                sampling = asyncio.create_task(memory.run())
                started_s = time.monotonic()
                await asyncio.gather(
                    *(_one(mail, *each) for each in zip(names, files, hashes, strict=True))
                )
                took_s = time.monotonic() - started_s
                if sampling.done():
                    sampling.result()  # a process ended
                sampling.cancel()
            say(f"{MESSAGES} messages of 50 MiB at once, {way}: {took_s:.1f} s")
            for name, idle_bytes in memory.idle.items():
                above = (memory.peak[name] - idle_bytes) / MIB
                say(f"  {name:8} idle {idle_bytes / MIB:6.1f} MiB, above idle {above:6.1f} MiB")


def main() -> int:
    """Measures in a temporary folder and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where 2 GiB have room; default: temporary")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory(dir=folder) as name:
        asyncio.run(_measure(Path(name), lambda text: print(text, flush=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Flips bits in the files of one node of a real cluster, and watches what becomes of them."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from mailraft.client import AsyncClient, Consistency, MailraftError
from mailraft.client.options import ReadArgs
from mailraft.cluster.child import Child
from mailraft.cluster.errors import ExitCode
from mailraft.cluster.local import LocalCluster
from mailraft.cluster.scrubs import NodeScrubbed, Scrubs
from mailraft.node.engine import quarantine
from mailraft.node.engine.scrub_files import SETTLED_S
from mailraft.node.interfaces import replica_id
from mailraft.wire import errors

ACCOUNTS = tuple(f"account-{number}" for number in range(4))
MEMTABLES_MIB = 4
REPAIRED_S = 120.0
ENDS_S = 60.0
PAUSE_S = 0.02


class SmallMemoryChild(Child):
    """As LocalCluster starts it; a node writes its tables out early."""

    def __init__(self, name: str, arguments: Sequence[str], log_path: Path) -> None:
        super().__init__(name, arguments, log_path)
        memtables = f"MAILRAFT_MEMTABLE_BYTES={MEMTABLES_MIB * 1024**2}"
        self._command = ("env", memtables, *self._command)


def flip(path: Path, at: float = 0.5, bit: int = 3) -> None:
    """One bit of a file, in place, at this part of it."""
    with path.open("r+b") as file:
        byte = min(int(path.stat().st_size * at), path.stat().st_size - 1)
        file.seek(byte)
        [value] = file.read(1)
        file.seek(byte)
        file.write(bytes((value ^ 1 << bit,)))
        os.fsync(file.fileno())


class Mail:
    """Mail that is delivered and read all the time: what was acknowledged, and what was served."""

    def __init__(self, cluster: LocalCluster, victim: int) -> None:
        self._cluster, self._victim = cluster, victim
        self.kept: dict[tuple[str, str], bytes] = {}
        self.wrong: list[str] = []
        self.served_by_victim = 0
        self._number = 0

    @asynccontextmanager
    async def going_on(self) -> AsyncIterator[None]:
        """While the block runs."""
        async with self._cluster.client(deadline_s=5.0) as client:
            tasks = [asyncio.create_task(work(client)) for work in (self._write, self._read)]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def deliver(self, client: AsyncClient, count: int) -> None:
        """So many, each of its own bytes."""
        for _ in range(count):
            self._number += 1
            account = ACCOUNTS[self._number % len(ACCOUNTS)]
            raw = b"Subject: %d\r\n\r\n" % self._number + os.urandom(2_000)
            receipt = await client.deliver(raw, to=[account])
            self.kept[account, receipt.recipients[0].message_id] = raw

    async def _write(self, client: AsyncClient) -> None:
        while True:
            with suppress(MailraftError):
                await self.deliver(client, 1)
            await asyncio.sleep(PAUSE_S)

    async def _read(self, client: AsyncClient) -> None:
        """From the node in question, whatever it has; and from whoever leads."""
        local = ReadArgs(
            consistency=Consistency.LOCAL, replica=replica_id(self._victim, 1), deadline_s=1.0
        )
        newest = ReadArgs(consistency=Consistency.LINEARIZABLE)
        while True:
            (account, message_id), raw = random.choice(list(self.kept.items()))
            for where in (local, newest):
                try:
                    body = await client.fetch_body(account, message_id, **where)
                except errors.MessageNotFoundError:
                    if where is newest:
                        self.wrong.append(f"{account} {message_id} is gone")
                except MailraftError:
                    continue
                else:
                    self.served_by_victim += where is local
                    if body != raw:
                        self.wrong.append(f"{account} {message_id} is served with other bytes")
            await asyncio.sleep(PAUSE_S)

    async def all_there(self, client: AsyncClient, node: int) -> None:
        """All that was acknowledged, byte for byte, from this node's own replicas."""
        where = ReadArgs(consistency=Consistency.LINEARIZABLE, replica=replica_id(node, 1))
        for (account, message_id), raw in self.kept.items():
            assert await client.fetch_body(account, message_id, **where) == raw


class Watched:
    """The node in question, with a supervisor that starts it again, as systemd does."""

    def __init__(self, cluster: LocalCluster, node: int) -> None:
        self.cluster, self.node = cluster, node
        self.child = next(each for each in cluster.children() if each.name == f"n{node}")
        self.folder = cluster.data_folder(node)
        self.led_while_fetching: list[str] = []
        self.ended = 0

    @asynccontextmanager
    async def supervised(self) -> AsyncIterator[None]:
        """While the block runs it is started again whenever it ends with an error, and nobody may
        see it lead what it has not got back.
        """
        tasks = [asyncio.create_task(work()) for work in (self._supervise, self._watch)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _supervise(self) -> None:
        while True:
            if not self.child.running:
                assert self.child.exit_status == ExitCode.FAILED, self.child.log_tail()
                self.ended += 1
                self.cluster.start(self.node)
            await asyncio.sleep(0.1)

    async def _watch(self) -> None:
        async with self.scrubs() as scrubs:
            while True:
                before = await self._fetching(scrubs)
                leaders = await self.cluster.leaders()
                both = before & await self._fetching(scrubs)
                led = {group for group, node in leaders.items() if node == self.node}
                self.led_while_fetching += [f"shard {group}" for group in both & led]
                await asyncio.sleep(0.05)

    async def _fetching(self, scrubs: Scrubs) -> set[int]:
        told = await self.told(scrubs)
        return set(told.told.fetching) if told.told is not None else set()

    def scrubs(self) -> Scrubs:
        """To ask the nodes."""
        return Scrubs(self.cluster.map, self.cluster.credentials())

    async def told(self, scrubs: Scrubs) -> NodeScrubbed:
        """How this node stands."""
        return next(each for each in await scrubs.look() if each.node == f"n{self.node}")

    async def scrubbed(self) -> None:
        """As `mailraft check repair`: all is read, and what was found is repaired."""
        async with self.scrubs() as scrubs:
            found = await scrubs.run(timeout_s=REPAIRED_S)
        undone = [f"{each.node} {each.state}" for each in found if not each.done]
        assert not undone, undone

    async def settled(self, pattern: str) -> Path:
        """The largest such file, once nothing was done to it for so long that it is remembered; of
        a log or manifest, which are written all the time and prove themselves, one with records.
        """
        while True:
            found = [path for path in self.folder.glob(pattern) if path.stat().st_size]
            if not found:
                await asyncio.sleep(0.1)
                continue
            path = max(found, key=lambda each: each.stat().st_size)
            if path.suffix == ".log" or path.name.startswith("MANIFEST-"):
                return path
            age_s = time.time() - path.stat().st_ctime
            if age_s > SETTLED_S + 0.5:
                return path
            await asyncio.sleep(SETTLED_S + 0.6 - age_s)

    def largest(self, pattern: str) -> tuple[Path, int]:
        """The largest such file, and its bytes."""
        return max(((each, each.stat().st_size) for each in self.folder.glob(pattern)), key=_bytes)

    async def stop(self) -> None:
        """In good order: its tables are written."""
        self.cluster.terminate(self.node)
        assert await self.cluster.stopped(self.node)

    async def until(self, reached: Callable[[], bool], what: str, within_s: float) -> float:
        """Seconds until then."""
        began_s = time.monotonic()
        while not reached():
            assert time.monotonic() - began_s < within_s, f"{what}: {self.child.log_tail()}"
            await asyncio.sleep(0.05)
        return time.monotonic() - began_s

    def keeps(self) -> bool:
        """Whether damaged data are kept aside."""
        return quarantine.kept(self.folder) is not None

    def log_since(self, position: int) -> str:
        """What it has logged since then."""
        with self.child.log_path.open("rb") as log:
            log.seek(position)
            return log.read().decode("utf-8", "replace")

    def log_position(self) -> int:
        return self.child.log_path.stat().st_size


def _bytes(sized: tuple[Path, int]) -> int:
    return sized[1]
